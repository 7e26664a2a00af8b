"""`gpa lab segments TOKENS -o OUT`: a token folder with the same clips and with segments of them.

Read speech comes in long sentences, a model of this size hears and says a few seconds at once. So clips are
also cut where their reader pauses, and each stretch between two pauses is a row of its own: no word is new,
what surrounds it is.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpa.data import sequences
from gpa.data.token_folder import TokenSet
from gpa.errors import UsageError
from gpa.text.letters import letters_of
from gpa.text.tokenizer import copy_tokenizer

log = logging.getLogger(__name__)
PAUSE = 7  # ids between the last letter of a word and the first of the next; three in flowing speech at 25/s


def pauses(text: str, first: list[int], frames: int) -> list[tuple[int, int]]:
    """Where a clip can be cut: (words of `text` before the cut, ids before it), both ends of it included.

    `first` is the id at which each letter of `letters_of(text)` begins.
    """
    spelled = letters_of(text).split()
    ends = np.cumsum([len(word) + 1 for word in spelled])  # letters before word n + 1
    cuts, done = [(0, 0)], 0
    words = text.split()
    for n, word in enumerate(words[:-1], 1):
        own = len(letters_of(word).split())
        done += own
        if own and done < len(spelled):
            last, following = first[ends[done - 1] - 2], first[ends[done - 1]]
            if following - last >= PAUSE:
                cuts.append((n, (last + following) // 2))
    return [*cuts, (len(words), frames)]


def segments(
    row: Mapping[str, Any], rng: np.random.Generator, least: int, most: int, count: int
) -> Iterator[dict[str, Any]]:
    """Up to `count` different stretches of a row between two pauses, of `least` to `most` ids."""
    cuts = pauses(row["text"], row["letters"], len(row["semantic"]))
    uncut = (cuts[0], cuts[-1])
    spans = [(a, b) for n, a in enumerate(cuts) for b in cuts[n + 1 :] if least <= b[1] - a[1] <= most]
    spans = [span for span in spans if span != uncut and letters_of(_words(row, *span))]
    for n in sorted(rng.permutation(len(spans))[:count]):
        yield _segment(row, *spans[n])


def _words(row: Mapping[str, Any], begin: tuple[int, int], end: tuple[int, int]) -> str:
    return " ".join(row["text"].split()[begin[0] : end[0]])


def _segment(row: Mapping[str, Any], begin: tuple[int, int], end: tuple[int, int]) -> dict[str, Any]:
    before, ids = row["text"].split()[: begin[0]], slice(begin[1], end[1])
    text = _words(row, begin, end)
    skipped = sum(len(word) + 1 for word in letters_of(" ".join(before)).split())
    first = row["letters"][skipped : skipped + len(letters_of(text))]
    silence = row.get("silence", ())
    inside = len(silence) and begin[1] <= silence[0] and silence[1] <= end[1]
    cut = {
        "id": f"{row['id']}@{begin[1]}-{end[1]}",
        "text": text,
        "semantic": row["semantic"][ids],
        "letters": [max(0, at - begin[1]) for at in first],
        "copies": [copy[ids] for copy in row.get("copies", ())],
        "seconds": row["seconds"] * len(row["semantic"][ids]) / len(row["semantic"]),
        "silence": [at - begin[1] for at in silence] if inside else [],
    }
    return {**row, **cut}


def write(source: Path, out: Path, least: int, most: int, count: int, seed: int = 0) -> int:
    """Write the folder; the number of segments. UsageError for bounds that no segment can meet, the folder
    itself as `out`, or a folder without letters' times.
    """
    if not 0 < least <= most or count < 1:
        raise UsageError(f"segments of {least} to {most} ids, {count} a clip: nothing can be cut like that")
    if out.resolve() == source.resolve():
        raise UsageError(f"{out}: give the segments a folder of their own")
    clips = TokenSet.open(source)
    if "letters" not in clips.data.column_names:
        raise UsageError(f"{source}: has no letters' times, segments need those: gpa prepare --align")
    out.mkdir(parents=True, exist_ok=True)
    copy_tokenizer(source, out)

    def rows() -> Iterator[Mapping[str, Any]]:
        for number, row in enumerate(clips):
            yield row
            if len(row["letters"]) and row["split"].startswith("train"):
                for cut in segments(row, np.random.default_rng((seed, number)), least, most, count):
                    yield cut | {name: np.array(cut[name], np.int32) for name in ("letters", "silence")}

    return sequences.write(out, rows(), clips.about) - len(clips)


def main(argv: list[str] | None = None) -> None:
    """`gpa lab segments TOKENS -o OUT`."""
    parser = argparse.ArgumentParser(prog="gpa lab segments", description=__doc__)
    parser.add_argument("tokens", type=Path, help="folder of gpa prepare --align")
    parser.add_argument("--least", type=int, default=30, help="ids of the shortest segment")
    parser.add_argument("--most", type=int, default=200, help="ids of the longest segment")
    parser.add_argument("--count", type=int, default=4, help="segments of one clip, at most")
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args(argv)
    made = write(args.tokens, args.out, args.least, args.most, args.count)
    log.info("%d segments beside the clips: %s", made, args.out)
