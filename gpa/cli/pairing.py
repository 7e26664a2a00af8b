"""`gpa pairs`: texts become a folder of pairs (`gpa.finetune.takes`)."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from gpa.cli import commands


def run(args: argparse.Namespace) -> None:
    """Speak, judge, write the folder; DataError, and no folder, where no text has a pair.

    A run that was stopped goes on by the same command: DIR.unfinished.jsonl holds what it had found.
    """
    from gpa import disk
    from gpa.data import preferences
    from gpa.errors import DataError, UsageError
    from gpa.evals.judges.all_judges import OPTIONAL
    from gpa.finetune import comparison, takes
    from gpa.models.gpa.checkpoint_gpa import network_fingerprint

    texts = list(dict.fromkeys(text for path in args.texts for text in _lines(path)))
    if not texts:
        raise UsageError(f"{', '.join(map(str, args.texts))}: no text to speak")
    given = commands.sampling(args)
    asked = preferences.TakeArgs(args.takes, args.margin, given.get("seed") or 0)
    with disk.written_whole(args.output) as folder:
        model = commands.load(args)
        judges = comparison.choose_judges(args.judge, model, without=OPTIONAL)
        prints = {**model.processor.fingerprints(), "network": network_fingerprint(model.path)}
        judge = judges.words.about.name
        question = {"fingerprints": prints, "judge": judge, "asked": asdict(asked), "given": repr(given)}
        path = args.output.with_name(f"{args.output.name}.unfinished.jsonl")
        journal = preferences.Journal(path, question | {"texts": texts})
        if journal.rows:
            commands.say(f"going on: {len(journal.rows)} texts are in {journal.path}")
        known = {row.id for row in journal.rows}
        for row in takes.pairs(model, judges, texts, asked, {**given}, known):
            journal.add(row)
        made = journal.rows
        pairs = sorted((one for one in made if isinstance(one, preferences.Pair)), key=lambda pair: pair.id)
        rejected = [one for one in made if isinstance(one, preferences.Rejected)]
        reasons = Counter(one.reason.partition(":")[0] for one in rejected)
        for reason, count in reasons.most_common():
            commands.say(f"{count} rejected: {reason}")
        if not pairs:
            journal.path.unlink()
            raise DataError("no text has a better and a worse take: more --takes, or other texts, may")
        about = preferences.About(str(args.model), prints, judge, asked, len(pairs), len(rejected))
        preferences.write(folder, pairs, rejected, about)
    journal.path.unlink()
    held = sum(pair.split == "dev" for pair in pairs)
    commands.say(f"{len(pairs)} pairs, {held} of them held out, of {len(made)} texts; judged by {judge}")
    print(args.output)


def _lines(path: Path) -> list[str]:
    """The texts of a file, without those that are empty."""
    from gpa.text.wordlist import read_text

    lines = read_text(path).splitlines()
    texts = (line.rpartition("\t")[2] if path.suffix == ".tsv" else line for line in lines)
    return [text.strip() for text in texts if text.strip()]
