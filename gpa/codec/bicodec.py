"""BiCodec: audio <-> semantic ids (words, rhythm) + global ids (voice), for weights of any size.

The published Spark-TTS/GPA weights and our gpa-mini codec are this one class; a config file decides sizes,
feature encoder (wav2vec2 or Whisper), token rate and waveform decoder. Source: Spark-TTS, arXiv 2503.01710.
Knows audio and codes; ids of a language model's vocabulary never come here.

    S samples at 16 kHz   T semantic ids   G global ids   C feature channels   B clips of equal length
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gpa import audio as sound
from gpa import hub
from gpa.codec import ctc, margins, reference
from gpa.codec.base import BLOCKS, AudioTokens, CodecSpec, Stream, TokenCodec
from gpa.codec.bicodec_config import BiCodecConfig
from gpa.codec.bicodec_model import BiCodecModel
from gpa.codec.by_length import by_length
from gpa.codec.feature_encoder import (
    AnyFeatures,
    FeatureEncoder,
    StoredFeatures,
    half_where_it_fits,
    save_features,
    state_digest,
)
from gpa.codec.harmonic import HarmonicDecoder
from gpa.codec.recordings import timbre_of
from gpa.codec.voice import Voice
from gpa.config import stated
from gpa.errors import CheckpointError, UsageError, VocabError
from gpa.nn.incremental import BlockDecoder, Each, Layer, Series

if TYPE_CHECKING:
    from gpa.audio import AudioLike
    from gpa.codec.timbre import Timbre

logger = logging.getLogger(__name__)

WAV2VEC2_FOLDER = "wav2vec2-large-xlsr-53"
ADAPTED = 4  # copies of the decoder that are kept, each for one adapted voice
Ids = Sequence[int] | np.ndarray | Tensor
Speaker = Voice | Ids | None
# Constants of the mel that some files carry and others do not; ours are computed.
_RECOMPUTED = ("mel_transformer.*",)


class BiCodec(TokenCodec):
    """A loaded BiCodec, ready to encode and decode; float32, because the nearest code moves with less."""

    def __init__(
        self, model: BiCodecModel, features: AnyFeatures, device: str | torch.device = "cpu"
    ) -> None:
        config = model.config
        if features.channels != config.encoder.input_channels:
            raise CheckpointError(
                f"the {config.features} encoder gives {features.channels} channels, the codec reads "
                f"{config.encoder.input_channels}"
            )
        self.device = torch.device(device)
        self.config = config
        self.model = model.to(self.device, torch.float32).eval().requires_grad_(False)
        self._features = features if isinstance(features, StoredFeatures) else self._at_rest(features)
        self.ctc: ctc.CTCNetwork | None = None  # hears letters, and changes neither ids nor sound
        self.precision = torch.float32  # of the files, which saving keeps
        self._fingerprints: dict[str, str] = {}
        self._adapted: dict[bytes, BiCodecModel] = {}  # by weights, the latest last
        s, (behind, ahead) = config.speaker_encoder, model.context()
        self._spec = CodecSpec(
            name="bicodec",
            sample_rate=config.sample_rate,
            hop_length=config.latent_hop_length,
            n_codebooks=1,
            codebook_size=config.quantizer.codebook_size,
            n_global=s.token_num,
            global_size=int(np.prod(s.fsq_levels)),
            # Phase and noise of the harmonic renderer run on from the start of the clip.
            context=(None if self.harmonic else behind, ahead),
        )

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike,
        *,
        device: str | torch.device = "cpu",
        revision: str | None = None,
        offline: bool = False,
    ) -> BiCodec:
        """Load a directory or repository, of the published layout (config.yaml) or of ours (config.json).

        CheckpointError, with a readable difference, if a tensor is missing, unexpected or of another shape.
        """
        folder = hub.resolve(path, revision, offline)
        published = (folder / "config.yaml").is_file()
        config = BiCodecConfig.read(folder)
        state = hub.read_state(folder)
        made = partial(BiCodecModel, config)
        model = hub.build_strict(made, state, ignore=_RECOMPUTED, where=str(folder))
        features = StoredFeatures(folder / (WAV2VEC2_FOLDER if published else "features"), config.features)
        codec = cls(model, features, device)
        codec.ctc = ctc.found(folder / ctc.FOLDER, codec.device)
        codec.precision = hub.stored_precision(state)
        return codec

    def save_pretrained(self, path: str | os.PathLike, dtype: torch.dtype | None = None) -> None:
        """Write config.json, model.safetensors and features/; values that half cannot hold stay float32."""
        path, dtype = Path(path), dtype or self.precision
        state = half_where_it_fits(self.model.state_dict(), dtype)
        hub.write_model(path, state, {"model_type": "bicodec", **self.config.to_dict()})
        save_features(self.features, path / "features", dtype)
        if self.ctc:
            self.ctc.save_pretrained(path / ctc.FOLDER, dtype)

    @property
    def features(self) -> FeatureEncoder:
        """What encoding begins with. Decoding needs none, so it is built on first use."""
        if isinstance(self._features, StoredFeatures):
            self._features = self._at_rest(self._features.build())
        return self._features

    def _at_rest(self, features: FeatureEncoder) -> FeatureEncoder:
        return features.to(self.device, torch.float32).eval().requires_grad_(False)

    @property
    def spec(self) -> CodecSpec:
        """Rates and sizes."""
        return self._spec

    def fingerprint(self) -> str:
        """SHA-256 over settings and weights as loaded, whatever the file layout."""
        return state_digest(stated(self.config), self.model.state_dict(), self._features.state_dict())

    def fingerprints(self) -> dict[str, str]:
        """`codec`, and `ctc` of the network that hears letters, if it came with one."""
        letters = {"ctc": state_digest(stated(self.ctc.config), self.ctc.state_dict())} if self.ctc else {}
        return {**super().fingerprints(), **letters}

    def voice_fingerprint(self) -> str:
        """SHA-256 over what gives global ids their meaning, rounded to half precision.

        A voice made before the decoder was trained further, or the weights were stored smaller, stays valid.
        """
        return self._rounded("speaker_encoder.")

    def decoder_fingerprint(self) -> str:
        """SHA-256 over all weights of the network, rounded likewise: what gives a timbre its meaning."""
        return self._rounded("")

    def _rounded(self, start: str) -> str:
        if start not in self._fingerprints:
            names = {n: t for n, t in self.model.state_dict().items() if n.startswith(start)}
            half = half_where_it_fits(names, torch.float16)
            self._fingerprints[start] = state_digest({}, {n: t.float() for n, t in half.items()})
        return self._fingerprints[start]

    # Encoding ---------------------------------------------------------------------------------------------

    def encode(self, audio: AudioLike, *, rate: int | None = None) -> AudioTokens:
        """Both kinds of ids, codes (1, T) and global_ (G,), and a timbre. `rate` is that of a bare array."""
        return self.encode_batch([audio], rate=rate)[0]

    def encode_batch(self, audios: Sequence[AudioLike], *, rate: int | None = None) -> list[AudioTokens]:
        """`encode` of several clips, equal to that of each alone."""
        wavs = [self._load(audio, rate) for audio in audios]
        given = zip(wavs, self._semantic(wavs), self._global(wavs), strict=True)
        return [
            AudioTokens(ids[None], codes, timbre_of(self, [(wav, ids)], Voice(tuple(codes.tolist()))))
            for wav, ids, codes in given
        ]

    def semantic_tokens(self, audio: AudioLike, *, rate: int | None = None) -> np.ndarray:
        """Semantic ids (T,) int64 of one clip; AudioError if the audio cannot be used."""
        return self._semantic([self._load(audio, rate)])[0]

    def global_tokens(self, audio: AudioLike, *, rate: int | None = None) -> np.ndarray:
        """Global ids (G,) int64 of a voice: of its first `ref_segment_duration` seconds, tiled if shorter."""
        return self._global([self._load(audio, rate)])[0]

    def voice_tokens(self, audio: AudioLike, *, rate: int | None = None) -> tuple[np.ndarray, Timbre | None]:
        """`global_tokens` of a voice, and its timbre where the decoder can draw one (ours, not published)."""
        wav = self._load(audio, rate)
        codes = self._global([wav])[0]
        wav = wav[: int(self.config.ref_segment_duration * self.config.sample_rate)]
        if self.harmonic is None:
            return codes, None
        return codes, timbre_of(self, [(wav, self._semantic([wav])[0])], Voice(tuple(codes.tolist())))

    def codes_batch(self, audios: Sequence[AudioLike]) -> list[np.ndarray]:
        """Semantic ids (T,) of clips, equal to those of each alone: nothing is padded."""
        return self._semantic([self._load(audio, None) for audio in audios])

    @torch.inference_mode()
    def codes_and_letters(self, audio: AudioLike) -> tuple[np.ndarray, np.ndarray | None]:
        """Semantic ids (T,), and letters (L, V) of the same states if the codec came with a CTC network."""
        states = self._states(self._load(audio, None)[None])
        codes = self.model.quantizer.encode(self.model.latents(states))[0].cpu().numpy().astype(np.int64)
        return codes, self.ctc(states)[0].cpu().numpy() if self.ctc else None

    def voice_codes(self, audio: AudioLike) -> np.ndarray:
        """Global ids (G,)."""
        return self.global_tokens(audio)

    def voice(self, audio: AudioLike, name: str = "", about: Mapping[str, str] | None = None) -> Voice:
        """The voice of a recording: its global ids, and its timbre where the decoder can draw one."""
        codes, timbre = self.voice_tokens(audio)
        return Voice(tuple(codes.tolist()), self.voice_fingerprint(), name, dict(about or {}), timbre)

    @torch.inference_mode()
    def speaker_vector(self, wav: np.ndarray) -> np.ndarray:
        """Where the speaker encoder puts a waveform (S,) among voices, (D,)."""
        x = torch.from_numpy(np.ascontiguousarray(wav, np.float32))[None].to(self.device)
        return self.model.speaker_encoder(self.model.mel(x))[0].float().cpu().numpy()

    def checked(self, voice: Voice) -> Voice:
        """The voice; CheckpointError if it is another codec's.

        A timbre or an adaptation that corrects another decoder is left out, with a warning.
        """
        voice = super().checked(voice)
        if voice.corrects - {self.decoder_fingerprint()}:
            logger.warning(
                "%s keeps its codes alone: what it was given beyond them is another decoder's; "
                "make it again from the recordings, with  gpa voice  or  gpa finetune",
                f"voice {voice.name!r}" if voice.name else "the voice",
            )
            return replace(voice, timbre=None, adaptation=None)
        return voice

    def _check_codes(self, voice: Voice, what: str) -> None:
        count, size = self._spec.n_global, self._spec.global_size
        if len(voice.codes) != count or not all(0 <= code < size for code in voice.codes):
            raise CheckpointError(f"{what} does not have {count} codes below {size}: it is another codec's")

    @property
    def harmonic(self) -> HarmonicDecoder | None:
        """The decoder, if it draws bands and so can draw a timbre."""
        return self.model.decoder if isinstance(self.model.decoder, HarmonicDecoder) else None

    def reference_clip(self, wav: np.ndarray) -> np.ndarray:
        """What the global path reads of a 16 kHz waveform (S,): its first seconds, levelled or tiled."""
        c = self.config
        samples = int(c.ref_segment_duration * c.sample_rate) // c.latent_hop_length * c.latent_hop_length
        return reference.reference_clip(self._leveled(wav), samples)

    @torch.inference_mode()
    def latents(self, wavs: np.ndarray) -> Tensor:
        """Encoder output (B, D, T) before quantisation, of waveforms (B, S) of one length."""
        return self.model.latents(self._states(wavs))

    def _states(self, wavs: np.ndarray) -> Tensor:
        if self.config.features == "whisper":
            wavs = np.pad(wavs, ((0, 0), (0, -wavs.shape[1] % self.config.latent_hop_length)))
        else:  # wav2vec2 standardises again, so this only keeps the published order of operations
            wavs = np.stack([self._leveled(wav) for wav in wavs])
        return self.features(torch.from_numpy(wavs).to(self.device))

    def _leveled(self, wav: np.ndarray) -> np.ndarray:
        return reference.normalise_loudness(wav) if self.config.volume_normalize else wav

    def _load(self, audio: AudioLike, rate: int | None) -> np.ndarray:
        return sound.load(audio, self.config.sample_rate, rate=rate)

    def _semantic(self, wavs: Sequence[np.ndarray]) -> list[np.ndarray]:
        return by_length(wavs, lambda batch: self.model.quantizer.encode(self.latents(batch)))

    def _global(self, wavs: Sequence[np.ndarray]) -> list[np.ndarray]:
        clips = [self.reference_clip(wav) for wav in wavs]
        return by_length(
            clips, lambda batch: self.model.encode_global(torch.from_numpy(batch).to(self.device))
        )

    # Decoding ---------------------------------------------------------------------------------------------

    def decode(
        self, semantic: Ids | AudioTokens, voice: Speaker = None, lookahead: int | None = None
    ) -> np.ndarray:
        """Waveform float32 (S,), `hop_length` samples per id, as the network gives it (mean not removed).

        `semantic` (T,) is a list, array or tensor, leading axes of size 1 allowed; so are the global codes
        (G,) that may stand for a `voice`. An AudioTokens may hold both. Computed as `stream` does, equal to
        it. Raises VocabError for a code out of range, UsageError for a timbre that the decoder cannot draw.
        """
        codes, voice = self._asked(semantic, voice)
        return self.stream(voice, lookahead).run(AudioTokens(codes))

    def stream(self, voice: Speaker = None, lookahead: int | None = None) -> Stream:
        """Sound of semantic ids that come bit by bit; `voice` and errors are those of `decode`."""
        network, render = self._layers(voice), self.model.decoder.renderer()
        return Stream(self.spec, BlockDecoder(network, render, self.model.frames_per_id), lookahead)

    def render(self, frames: np.ndarray) -> np.ndarray:
        """The waveform (S,) of a whole clip's frames (C, N)."""
        with torch.inference_mode():
            return self.model.render(torch.from_numpy(frames)[None].to(self.device))[0].cpu().numpy()

    def code_vectors(self) -> Tensor:
        """Code vectors (V, D)."""
        return self.model.code_vectors()

    def parameters(self) -> dict[str, int]:
        """Numbers of weights by part."""
        parts = {"codec": self.model, "features": self.features, **({"ctc": self.ctc} if self.ctc else {})}
        return {name: sum(weight.numel() for weight in part.parameters()) for name, part in parts.items()}

    def code_excess(self, audio: AudioLike, codes: np.ndarray) -> float:
        """By what margin recorded semantic ids (T,) lose to ours (gpa.codec.margins)."""
        wav = sound.load(audio, self.spec.sample_rate)
        return margins.semantic_excess(self.latents(wav[None]), self.model.quantizer, codes)

    @torch.inference_mode()
    def voice_excess(self, audio: AudioLike, codes: np.ndarray) -> float:
        """The same of global ids (G,)."""
        clip = torch.from_numpy(self.reference_clip(sound.load(audio, self.spec.sample_rate)))
        speaker = self.model.speaker_encoder
        latents = speaker.latents(self.model.mel(clip[None].to(self.device)))[0]  # (G, latent)
        return margins.fsq_excess(speaker.quantizer, latents, codes)

    def _codes(self, ids: Ids | None) -> tuple[int, ...]:
        """A voice's ids; VocabError for too many or too few, or one out of range."""
        codes = _flat([] if ids is None else ids, "global", self._spec.global_size)
        if len(codes) != self._spec.n_global:
            raise VocabError(f"{len(codes)} global codes; this codec has {self._spec.n_global}")
        return tuple(codes.tolist())

    @torch.inference_mode()
    def frames(self, semantic: Ids | AudioTokens, voice: Speaker = None) -> np.ndarray:
        """What the network draws of a clip, (C, N), for `render`; arguments and errors as of `decode`."""
        codes, voice = self._asked(semantic, voice)
        network, blocks = self._layers(voice), torch.from_numpy(codes)[None].split(BLOCKS[-1], -1)
        parts = [network.push(block, i == len(blocks)) for i, block in enumerate(blocks, 1)]
        return torch.cat([part for part in parts if part.shape[-1]], -1)[0].cpu().numpy()

    def _asked(self, semantic: Ids | AudioTokens, voice: Speaker) -> tuple[np.ndarray, Speaker]:
        """Codes (1, T), and who speaks them."""
        if isinstance(semantic, AudioTokens):
            voice = voice or Voice(self._codes(semantic.global_), timbre=semantic.timbre)
            semantic = semantic.codes
        return _flat(semantic, "semantic", self._spec.codebook_size)[None], voice

    @torch.inference_mode()
    def _layers(self, voice: Speaker) -> Layer:
        """Codes (1, 1, T) to frames of the voice, bit by bit."""
        voice = voice if isinstance(voice, Voice) else Voice(self._codes(voice))
        network, speaker = self._drawing(voice)
        layers: list[Layer] = [Each(lambda codes: codes[:, 0]), network.streaming(speaker)]
        timbre, learnt = voice.timbre, voice.adaptation
        if timbre is not None:
            bands = self._bands("timbre")
            layers.append(Each(lambda frames: bands.retouched(frames, timbre)))
        if learnt is not None and (learnt.gain, learnt.shift) != (1.0, 0.0):
            intoned = self._bands("change of pitch").intoned
            layers.append(Each(lambda frames: intoned(frames, learnt.gain, learnt.shift)))
        return Series(*layers)

    def _bands(self, what: str) -> HarmonicDecoder:
        if self.harmonic is None:
            raise UsageError(f"this codec's decoder draws no bands, so it takes no {what}")
        return self.harmonic

    def _drawing(self, voice: Voice) -> tuple[BiCodecModel, Tensor]:
        """The network that draws a voice, and its speaker vector (1, D)."""
        if voice.adaptation is None:
            codes = torch.tensor([self._codes(voice.codes)], device=self.device)
            return self.model, self.model.speaker_encoder.decode(codes)
        key, vector = voice.adaptation.weights, voice.adaptation.vector
        network = self._adapted.pop(key, None) or voice.adaptation.applied(self.model)
        self._adapted[key] = network
        for old in list(self._adapted)[:-ADAPTED]:
            self._adapted.pop(old, None)
        return network, vector[None].to(self.device)


def _flat(ids: Ids, name: str, size: int) -> np.ndarray:
    """Ids as int64 (N,), range-checked."""
    array = ids.detach().cpu().numpy() if isinstance(ids, Tensor) else np.asarray(ids)
    if array.size == 0 or array.ndim == 0 or max(array.shape) != array.size or array.dtype.kind not in "iu":
        raise VocabError(
            f"{name} codes must be one non-empty sequence of integers, got {array.dtype} {array.shape}"
        )
    array = array.reshape(-1).astype(np.int64)
    if array.min() < 0 or array.max() >= size:
        raise VocabError(f"{name} codes {array.min()} .. {array.max()} are outside 0 .. {size - 1}")
    return array
