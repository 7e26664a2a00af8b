"""`python -m gpa.lab.segments TOKENS -o OUT`: a token folder with the same clips and with pieces of them.

Read speech comes in long sentences, a model of this size hears and says a few seconds at once. So clips are
also cut where their reader pauses, and each stretch between two pauses is a row of its own: no word is new,
what surrounds it is.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpa.data import tokens
from gpa.data.alignment import letters_of
from gpa.errors import CheckpointError, UsageError, exit_code

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


def pieces(
    row: Mapping[str, Any], rng: np.random.Generator, least: int, most: int, count: int
) -> Iterator[dict[str, Any]]:
    """Up to `count` different stretches of a row between two pauses, of `least` to `most` ids."""
    cuts = pauses(row["text"], row["letters"], len(row["semantic"]))
    whole = (cuts[0], cuts[-1])
    spans = [(a, b) for n, a in enumerate(cuts) for b in cuts[n + 1 :] if least <= b[1] - a[1] <= most]
    spans = [span for span in spans if span != whole and letters_of(_words(row, *span))]
    for n in sorted(rng.permutation(len(spans))[:count]):
        yield _piece(row, *spans[n])


def _words(row: Mapping[str, Any], begin: tuple[int, int], end: tuple[int, int]) -> str:
    return " ".join(row["text"].split()[begin[0] : end[0]])


def _piece(row: Mapping[str, Any], begin: tuple[int, int], end: tuple[int, int]) -> dict[str, Any]:
    before, ids = row["text"].split()[: begin[0]], slice(begin[1], end[1])
    text = _words(row, begin, end)
    skipped = sum(len(word) + 1 for word in letters_of(" ".join(before)).split())
    first = row["letters"][skipped : skipped + len(letters_of(text))]
    cut = {
        "id": f"{row['id']}@{begin[1]}-{end[1]}",
        "text": text,
        "semantic": row["semantic"][ids],
        "letters": [max(0, at - begin[1]) for at in first],
    }
    if "copies" in row:
        cut["copies"] = [copy[ids] for copy in row["copies"]]
    return {**row, **cut}


def write(source: Path, out: Path, least: int, most: int, count: int, seed: int = 0) -> int:
    """Write the folder; the number of pieces. UsageError for bounds that no piece can meet,
    or the folder itself as `out`; CheckpointError for one without tokens.jsonl.
    """
    if not 0 < least <= most or count < 1:
        raise UsageError(f"pieces of {least} to {most} ids, {count} a clip: nothing can be cut like that")
    if out.resolve() == source.resolve():
        raise UsageError(f"{out}: give the pieces a folder of their own")
    rows = tokens.read(source)
    if not (source / "tokens.jsonl").is_file():
        raise CheckpointError(f"{source}: a prepared folder has no letters' times, pieces need those")
    out.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.name != "tokens.jsonl":
            shutil.copy(path, out / path.name)
    partial, made = out / "tokens.jsonl.partial", 0
    with partial.open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            file.write(json.dumps(row) + "\n")
            if row.get("letters") and row["split"].startswith("train"):
                for piece in pieces(row, np.random.default_rng((seed, number)), least, most, count):
                    file.write(json.dumps(piece) + "\n")
                    made += 1
    partial.replace(out / "tokens.jsonl")
    return made


def main(argv: list[str] | None = None) -> None:
    """`python -m gpa.lab.segments TOKENS -o OUT`."""
    parser = argparse.ArgumentParser(prog="python -m gpa.lab.segments", description=__doc__)
    parser.add_argument("tokens", type=Path, help="folder of gpa.data.tokens")
    parser.add_argument("--least", type=int, default=30, help="ids of the shortest piece")
    parser.add_argument("--most", type=int, default=200, help="ids of the longest piece")
    parser.add_argument("--count", type=int, default=4, help="pieces of one clip, at most")
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args(argv)
    made = write(args.tokens, args.out, args.least, args.most, args.count)
    log.info("%d pieces beside the clips: %s", made, args.out)


if __name__ == "__main__":
    raise SystemExit(exit_code(main, log))
