"""Sentences read aloud by a synthesiser that is installed: sound and a manifest, for text coverage.

A few hours of recordings hold a few thousand words. How the rest are pronounced is known to programs with a
lexicon and letter-to-sound rules; what they say sounds like nobody, so the rows are for training beside
recordings, marked `train-synthetic`. The program is run, never shipped.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from gpa import audio, disk
from gpa.errors import GenerationError, UsageError
from gpa.evals.programs import call
from gpa.lab.word_list import texts_in
from gpa.text.lexicon import words_of
from gpa.text.normaliser import normalise_text

VOICES = ("slt", "rms", "awb", "kal16")  # Flite's of 16 kHz
STRETCH = (0.85, 1.15)  # of durations
RATE = 16000  # Hz, of these voices
HELD = 10  # every tenth sentence, by its checksum, is never spoken: there must be unseen ones left
UNSPOKEN = re.compile(r"\d|[A-Z]{3}|\[")  # numbers, headings, notes
ENDS = re.compile(r"(?<=[.!?;])[\"')_]*\s+")
WORDS = (3, 22)  # of a sentence


def sentences(text: str) -> Iterator[str]:
    """Sentences of running text, and their halves at semicolons, without digits and capitals' shouting."""
    for paragraph in re.split(r"\n\s*\n", text):
        for sentence in ENDS.split(" ".join(paragraph.replace("_", "").split())):
            if WORDS[0] <= len(sentence.split()) <= WORDS[1] and not UNSPOKEN.search(sentence):
                yield normalise_text(sentence)


def listed(path: Path) -> Iterator[str]:
    """Sentences of a list (.tsv, the last column) or of running text, normalised."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".tsv":
        yield from sentences(text)
        return
    for line in text.splitlines():
        sentence = line.rpartition("\t")[2]
        if not UNSPOKEN.search(sentence):
            yield normalise_text(sentence)


def letters(text: str) -> str:
    """What two spellings of one sentence have in common."""
    return re.sub(r"[^a-z]", "", text.lower())


def choose(texts: Iterable[str], words: tuple[int, int], held: Iterable[str]) -> list[str]:
    """Different texts of so many words, without those `held` back and without every tenth."""
    kept_back = set(map(letters, held))
    fresh: dict[str, str] = {}
    for text in texts:
        key = letters(text)
        if (
            words[0] <= len(text.split()) <= words[1]
            and key not in kept_back
            and zlib.crc32(key.encode()) % HELD
        ):
            fresh.setdefault(key, text)
    return list(fresh.values())


def covering(texts: Sequence[str], repeats: int, said: Iterable[str], seed: int) -> list[str]:
    """Texts, in a drawn order, that have a word which fewer than `repeats` of those before have."""
    counts = Counter(word for text in said for word in set(words_of(text)))
    kept = []
    for n in np.random.default_rng(seed).permutation(len(texts)):
        words = set(words_of(texts[n]))
        if any(counts[word] < repeats for word in words):
            kept.append(texts[n])
            counts.update(words)
    return kept


def speak(text: str, voice: str, stretch: float, path: Path) -> None:
    """Flite's reading of a text to `path`, a WAV of 16 kHz. GenerationError if it fails."""
    command = ("flite", "-voice", voice, "--setf", f"duration_stretch={stretch:.3f}", "-t", text + " ", "-o")
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    try:
        call(*command, str(partial))
    except GenerationError as error:
        raise GenerationError(f"{error}; at {text!r}") from error
    if not partial.is_file():
        raise GenerationError(f"flite said nothing of {text!r}")
    partial.replace(path)


def rows(texts: Sequence[str], out: Path, seed: int, workers: int) -> Iterator[dict[str, Any]]:
    """A manifest row for each text; sound that an earlier run left is kept."""
    rng = np.random.default_rng(seed)
    drawn = [(VOICES[int(rng.integers(len(VOICES)))], float(rng.uniform(*STRETCH))) for _ in texts]

    def row(number: int) -> dict[str, Any]:
        text, (voice, stretch) = texts[number], drawn[number]
        name = f"flite-{zlib.crc32(f'{seed} {voice} {text}'.encode()):08x}"
        path = out / f"{name}.wav"
        if not path.is_file():
            speak(text, voice, stretch, path)
        seconds = len(audio.load(path, RATE)) / RATE
        who = {"corpus": "flite-synthetic", "speaker": f"flite-{voice}", "licence": "BSD-like"}
        said = {"text": text, "duration": round(seconds, 3), "split": "train-synthetic"}
        return {"id": name, "path": path.name, **who, **said}

    with ThreadPoolExecutor(workers) as pool:
        yield from tqdm(pool.map(row, range(len(texts))), total=len(texts), unit="clip", dynamic_ncols=True)


def main(argv: list[str] | None = None) -> None:
    """`gpa lab synthesis TEXT ... --without JSONL ... -o DIR`."""
    parser = argparse.ArgumentParser(prog="gpa lab synthesis", description=__doc__)
    parser.add_argument("text", type=Path, nargs="+", help="sentence lists (.tsv) or running text")
    parser.add_argument("--without", type=Path, nargs="*", default=[], metavar="JSONL",
        help="manifests, whose held-out texts are not spoken, or items of an evaluation")  # fmt: skip
    parser.add_argument("--words", type=int, nargs=2, default=(3, 16), metavar="N", help="least, most")
    parser.add_argument("--repeats", type=int, default=0, metavar="N",
        help="only sentences with a word that fewer than N before them have")  # fmt: skip
    parser.add_argument("--said", type=Path, nargs="*", default=[], metavar="JSONL",
        help="manifests whose training texts count as before them")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args(argv)
    if not shutil.which("flite"):
        raise UsageError("flite is not installed: apt-get install flite")
    held = texts_in(args.without, training=False)
    texts = choose((s for path in args.text for s in listed(path)), tuple(args.words), held)
    if args.repeats:
        texts = covering(texts, args.repeats, texts_in(args.said, training=True), args.seed)
    if not texts:
        raise UsageError("no sentence of that length is left to speak")
    args.out.mkdir(parents=True, exist_ok=True)
    made = list(rows(texts, args.out, args.seed, args.workers))
    disk.write_text(args.out / "manifest.jsonl", "".join(json.dumps(row) + "\n" for row in made))
    print(f"{len(made)} sentences, {sum(row['duration'] for row in made) / 3600:.1f} h")
