"""SpeechOp: one diffusion model that restores, separates, extracts, matches, edits and speaks.

The public class: what a user asks for becomes a plan of `gpa.compose`. Files, windows, words and the sampling
loop are in the files beside it. Source: SpeechOp, arXiv 2509.14298.

    S samples
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gpa import compose
from gpa.compose import Average, Guided, Plan, Term
from gpa.config import check_options
from gpa.errors import UsageError
from gpa.models.speechop import checkpoint_speechop as files
from gpa.models.speechop.asr_features_speechop import ASRFeatures, load_asr_features
from gpa.models.speechop.configuration_speechop import Sampler, SpeechOpConfig
from gpa.models.speechop.options_speechop import (
    ComposeOptions,
    EditOptions,
    EnhancementOptions,
    RestorationOptions,
    RunOptions,
    SpeechOptions,
)
from gpa.models.speechop.outputs_speechop import Separated, Sound
from gpa.models.speechop.processing_speechop import Front, Guide, Heard
from gpa.models.speechop.request_speechop import Request
from gpa.models.speechop.run_speechop import Progress, check_tasks
from gpa.models.speechop.text_speechop import text_ids
from gpa.models.speechop.windows_speechop import Windows
from gpa.models.speechop.words_speechop import Recogniser, spoken
from gpa.nn import threads as processor
from gpa.nn.device import pick_device

if TYPE_CHECKING:
    from typing import Unpack

    from gpa.audio import AudioLike
    from gpa.codec.kl import KLCodec
    from gpa.models.speechop.layers_speechop import Text
    from gpa.models.speechop.modeling_speechop import SpeechOpModel

Transcript = str | Sequence[str] | None


class SpeechOp:
    """A loaded model: `enhance`, `tts`, `extract`, `separate`, `match`, `edit`, and `compose` for all others.

    Audio is what `gpa.audio.load` takes; results last as long and are as loud as their sources. The same seed
    gives the same result. `recogniser` supplies transcripts: a GPA model, or any function from float32 (S,)
    at 16 kHz to text. `windows` says how long audio is cut, `progress` is told the steps done and all.
    """

    def __init__(
        self,
        model: SpeechOpModel,
        codec: KLCodec,
        *,
        asr_features: ASRFeatures | None = None,
        recogniser: Recogniser | None = None,
        windows: Windows | None = None,
        text_encoder: Callable[[Text], Text] | None = None,
    ) -> None:
        """Join loaded parts, CheckpointError if they do not fit; `text_encoder` if the config says byt5."""
        files.check_fit(model.config, codec, asr_features, "SpeechOp")
        self.model, self.codec, self.asr_features = model.eval(), codec, asr_features
        self.path: Path | None = None  # of the files
        self.recogniser, self.windows, self.text_encoder = recogniser, windows or Windows(), text_encoder
        self.precision = next(model.parameters()).dtype  # of the files, which saving keeps
        self.offline = False
        self.progress: Progress | None = None

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | os.PathLike,
        *,
        device: str | torch.device = "auto",
        revision: str | None = None,
        offline: bool = False,
        recogniser: Recogniser | None = None,
        threads: int | None = None,
    ) -> SpeechOp:
        """Load a directory, a repository id or a shipped name; it computes in float32.

        `threads` of the processor hold for the whole process: None lets the model's size decide, 0 leaves
        torch's number alone (docs/performance.md). Raises CheckpointError for missing, unexpected
        or mismatched parts.
        """
        folder = files.find(path_or_repo, revision, offline)
        chosen = pick_device(device)
        model, stored = files.load_model(folder, SpeechOpConfig.read(folder))
        processor.settle(processor.weights(model), threads, chosen)
        codec = files.load_codec(folder, chosen)
        asr_features = load_asr_features(model.config, files.SHIPPED, chosen, offline)
        files.check_fit(model.config, codec, asr_features, str(folder))
        loaded = cls(model.to(chosen), codec, asr_features=asr_features, recogniser=recogniser)
        loaded.path, loaded.precision, loaded.offline = folder, stored, offline
        return loaded

    def save_pretrained(
        self,
        path: str | os.PathLike,
        dtype: torch.dtype | None = None,
        *,
        codec_dtype: torch.dtype | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Write what `from_pretrained` loads; network and codec keep the precision of their files."""
        dtypes = (dtype or self.precision, codec_dtype)
        return files.write_checkpoint(path, self.model, self.codec, dtypes, overwrite)

    @property
    def config(self) -> SpeechOpConfig:
        """All numbers of the model."""
        return self.model.config

    @property
    def front(self) -> Front:
        """What makes audio and text ready for the network."""
        return Front(self.codec, self.config, self.windows, self.asr_features)

    @property
    def sample_rate(self) -> int:
        """Hz of everything made."""
        return self.codec.spec.sample_rate

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.model.into.weight.device

    # Restoration ------------------------------------------------------------------------------------------

    def enhance(
        self,
        audio: AudioLike,
        transcript: Transcript = None,
        **options: Unpack[EnhancementOptions],
    ) -> Sound:
        """Clean speech of a recording, following its transcript if given: a text, or "asr" to recognise it.

        A text for several windows is divided among them by speaking time, with a warning; a list gives each
        window its own. See `EnhancementOptions`.
        """
        request = self._request("enhance", options, EnhancementOptions)
        heard, guide = _heard(request, audio, "the recording", transcript, options.get("gamma"))
        voice = options.get("voice")
        sample = None if voice is None else request.front.sample(voice, "the voice")
        guided = sample is not None and any(guide.texts)
        before = request.words_of(sample, options.get("voice_text")) if sample and guided else ""
        prompt, keep = "sample" if sample else None, self.config.null.keep_prompt

        def plan(text: str | None) -> Plan:
            strengths = request.strengths(text, guide)
            return compose.enhancement("source", text, prompt, keep_prompt=keep, **strengths)

        return request.restore(plan, heard, guide, sample, before)

    def extract(
        self,
        mixture: AudioLike,
        voice: AudioLike,
        transcript: Transcript = None,
        **options: Unpack[RestorationOptions],
    ) -> Sound:
        """The speaker of `voice` out of a mixture; `transcript` is what that speaker says (see `enhance`).

        See `RestorationOptions`.
        """
        request = self._request("spk_sep", options, RestorationOptions)
        heard, guide = _heard(request, mixture, "the mixture", transcript, options.get("gamma"))
        sample = request.front.sample(voice, "the voice")

        def plan(text: str | None) -> Plan:
            return compose.extraction("source", "sample", text, **request.strengths(text, guide))

        return request.restore(plan, heard, guide, sample)

    def separate(
        self,
        mixture: AudioLike,
        transcript: Transcript = None,
        **options: Unpack[RestorationOptions],
    ) -> Separated:
        """Speech and background of a mixture, each made for itself; a transcript guides the speech.

        See `RestorationOptions`.
        """
        request = self._request("iso_fg", options, RestorationOptions)
        behind = self._request("iso_bg", options, RestorationOptions)  # refused before any work
        heard, guide = _heard(request, mixture, "the mixture", transcript, options.get("gamma"))

        def speech(text: str | None) -> Plan:
            return compose.isolation("source", text, **request.strengths(text, guide))

        background = request.single("iso_bg")
        return Separated(
            request.restore(speech, heard, guide), behind.restore(background, heard, guide.silenced())
        )

    def match(self, audio: AudioLike, acoustics: AudioLike, **options: Unpack[RunOptions]) -> Sound:
        """Clean speech as if recorded where and how `acoustics` was; see `RunOptions`."""
        request = self._request("match", options, RunOptions)
        heard, guide = _heard(request, audio, "the recording", None, None)
        sample = request.front.sample(acoustics, "the example of acoustics")
        return request.restore(request.single("match", "sample"), heard, guide, sample)

    # Speech from text -------------------------------------------------------------------------------------

    def tts(
        self,
        text: str,
        voice: AudioLike | None = None,
        **options: Unpack[SpeechOptions],
    ) -> Sound:
        """Speak a text, in the voice of a sample if there is one; a long text in parts with pauses between.

        How long it lasts follows from the sample's speaking rate, or the model's usual one. See
        `SpeechOptions`.
        """
        request, words = self._request("tts", options, SpeechOptions), spoken(text, "the text")
        sample = None if voice is None else request.front.sample(voice, "the voice")
        before = "" if sample is None else request.words_of(sample, options.get("voice_text"))
        return request.speak(words, sample, before)

    def edit(
        self,
        audio: AudioLike,
        span: Sequence[float],
        text: str,
        **options: Unpack[EditOptions],
    ) -> Sound:
        """Replace a span (begin, end in seconds) by speech of `text`, in the voice and manner around it.

        The network reads what is said around the span, too; the new length follows from its speaking rate.
        What lies outside keeps its samples, but for a crossfade of one latent frame. An empty span inserts.
        See `EditOptions`.
        """
        request, words = self._request("tts", options, EditOptions), spoken(text, "the text")
        around = options.get("before"), options.get("after")
        return request.edit(request.front.hear(audio, "the recording"), span, words, *around)

    # Anything ---------------------------------------------------------------------------------------------

    def compose(
        self,
        plan: Plan | Sequence[Guided | Average | Term],
        **options: Unpack[ComposeOptions],
    ) -> Sound:
        """Run a plan of `gpa.compose`, or its base and terms as a list, on what its names stand for.

        Sources last equally long, and so does the result, at the level of the first; without a source it
        lasts `seconds`. Texts of long audio are shared out as in `enhance`. UsageError for names that are not
        given. See `ComposeOptions`.
        """
        whole = plan if isinstance(plan, Plan) else _joined(plan)
        request = self._request("tts", options, ComposeOptions)
        named = (options.get("texts") or {}, options.get("sources") or {}, options.get("prompts") or {})
        return request.compose(whole, *named, options.get("seconds"))

    # What the tasks share ---------------------------------------------------------------------------------

    def load_recogniser(self, name: str | os.PathLike | None) -> Recogniser:
        """The recogniser of a name, None being the usual one; the family knows none, `gpa.SpeechOp` does."""
        raise UsageError(
            f"no recogniser {name or ''}: give recogniser=, a GPA model or a function from float32 (S,) at "
            "16 kHz to text; or give the text itself"
        )

    def _listener(self, asked: Recogniser | None) -> Recogniser:
        chosen = self.recogniser if asked is None else asked
        if chosen is None or isinstance(chosen, (str, os.PathLike)):
            chosen = self.recogniser = self.load_recogniser(chosen)
        if not callable(chosen) and not hasattr(chosen, "asr"):
            raise UsageError(f"recogniser={chosen!r}: give a GPA model, or a function from sound to text")
        return chosen

    def _request(self, task: str, options: Mapping[str, Any], group: type) -> Request:
        """Settings checked before any work is done; what cannot be `filtered` never is."""
        check_options(options, group)
        steps, seed = options.get("steps"), options.get("seed", 0)
        recogniser, filtered = options.get("recogniser"), options.get("filtered")
        check_tasks(Plan(Guided(task)), self.config)
        for name, value, least in (("steps", steps, 1), ("seed", seed, 0)):
            if value is not None and (type(value) is not int or value < least):
                raise UsageError(f"{name}={value!r}: a whole number from {least} on is needed")
        sampler: Sampler = self.config.sampler
        sampler = sampler if steps is None else dataclasses.replace(sampler, steps=steps)
        listener = partial(self._listener, recogniser)
        strong = bool(options.get("strong", False))
        usual = strong or ("filtered" in group.__annotations__ and task in self.config.filter.tasks)
        return Request(
            self.front,
            self.model,
            self._encode,
            listener,
            sampler,
            seed,
            self.progress,
            usual if filtered is None else filtered,
            strong or task != "enhance",
        )

    def _encode(self, text: str) -> Text:
        ids = text_ids([text], self.device)
        return ids if self.text_encoder is None else self.text_encoder(ids)


def _heard(
    request: Request, audio: AudioLike, name: str, transcript: Transcript, gamma: float | None
) -> tuple[Heard, Guide]:
    """A source and the text of its windows."""
    request.front.strength(gamma, transcript)  # refused before the work
    heard = request.front.hear(audio, name)
    return heard, request.front.guide(heard, transcript, gamma, request.listener)


def _joined(parts: Sequence[Guided | Average | Term]) -> Plan:
    """A base and terms as a plan."""
    base, terms = next(iter(parts), None), [part for part in parts[1:] if isinstance(part, Term)]
    if not isinstance(base, (Guided, Average)) or len(terms) != len(parts) - 1:
        raise UsageError("a plan is a base, Guided or Average, and then terms: see gpa.compose")
    return Plan(base, tuple(terms))
