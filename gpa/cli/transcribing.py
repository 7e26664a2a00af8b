"""`gpa asr`: files to transcripts in the formats that people's tools take, on standard output or in files."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpa.audio.opening import readable_name
from gpa.cli.commands import fields, load, print_json, sampling, say, sound_of, without_speech
from gpa.errors import GPAError, UsageError
from gpa.models.gpa.subtitles_gpa import FORMATS, SUFFIXES, verbose
from gpa.text.wordlist import read_text

if TYPE_CHECKING:
    from gpa.models.gpa.outputs_gpa import Transcript

SAID = 1.0  # seconds without speech that are worth a remark


def asr(args: argparse.Namespace) -> int:
    """Write transcripts; a bad file is reported, the others are done, and its exit code is returned."""
    places = outputs(args)
    words = read_text(args.words).split("\n") if args.words else []
    model = load(args)
    failed = 0
    for path, place in _progress(list(zip(args.audio, places, strict=True))):
        try:
            began = time.perf_counter()
            given = {"beams": args.beams, "words": words, **sampling(args)}
            if args.stream:
                _streamed(model, path, given)
                continue
            transcript = model.asr(sound_of(path), **given)
            _deliver(args, path, place, transcript, time.perf_counter() - began)
        except GPAError as error:
            if len(args.audio) == 1:
                raise
            failed = failed or error.exit_code
            say(f"error: {error}")
            if args.json:
                print_json({"path": path, "error": str(error)})
    return failed


def outputs(args: argparse.Namespace) -> list[Path | None]:
    """Where each transcript goes, None for standard output; sets the format that a suffix asks for.

    UsageError for what does not go together, before any work is done.
    """
    several, target = len(args.audio) > 1, args.output
    readable_name(str(target))
    folder = target is not None and (several or target.is_dir() or str(args.output).endswith("/"))
    if args.format is None:
        args.format = _format_of(None if folder else target)
    if several and target and target.suffix.lower() in SUFFIXES.values() and not target.is_dir():
        raise UsageError(f"{len(args.audio)} files need a folder: {target} is none; --format says the form")
    if args.json and (target or args.format != "text"):
        raise UsageError("--json has its own form on standard output: choose it, or --format and -o")
    if args.stream and (args.json or target or several or args.format != "text"):
        raise UsageError(
            "--stream prints the text of one recording: leave out --json, --format, -o and other files"
        )
    if several and target is None and args.format in ("srt", "vtt"):
        raise UsageError(f"{len(args.audio)} files as {args.format} need a folder: give -o FOLDER")
    if not folder:
        return [target] * len(args.audio)
    places = [target / (Path(path).name.rpartition(".")[0] or "stdin") for path in args.audio]
    places = [place.with_name(place.name + SUFFIXES[args.format]) for place in places]
    if twice := sorted({str(place) for place in places if places.count(place) > 1}):
        raise UsageError(f"two recordings would be written to {twice[0]}: rename one, or use two folders")
    return list(places)


def _format_of(target: Path | None) -> str:
    """The format that a file's suffix asks for; UsageError for one that no transcript has."""
    known = {suffix: name for name, suffix in reversed(SUFFIXES.items())}
    suffix = target.suffix.lower() if target else ""
    if suffix and suffix not in known:
        raise UsageError(f"{target}: a transcript is {', '.join(sorted(known))}; or choose a --format")
    return known.get(suffix, "text")


def _streamed(model: Any, path: str, given: dict[str, Any]) -> None:
    """Print words as soon as they are certain."""
    said = False
    for partial in model.asr(sound_of(path), stream=True, **given):
        print(partial.text, end="", flush=True)
        said = True
    print(flush=True)
    if not said:
        say(f"{_name(path)}: no speech")


def _name(path: str) -> str:
    return "standard input" if path == "-" else path


def _deliver(args: argparse.Namespace, path: str, place: Path | None, found: Transcript, took: float) -> None:
    name = _name(path)
    if not found.segments:
        say(f"{name}: {without_speech(found)}")
    elif found.skipped >= SAID:
        say(f"{name}: skipped {found.skipped:.1f} of {found.duration:.1f} s without speech")
    if args.json:
        about = {**fields(found, "text"), **verbose(found), "skipped": round(found.skipped, 3)}
        print_json({"path": path, **about, "took": round(took, 3)})
        return
    text = FORMATS[args.format](found)
    if place is not None:
        _write(place, text)
        print(place, flush=True)
    else:
        several = len(args.audio) > 1 and args.format == "text"
        print(f"{path}\t{text}" if several else text, end="", flush=True)


def _write(place: Path, text: str) -> None:
    from gpa import disk

    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        disk.write_text(place, text)
    except OSError as error:
        raise UsageError(f"{place} cannot be written ({error.strerror}): choose another place") from error


def _progress(items: list[Any]) -> Any:
    """A bar on stderr for many items on a terminal, nothing otherwise."""
    if len(items) < 3 or not sys.stderr.isatty():
        return items
    from tqdm import tqdm

    return tqdm(items, unit="file", dynamic_ncols=True)
