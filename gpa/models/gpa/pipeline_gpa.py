"""GPA: one decoder-only transformer over audio and text ids that recognises, speaks and converts voices.

The network is transformers' plain Qwen3. Inputs become ids in processing_gpa.py, the loop over ids is in
generation_gpa.py; this file is the public class that joins them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen3ForCausalLM

from gpa.audio import AudioLike
from gpa.codec.bicodec import BiCodec
from gpa.codec.glm4voice import GLM4VoiceTokenizer
from gpa.errors import GenerationError, PromptError, UsageError
from gpa.models.gpa import checkpoint_gpa as files
from gpa.models.gpa.beam_gpa import transcribe
from gpa.models.gpa.budgets_gpa import budget
from gpa.models.gpa.configuration_gpa import GPAConfig
from gpa.models.gpa.generation_gpa import Completion, Rules, Sampling, generate
from gpa.models.gpa.guided_gpa import anchored, recognised, spoken
from gpa.models.gpa.info_gpa import describe
from gpa.models.gpa.outputs_gpa import Speech, Transcript, Voice, VoiceLike
from gpa.models.gpa.processing_gpa import GPAProcessor
from gpa.nn import threads as processor
from gpa.nn.device import pick_device, pick_dtype
from gpa.prompt.formats import Format
from gpa.prompt.vocab import Vocab

logger = logging.getLogger(__name__)

SEED_STEP = 1_000_003  # between the seeds of the parts of one request
ASR = "asr"  # in the place of a transcript: what the model itself recognises
_WORST = ("stop", "length", "loop")


class GPA:
    """A loaded model: `tts`, `asr`, `vc`, `voice`; below them `prompt`, `generate` and `codec`."""

    def __init__(
        self,
        lm: Qwen3ForCausalLM,
        codec: BiCodec,
        tokenizer: str | os.PathLike,
        *,
        glm: GLM4VoiceTokenizer | None = None,
        config: GPAConfig | None = None,
        voices: Mapping[str, Voice] | None = None,
        path: Path | None = None,
    ) -> None:
        """Join loaded parts; `tokenizer` is a directory. CheckpointError if they do not belong together."""
        self.config = config or GPAConfig()
        c = lm.config
        sizes = {"vocab_size": c.vocab_size, "context": c.max_position_embeddings}
        self.processor = GPAProcessor(tokenizer, codec, glm, self.config, **sizes)
        self.lm = lm.eval()
        self.path = path
        self.precision = next(lm.parameters()).dtype  # of the files, which saving keeps
        for name, voice in (voices or {}).items():
            self.add_voice(name, voice)

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | os.PathLike,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        revision: str | None = None,
        offline: bool = False,
        threads: int | None = None,
    ) -> GPA:
        """Load a directory, a repository id or a shipped name.

        It may hold a published checkpoint (at its root or in gpa_0_3b/) or what `save_pretrained` wrote.

        `dtype` is that of the language model; the codec computes in float32. Nothing is downloaded for a
        local path. `threads` of the processor hold for the whole process: None lets the model's size decide,
        0 leaves torch's number alone (docs/performance.md). Raises CheckpointError for missing, unexpected or
        mismatched parts.
        """
        folder = files.find(path_or_repo, revision, offline)
        config = GPAConfig.read(folder)
        chosen = pick_device(device)
        lm, stored = files.load_lm(folder)
        processor.settle(processor.weights(lm), threads, chosen)
        codec, glm = files.load_parts(folder, chosen)
        model = cls(lm, codec, folder, glm=glm, config=config, path=folder)
        if (folder / "gpa.json").is_file():
            config.check(model.processor.fingerprints(), str(folder))
        for name, voice in files.load_voices(folder).items():
            model.add_voice(name, voice)
        lm.to(chosen, pick_dtype(dtype, chosen, stored))  # type: ignore[arg-type]
        model.precision = stored
        return model

    def save_pretrained(
        self,
        path: str | os.PathLike,
        *,
        dtype: torch.dtype | None = None,
        codec_dtype: torch.dtype | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Write a plain Hugging Face directory that needs nothing from outside: AutoModelForCausalLM and
        AutoTokenizer load it without this package; codec/, voices/ and gpa.json lie beside their files.

        Precisions default to those of the loaded files. Card, data page and golden/ come along unless the
        copy computes something else: an adapter folded in, a list taken, the precision lowered. An existing
        directory is refused unless `overwrite`.
        """
        return files.write_checkpoint(
            path,
            lm=self.lm,
            codec=self.codec,
            glm=self.processor.glm,
            text_files=self.processor.text_files,
            voices=self.voices,
            config=self.config,
            fingerprints=self.processor.text_fingerprints(),
            dtypes=(dtype or self.precision, codec_dtype),
            origin=self.path,
            overwrite=overwrite,
        )

    @property
    def codec(self) -> BiCodec:
        """The codec: `semantic_tokens`, `global_tokens`, `decode`."""
        return self.processor.codec

    @property
    def voices(self) -> dict[str, Voice]:
        """Shipped voices by name."""
        return self.processor.voices

    @property
    def glm(self) -> GLM4VoiceTokenizer | None:
        """The GLM tokenizer of a published checkpoint."""
        return self.processor.glm

    @property
    def vocab(self) -> Vocab:
        """The id space."""
        return self.processor.vocab

    @property
    def format(self) -> Format:
        """The prompt format."""
        return self.processor.format

    @property
    def device(self) -> torch.device:
        """Where the language model is."""
        return self.lm.device

    @property
    def sample_rate(self) -> int:
        """Hz of everything spoken."""
        return self.codec.spec.sample_rate

    def info(self) -> dict[str, Any]:
        """Path, format, sizes, limits, voices and fingerprints, ready for JSON."""
        return describe(self.lm, self.processor, self.path)

    def voice(self, reference: AudioLike, *, name: str = "", about: Mapping[str, str] | None = None) -> Voice:
        """The voice of a recording, 3 to 6 s of clear speech; AudioWarning if short, silent or clipped."""
        return self.processor.voice(reference, name, about)

    def add_voice(self, name: str, voice: Voice) -> None:
        """Make a voice available by name; `save_pretrained` ships it."""
        self.voices[name] = self.processor.checked(voice)

    def resolve_voice(self, voice: VoiceLike) -> Voice:
        """A Voice from itself, a shipped name, a JSON path, or any audio; UsageError lists the choices."""
        return self.processor.resolve_voice(voice)

    def prompt(
        self,
        task: str,
        *,
        audio: AudioLike | None = None,
        text: str | None = None,
        source: AudioLike | None = None,
        voice: VoiceLike | None = None,
        instruction: str | None = None,
    ) -> list[int]:
        """The exact ids the model sees: asr takes `audio`, tts `text` and `voice`, vc `source` and `voice`,
        a task of your own what its `Task` says.

        PromptError names a missing or superfluous input, and the numbers of a prompt that exceeds the
        context.
        """
        given = {"audio": audio, "text": text, "source": source, "voice": voice}
        return self.processor.prompt(task, given, instruction)

    def generate(
        self,
        ids: list[int],
        *,
        task: str,
        constrained: bool = True,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float | None = None,
        max_new_tokens: int | None = None,
        seed: int = 0,
    ) -> list[int]:
        """New ids after a prompt, the stop id included if it was reached; temperature 0 is greedy.

        `constrained` allows only ids that a completion of the task may hold, and ends loops; without it any
        id may come. Unset values are this model's defaults for the task; without `max_new_tokens` the length
        follows from the prompt.
        """
        task = self.format.task(task).name
        sampling = self._sampling(task, temperature, top_k, top_p, repetition_penalty)
        most = budget(max_new_tokens, self.processor.budget_of(ids))
        rules = self.processor.rules(task, most)
        if not constrained:
            rules = Rules(most, rules.stop)
        return generate(self.lm, ids, rules, sampling, seed=seed).ids

    def _sampling(self, task: str, *values: float | None) -> Sampling:
        changes = zip(("temperature", "top_k", "top_p", "repetition_penalty"), values, strict=True)
        return self.config.sampling[self.format.task(task).name].updated(**dict(changes))

    # Tasks ------------------------------------------------------------------------------------------------

    def tts(
        self,
        text: str,
        *,
        voice: VoiceLike = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float | None = None,
        max_new_tokens: int | None = None,
        seed: int = 0,
        pause: float = 0.2,
        gamma: float | None = None,
        pronunciations: Mapping[str, str] | None = None,
    ) -> Speech:
        """Speak a text of any length in a voice; a long text is spoken in parts, `pause` seconds apart.

        `max_new_tokens` bounds each of them. The text guides with strength `gamma`, by default the model's
        own; 0 is off, and faster. `pronunciations` say how words sound, `{"tomato": "T AH0 M AA1 T OW0"}`,
        in the phones of the CMU Pronouncing Dictionary. PromptError for text that says nothing,
        GenerationError for no speech.
        """
        gamma = self.config.gamma if gamma is None else gamma
        sampling = self._sampling("tts", temperature, top_k, top_p, repetition_penalty)
        speaker = self.resolve_voice(voice)
        codes = speaker.codes
        known = self.processor.dictionary(pronunciations)
        pieces = self.processor.text_parts(text, codes, known)
        made = []
        for i, piece in enumerate(pieces):
            least, most = self.processor.spoken_ids(piece)
            rules = self.processor.rules("tts", budget(max_new_tokens, most), least)
            said = self.processor.pronounced(piece, known)
            ids = self.processor.build("tts", text=said, voice=codes)
            guided = spoken(self.lm, self.processor.format, ids, codes, rules, gamma)
            done = generate(self.lm, ids, rules, sampling, seed=seed + i * SEED_STEP, logits=guided)
            made.append(self._spoken(done))
        silence = np.zeros(int(pause * self.sample_rate), np.float32)
        wavs: list[np.ndarray] = []
        for tokens, _ in made:
            wavs += [silence] * bool(wavs) + [self.codec.decode(tokens, speaker)]
        return self._speech(np.concatenate(wavs), np.concatenate([t for t, _ in made]), [r for _, r in made])

    def vc(
        self,
        source: AudioLike,
        *,
        voice: VoiceLike = None,
        mode: str | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float | None = None,
        max_new_tokens: int | None = None,
        seed: int = 0,
        transcript: str | None = None,
        gamma: float | None = None,
    ) -> Speech:
        """Say what `source` says in another voice.

        Mode "lm" generates it anew; "codec" keeps the source's semantic codes and only swaps the speaker's:
        fast, exact in timing. The default is the checkpoint's own, `config.conversion`; options of generation
        imply "lm". A `transcript`, or "asr" for what the model itself recognises, guides mode "lm" with
        strength `gamma` (1): speech with these words, in the source's time. UsageError for an option that the
        mode has no use for.
        """
        if transcript is not None and not transcript.strip():
            raise PromptError("the transcript is empty: leave it out")
        options = {"transcript": transcript, "gamma": gamma, "temperature": temperature, "top_k": top_k}
        options |= {
            "top_p": top_p,
            "repetition_penalty": repetition_penalty,
            "max_new_tokens": max_new_tokens,
        }
        mode = self.config.conversion_mode(mode, options)
        sampling = self._sampling("vc", temperature, top_k, top_p, repetition_penalty)
        speaker = self.resolve_voice(voice)
        codes = speaker.codes
        wav = self.processor.hear(source, "the source")
        if mode == "codec":
            tokens = self.codec.semantic_tokens((wav, self.sample_rate))
            wav = self.codec.decode(tokens, speaker)
            return replace(self._speech(wav, tokens, ["stop"]), mode=mode)
        made = []
        parts = self.processor.audio_parts(wav, "vc")
        if len(parts) > 1 and transcript not in (None, ASR):
            raise UsageError(
                f"the source takes {len(parts)} parts: cut it, or let transcript={ASR!r} hear each"
            )
        for i, part in enumerate(parts):
            ids = self.processor.build("vc", wav=part, voice=codes)
            rules = self.processor.conversion_rules(ids, max_new_tokens)
            words = recognised(self.asr, (part, self.sample_rate)) if transcript == ASR else transcript
            said = self.processor.pronounced(words or "")
            guided = words and anchored(self.lm, self.processor.format, ids, said, codes, rules, gamma)
            done = generate(self.lm, ids, rules, sampling, seed=seed + i * SEED_STEP, logits=guided or None)
            made.append(self._spoken(done))
        tokens = np.concatenate([t for t, _ in made])
        return self._speech(self.codec.decode(tokens, speaker), tokens, [r for _, r in made])

    def asr(
        self,
        audio: AudioLike,
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float | None = None,
        max_new_tokens: int | None = None,
        beams: int | None = None,
        words: Iterable[str] = (),
        seed: int = 0,
    ) -> Transcript:
        """Write down what is said in audio of any length; a long one is cut at its quietest points.

        `beams` hypotheses are searched at temperature 0, helped by the checkpoint's words and bigrams and
        by `words`, names that may be said; 1 is greedy. `max_new_tokens` bounds each part. GenerationError if
        nothing was recognised.
        """
        sampling = self._sampling("asr", temperature, top_k, top_p, repetition_penalty)
        search = self.processor.search(beams, words)
        wav = self.processor.hear(audio, "the audio")
        texts, tokens, reasons = [], [], []
        for i, part in enumerate(self.processor.audio_parts(wav, "asr")):
            ids = self.processor.build("asr", wav=part)
            most = budget(max_new_tokens, self.processor.transcript_ids(len(part) / self.sample_rate))
            rules = self.processor.rules("asr", most)
            done = transcribe(self.lm, ids, rules, sampling, search, seed=seed + i * SEED_STEP)
            text_ids = self.processor.text_ids(done)
            texts.append(self.processor.text_tokenizer.decode(text_ids).strip())
            tokens += text_ids
            reasons.append(done.finish_reason)
        text = " ".join(t for t in texts if t)
        if not text:
            raise GenerationError("no words were recognised: is there speech in the audio?")
        return Transcript(text, np.array(tokens, np.int64), max(reasons, key=_WORST.index))

    def _spoken(self, done: Completion) -> tuple[np.ndarray, str]:
        """Semantic codes of a completion, a loop's repetitions cut off."""
        tokens = self.processor.codes(done)
        if not tokens:
            raise GenerationError("the model produced no speech: try another seed, or a longer text")
        return np.array(tokens, np.int64), done.finish_reason

    def _speech(self, wav: np.ndarray, tokens: np.ndarray, reasons: list[str]) -> Speech:
        reason = max(reasons, key=_WORST.index)
        if reason != "stop":
            logger.warning("speech ended by %s, not by the model", reason)
        wav = wav / float(np.abs(wav).max(initial=1.0))  # quieter rather than clipped
        return Speech(wav, self.sample_rate, tokens, reason)
