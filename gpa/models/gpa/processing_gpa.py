"""Between people's inputs and the network's ids: voices, audio and text to prompts, limits and budgets.

Holds codec, tokenizers, id space and prompt format, all checked against each other. Knows no network: of the
language model only the size of its vocabulary and of its context.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpa import audio as sound
from gpa import hub
from gpa.codec.reference import check_reference
from gpa.engine.request import Beams, Rules, Sampling
from gpa.errors import CheckpointError, PromptError, UsageError
from gpa.models.gpa.activity_gpa import PAUSE, Segmenter
from gpa.models.gpa.budgets_gpa import Budgets, budget
from gpa.models.gpa.checkpoint_gpa import GLM, read_text_files
from gpa.models.gpa.outputs_gpa import Voice, VoiceLike
from gpa.models.gpa.segmentation_gpa import (
    Passage,
    passages,
    pause_after,
    split_audio,
    split_text,
    with_rests,
)
from gpa.prompt.formats import get_format
from gpa.prompt.tasks import ASR, SPEECH_INPUTS, TTS, VC, Parsed, Task
from gpa.prompt.vocab import Vocab
from gpa.text import lexicon, ngrams, wordlist
from gpa.text import pronunciations as pronounce
from gpa.text.lexicon import Lexicon
from gpa.text.markup import pauses, without_markup
from gpa.text.ngrams import NGrams, Wording
from gpa.text.normaliser import normalise_text
from gpa.text.pronunciations import Pronunciations, Verbatim
from gpa.text.scripts import Sayable
from gpa.text.spelling import Spelling
from gpa.text.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from gpa.audio import AudioLike
    from gpa.codec.base import LinguisticTokenizer, TokenCodec
    from gpa.models.gpa.configuration_gpa import GPAConfig
    from gpa.models.gpa.options_gpa import SamplingOptions

logger = logging.getLogger(__name__)


class GPAProcessor(Budgets):
    """Inputs to ids and ids to outputs, for one checkpoint."""

    def __init__(
        self,
        tokenizer: str | os.PathLike,
        codec: TokenCodec,
        glm: LinguisticTokenizer | None,
        config: GPAConfig,
        *,
        vocab_size: int,
        context: int,
    ) -> None:
        """`tokenizer` is a directory; CheckpointError if the parts do not belong together."""
        folder = Path(tokenizer)
        self.codec, self.glm, self.config, self.context = codec, glm, config, context
        self.text_files = read_text_files(folder)
        self.text_tokenizer = TextTokenizer.from_file(folder)
        self.vocab = Vocab.from_file(
            folder, glm_size=glm.spec.codebook_size if glm else None, size=vocab_size
        )
        format = get_format(config.format, self.vocab, self.text_tokenizer, config.tasks)
        super().__init__(format, codec.spec.code_rate)
        self.voices: dict[str, Voice] = {}
        self._added: dict[tuple[str, ...], Wording] = {}  # `Wording` with the words last added
        self._tokenizer_fingerprint = hub.fingerprint_files(folder / "tokenizer.json")
        self._check_sizes()

    def _check_sizes(self) -> None:
        spec, vocab = self.codec.spec, self.vocab
        pairs = {
            "codebooks": (vocab.n_codebooks, spec.n_codebooks),
            "semantic codes": (vocab.semantic.size, spec.pattern.n_ids),
            "global codes": (vocab.global_.size if vocab.global_ else 0, spec.global_size),
        }
        for what, (ids, codes) in pairs.items():
            if ids != codes:
                raise CheckpointError(
                    f"the vocabulary has {ids} {what}, the codec {codes}: they do not match"
                )
        if self.config.format == "published" and self.glm is None:
            raise CheckpointError(f"a published checkpoint needs its {GLM}/ folder, which is not there")

    def text_fingerprints(self) -> dict[str, str]:
        """SHA-256 of the text tokenizer and of the id space."""
        return {"tokenizer": self._tokenizer_fingerprint, "vocabulary": self.vocab.fingerprint()}

    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of every part that has to match the language model."""
        found = self.text_fingerprints() | self.codec.fingerprints()
        return found | ({"glm": self.glm.fingerprint()} if self.glm else {})

    # Voices -----------------------------------------------------------------------------------------------

    def voice(self, reference: AudioLike, name: str = "", about: Mapping[str, str] | None = None) -> Voice:
        """The voice of a recording; see `GPA.voice`."""
        wav = sound.load(reference, self.codec.spec.sample_rate)
        check_reference(wav, self.codec.spec.sample_rate, name=_label(reference, "the reference"))
        return self.codec.voice((wav, self.codec.spec.sample_rate), name, about)

    def resolve_voice(self, voice: VoiceLike) -> Voice:
        """A Voice from itself, a shipped name, a JSON path, or any audio; the first shipped one for None."""
        if voice is None and self.voices:
            return self.voices[min(self.voices)]
        if isinstance(voice, Voice):
            return self.codec.checked(voice)
        if isinstance(voice, str) and voice in self.voices:
            return self.voices[voice]
        if isinstance(voice, (str, os.PathLike)):
            path = Path(voice)
            if not path.exists() or path.is_dir():
                raise UsageError(f"no voice and no file {str(voice)!r}: {self._voice_help()}")
            if path.suffix.lower() == ".json":
                return self.codec.checked(Voice.load(path))
        if voice is None:
            raise UsageError(f"a voice is needed: {self._voice_help()}")
        return self.voice(voice)

    def _voice_help(self) -> str:
        if not self.voices:
            return "this model ships no voices; give a recording of 3 to 6 s, or a JSON made with  gpa voice"
        return f"choose {', '.join(sorted(self.voices))}, or give a recording or a voice JSON"

    # Prompts ----------------------------------------------------------------------------------------------

    def prompt(self, task: str, given: Mapping[str, Any], instruction: str | None = None) -> list[int]:
        """The ids for named inputs, None where not given; see `GPA.prompt`."""
        asked = self.format.task(task)
        for name, value in given.items():
            if (value is not None) != (name in asked.inputs):
                state = "is missing" if value is None else "is not taken"
                raise PromptError(f"{asked.name}: {name} {state}; it takes {', '.join(asked.inputs)}")
        voice = given.get("voice")
        heard = next((given[name] for name in SPEECH_INPUTS if name in asked.inputs), None)
        codes = None if voice is None else self.resolve_voice(voice).codes
        wav = None if heard is None else sound.load(heard, self.codec.spec.sample_rate)
        return self.build(asked.name, wav=wav, text=given.get("text"), voice=codes, instruction=instruction)

    def build(
        self,
        task: str,
        *,
        wav: np.ndarray | None = None,
        codes: np.ndarray | None = None,
        text: str | None = None,
        voice: Sequence[int] | None = None,
        instruction: str | None = None,
    ) -> list[int]:
        """The prompt for a waveform (S,), a text, a voice's codes; PromptError if it exceeds the context.

        `codes` are those of the waveform, where they are known. A text has its words' sounds where the
        checkpoint knows them.
        """
        semantic = glm = None
        text = None if text is None else self.pronounced(_text(text))
        if wav is not None:
            clip = (wav, self.codec.spec.sample_rate)
            semantic = (self.codec.codes(clip) if codes is None else codes).tolist()
            if self.glm and "glm" in self.format.layouts[task].blocks:
                glm = self.glm.tokens(clip).tolist()
        ids = self.format.build(
            task, text=text, semantic=semantic, global_=voice, glm=glm, instruction=instruction
        )
        if len(ids) >= self.context:
            raise PromptError(
                f"the {task} prompt has {len(ids)} ids, the model's context {self.context}: shorten the input"
            )
        return ids

    def pronounced(self, text: str, known: Pronunciations | None = None) -> str:
        """A text as speech is asked for: by the sounds of a dictionary, the checkpoint's own by default."""
        known = self.pronunciations if known is None else known
        if not known or isinstance(text, Verbatim):
            return text
        return known.respelt(normalise_text(text)).text

    def dictionary(self, more: Mapping[str, str] | None = None) -> Pronunciations:
        """The checkpoint's dictionary with somebody's own words; UsageError if it has none."""
        if more and not self.pronunciations:
            raise UsageError(f"pronunciations: this checkpoint has no {pronounce.FILE} to add them to")
        return self.pronunciations.with_words(more) if more else self.pronunciations

    @cached_property
    def pronunciations(self) -> Pronunciations:
        """How words sound, for speech; nothing for most checkpoints."""
        content = self.text_files.get(pronounce.FILE)
        return Pronunciations.parse(content, pronounce.FILE) if content else Pronunciations({})

    def take_pronunciations(self, path: Path) -> None:
        """Take a file as the checkpoint's dictionary; CheckpointError for a file that is none."""
        self._take(path, pronounce.FILE, Pronunciations.parse)

    def search(self, width: int | None = None, words: Iterable[str] = ()) -> Beams:
        """How a transcript is searched for: the checkpoint's way, with another width or more words."""
        search, more = self.config.beams, (words,) if isinstance(words, str) else tuple(words)
        search = search if width is None else replace(search, width=width)
        if more and not self.lexicon:
            raise UsageError(f"words: this checkpoint has no {lexicon.FILE} that they could be added to")
        if more and search.width == 1:
            raise UsageError("words: they choose between spellings, so at least 2 beams are needed")
        if search.width == 1 or not self.lexicon:
            return Beams(search.width)
        wording = self._wording_with(more) if more else self.wording
        return Beams(search.width, Spelling(wording, self.text_tokenizer.spellings, search))

    def _wording_with(self, more: tuple[str, ...]) -> Wording:
        """With somebody's words as well; kept, since many recordings are asked with the same."""
        found = self._added.get(more)
        if found is None:  # another thread may put its own words there meanwhile
            found = Wording(self.lexicon.with_words(more), self.ngrams)
            self._added = {more: found}
        return found

    @cached_property
    def lexicon(self) -> Lexicon:
        """The words of the checkpoint, none for most; with them those whose sound it knows."""
        said = _lexicon(self.text_files.get(lexicon.FILE, b""), lexicon.FILE)
        return Lexicon(said.counts, self.pronunciations.phones) if said else said

    def take_words(self, path: Path) -> None:
        """Take a list as the words of the checkpoint; CheckpointError for a file that is none."""
        self._take(path, lexicon.FILE, _lexicon)

    @cached_property
    def ngrams(self) -> NGrams:
        """Which words follow which, for recognition; nothing for most checkpoints."""
        content = self.text_files.get(ngrams.FILE)
        return NGrams.parse(content, ngrams.FILE) if content else NGrams()

    def take_ngrams(self, path: Path) -> None:
        """Take a file as the checkpoint's; CheckpointError for a file that is none, or without words.txt."""
        if not self.lexicon:
            raise CheckpointError(f"{path}: n-grams join a list of words, {lexicon.FILE}: it is needed, too")
        self._take(path, ngrams.FILE, NGrams.parse)

    @cached_property
    def wording(self) -> Wording:
        """What recognition knows of words, and of which follow which."""
        return Wording(self.lexicon, self.ngrams)

    def _take(self, path: Path, name: str, parse: Callable[[bytes, str], Any]) -> None:
        """Take a file that `parse` accepts as one of the text side; what was made of these is made anew."""
        content = wordlist.read(path)
        parse(content, str(path))
        self.text_files[name] = content
        self._added = {}
        for made in ("lexicon", "ngrams", "pronunciations", "wording"):
            vars(self).pop(made, None)

    def sound(self, codes: np.ndarray, voice: Voice) -> np.ndarray:
        """The waveform (S,) of codes (L,) in one stream, in a voice."""
        return self.codec.decode(self.codec.tokens(codes), voice)

    def hear(self, audio: AudioLike, name: str) -> np.ndarray:
        """A waveform (S,) to transcribe or convert; AudioWarning if it is silent or clipped."""
        return np.concatenate(list(self.listened(audio, name)))

    def listened(self, audio: AudioLike, name: str) -> Iterator[np.ndarray]:
        """The same bit by bit, for sound of any length; the warning comes at the end, of the loudest 10 s."""
        loudest, peak = None, -1.0
        for block in sound.blocks(audio, self.codec.spec.sample_rate):
            if (level := float(np.abs(block).max(initial=0))) > peak:
                loudest, peak = block, level
            yield block
        if loudest is not None and len(loudest):
            sound.check_speech(loudest, self.codec.spec.sample_rate, name=_label(audio, name), stacklevel=4)

    def sampling(self, task: str, options: SamplingOptions) -> tuple[Sampling, int, int | None]:
        """How a task's ids are drawn, the seed, and the most ids if that was asked for."""
        names = ("temperature", "top_k", "top_p", "repetition_penalty")
        changes = {name: options.get(name) for name in names}
        sampling = self.config.sampling[self.format.task(task).name].updated(**changes)  # type: ignore[arg-type]
        return sampling, options.get("seed") or 0, options.get("max_new_tokens")

    def takes(self, options: SamplingOptions) -> int:
        """How many takes of speech unless asked: the checkpoint's, or 1 where all would be the same."""
        return self.config.takes if self.sampling(TTS.name, options)[0].temperature > 0 else 1

    # Limits and budgets -----------------------------------------------------------------------------------

    def passages(
        self, text: str, voice: Sequence[int], known: Pronunciations | None = None
    ) -> Iterator[Passage]:
        """Parts of a text that one pass can speak by a dictionary, made as they are asked for.

        Markup and invisible characters are not said, `[pause 0.5s]` is a rest of that length, and letters
        that the model has not learnt are left out with a TextWarning that names them. PromptError, at the
        first, if there is nothing to say; at a pause that is none.
        """
        instruct = self.config.format == "instruct"
        sayable = Sayable(*(normalise_text, self.text_tokenizer.alphabet) if instruct else (str, None))
        plan = partial(passages, limit=self.config.max_text_chars, spoken=sayable)
        empty = True
        for passage in with_rests(*pauses(without_markup(_text(text))), plan):
            fitting = self._fit(passage.text, voice, known)
            begun = replace(passage, after=0.0)
            for part in fitting[:-1]:
                yield replace(begun, text=part, pause=pause_after(part))
                begun = replace(begun, before=None)
            yield replace(passage, text=fitting[-1], before=begun.before)
            sayable.warn()
            empty = False
        if empty:
            raise PromptError(f"there is nothing to say in {text!r:.200}{sayable.reason()}")
        sayable.warn()

    def _fit(self, text: str, voice: Sequence[int], known: Pronunciations | None) -> list[str]:
        """The text in pieces whose prompt and speech fit the context."""
        said = self.pronounced(text, known)
        needed = len(self.format.build(TTS.name, text=said, global_=voice)) + self.spoken_ids(text)[1]
        if needed <= self.context:
            return [text]
        halves = split_text(text, len(text) // 2 + 1)
        if len(text) < 16 or len(halves) < 2:
            raise PromptError(
                f"speaking {text!r} may take {needed} ids, the model's context is {self.context}"
            )
        return [piece for half in halves for piece in self._fit(half, voice, known)]

    def audio_parts(self, wav: np.ndarray, task: str) -> list[np.ndarray]:
        """A waveform in parts that one pass can take."""
        return split_audio(wav, self.codec.spec.sample_rate, self.longest_audio(task))

    def segmenter(self, task: str = ASR.name, pause: float = PAUSE) -> Segmenter:
        """What cuts sound of any length into such parts, in pauses if there are any."""
        spec = self.codec.spec
        return Segmenter(spec.sample_rate, self.longest_audio(task), spec.hop_length, pause)

    def longest_audio(self, task: str) -> float:
        """Seconds that one pass can take: the model's limit, or less if the context is short."""
        rate = self.codec.spec.code_rate
        rates = {"semantic": rate, "glm": self.glm.spec.frame_rate if self.glm else 0.0}
        asked = self.format.task(task)
        made = asked.length.most * (1 if asked.writes else rate) if asked.length else 0
        per_second = sum(rates.get(kind, 0) for kind in self.format.layouts[asked.name].blocks) + made
        # speaker, slack of the budget, delimiters and instruction
        fixed = self.codec.spec.voice_size + rate + 48
        seconds = min(self.config.max_audio_seconds, (self.context - fixed) / per_second)
        if seconds < 1:
            raise PromptError(f"the model's context of {self.context} ids does not hold one second of audio")
        return seconds

    def conversion_rules(self, ids: Sequence[int], max_new_tokens: int | None = None) -> Rules:
        """What a conversion may look like: as long as its source where the model keeps timing."""
        parsed = self.format.parse(ids)
        task, n_source = self._task_of(parsed), len(parsed.semantic or ())
        timed = self.config.keeps_timing and max_new_tokens is None
        least, most = self.span(task, n_source)
        least, most = (int(0.9 * n_source), int(1.05 * n_source) + 5) if timed else (least, most)
        most = budget(max_new_tokens, most)
        return self.rules(task.name, most, least, loop=not self.is_monotonous(ids), closed=timed)

    def budget_of(self, ids: Sequence[int]) -> int:
        """A length budget read off a prompt; the rest of the context for one of no usual form."""
        room = max(1, self.context - len(ids))
        try:
            parsed = self.format.parse(ids)
        except PromptError:
            return room
        if parsed.semantic:
            return min(room, self.span(self._task_of(parsed), len(parsed.semantic))[1])
        return min(room, self.spoken_ids(parsed.text)[1]) if parsed.text else room

    def _task_of(self, parsed: Parsed) -> Task:
        """The task of a prompt with speech; of a composition the one that has its kind of output."""
        writes = parsed.output == "content"
        own = self.format.tasks.get(parsed.task or "")
        return own if own and own.length and own.writes == writes else ASR if writes else VC


def _lexicon(content: bytes, where: str) -> Lexicon:
    return Lexicon.parse(content.decode(errors="replace"), where)


def _text(given: str) -> str:
    if not isinstance(given, str):
        raise PromptError(f"{type(given).__name__} is no text: give a str")
    return given


def _label(audio: AudioLike, otherwise: str) -> str:
    return str(audio) if isinstance(audio, (str, os.PathLike)) else otherwise
