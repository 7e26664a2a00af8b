"""The commands of SpeechOp: `gpa enhance`, `extract`, `separate`, `match` and `edit`, and their options.

As in `gpa.cli.commands`, results go to stdout and talk to stderr; no model code here.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from gpa.audio import FORMATS
from gpa.cli import commands, options
from gpa.errors import CheckpointError, UsageError

DEFAULT_MODEL, RECOGNISER = "speechop-mini", commands.DEFAULT_MODEL
AUDIO = "WAV, FLAC, Ogg, MP3, M4A and more; any rate; - reads standard input"


def add(sub: Any) -> None:
    """Add the commands to those of `gpa`."""
    for one in (_enhance, _extract, _separate, _match, _edit):
        one(sub)


# What they do -----------------------------------------------------------------------------------------------


def enhance(args: argparse.Namespace) -> None:
    """Clean a recording into a file."""
    commands.check_output(args)
    more = {"voice": args.voice, "voice_text": args.voice_text}
    more["strong"] = args.strong
    _made(args, lambda model, sound: model.enhance(sound, _transcript(args), **_text(args), **more))


def extract(args: argparse.Namespace) -> None:
    """One speaker of a mixture into a file."""
    commands.check_output(args)
    _made(args, lambda model, sound: model.extract(sound, args.voice, _transcript(args), **_text(args)))


def separate(args: argparse.Namespace) -> None:
    """Speech and background of a mixture into two files."""
    commands.check_output(args)
    if Path(args.background).suffix.lower() not in FORMATS:
        raise UsageError(f"{args.background}: choose a name that ends in one of {', '.join(FORMATS)}")
    if Path(args.background) == Path(args.output):
        raise UsageError(f"{args.output} is given for speech and for background: choose two names")
    model, sound = _load(args), commands.sound_of(args.audio)
    began = time.perf_counter()
    speech, background = model.separate(sound, _transcript(args), **_text(args))
    background.save(args.background)
    about = {"background": args.background, **_about(speech)}
    commands.deliver(args, speech, time.perf_counter() - began, about)
    if not args.json and args.output != "-":
        print(args.background)


def match(args: argparse.Namespace) -> None:
    """Speech in the acoustics of another recording, into a file."""
    commands.check_output(args)
    _made(args, lambda model, sound: model.match(sound, args.like, **_settings(args)))


def edit(args: argparse.Namespace) -> None:
    """A recording with other words in a span, into a file."""
    commands.check_output(args)
    words = {"before": args.before, "after": args.after}
    _made(args, lambda model, sound: model.edit(sound, args.span, args.text, **words, **_settings(args)))


def _made(args: argparse.Namespace, call: Any) -> None:
    model, sound = _load(args), commands.sound_of(args.audio)
    began = time.perf_counter()
    made = call(model, sound)
    commands.deliver(args, made, time.perf_counter() - began, _about(made))


def _load(args: argparse.Namespace) -> Any:
    if getattr(args, "gamma", None) is not None and _transcript(args) is None:
        raise UsageError("--gamma is the strength of a text: add --itc or --transcript")
    from gpa.models.speechop.checkpoint_speechop import SHIPPED, shipped
    from gpa.models.speechop.windows_speechop import Windows
    from gpa.speechop import SpeechOp

    if args.model == DEFAULT_MODEL and not Path(args.model).exists() and DEFAULT_MODEL not in shipped():
        raise CheckpointError(
            f"the shipped model {DEFAULT_MODEL} is missing from {SHIPPED}: give another with --model, or "
            "train one with recipes/speechop"
        )
    where = {"device": args.device, "offline": args.offline, "threads": args.threads}
    windows = Windows(args.window, args.overlap)  # refused before anything is loaded
    model = SpeechOp.from_pretrained(args.model, **where, recogniser=args.recogniser)
    model.windows = windows
    if sys.stderr.isatty():
        model.progress = _Bar()
    return model


def _transcript(args: argparse.Namespace) -> str | None:
    return "asr" if args.itc else args.transcript


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    return {"steps": args.steps, "seed": args.seed}


def _text(args: argparse.Namespace) -> dict[str, Any]:
    return {"gamma": args.gamma, "filtered": args.filtered, **_settings(args)}


def _about(made: Any) -> dict[str, Any]:
    """What --json says beside path and time."""
    parts = [{"begin": round(p.begin, 3), "end": round(p.end, 3), "text": p.text} for p in made.parts]
    names = ("task", "transcript", "evaluations", "seed")
    return {**{name: getattr(made, name) for name in names}, "windows": parts}


class _Bar:
    """The steps of sampling on a terminal, one bar for each run of the sampler."""

    def __init__(self) -> None:
        self.bar: Any = None

    def __call__(self, done: int, total: int) -> None:
        from tqdm import tqdm

        if done == 1:
            self.bar = tqdm(total=total, unit="step", dynamic_ncols=True, leave=False)
        self.bar.update(1)
        if done == total:
            self.bar.close()


# How they are asked for -------------------------------------------------------------------------------------


def _enhance(sub: Any) -> None:
    p = options.command(
        sub, "enhance", enhance, "clean noisy, reverberant or damaged speech", """\
  gpa enhance noisy.wav -o clean.wav
  gpa enhance noisy.wav --strong -o clean.wav              within speech as well: cleaner, and costs words
  gpa enhance noisy.wav --transcript "What she says." -o clean.wav
  gpa enhance noisy.wav --remade -o clean.wav              new speech instead of filtered

the network makes clean speech anew. what you get of the shipped model is your recording, turned down where
nobody speaks, which leaves its words alone; --strong turns it down wherever the new speech is quieter;
--remade gives the new speech, which may say other words where noise hides yours. prints the path of the file
written.
"""
    )  # fmt: skip
    p.add_argument("audio", help=AUDIO)
    p.add_argument("--voice", metavar="CLIP", help="clean sample of the speaker, 2 to 3 s are used")
    p.add_argument(
        "--voice-text", metavar="T", help='what CLIP says, "" if unknown (default: recognised if needed)'
    )
    _guidance(p)
    _kept(p).add_argument("--strong", action="store_true", help="turn it down within speech as well")
    options.output(p, "out.wav")
    _rest(p)


def _extract(sub: Any) -> None:
    p = options.command(
        sub, "extract", extract, "one speaker out of several, by a sample of the voice (experimental)", """\
experimental, with speechop-mini: 102 % of words wrong in 3 dB of noise, 82 % filtered (docs/speechop.md).

  gpa extract both.wav --voice anna.wav -o anna-alone.wav
  gpa extract both.wav --voice anna.wav --transcript "What Anna says." -o anna-alone.wav

prints the path of the file written.
"""
    )  # fmt: skip
    p.add_argument("audio", help=AUDIO)
    p.add_argument(
        "--voice", metavar="CLIP", required=True, help="clean sample of the wanted speaker, 2 to 3 s are used"
    )
    _guidance(p)
    _kept(p)
    options.output(p, "out.wav")
    _rest(p)


def _separate(sub: Any) -> None:
    p = options.command(
        sub, "separate", separate, "speech and what is behind it, in two files (experimental)", """\
experimental, with speechop-mini: words 47 % wrong, 32 % in the mixture itself (docs/speechop.md).

  gpa separate street.wav -o voice.wav --background street-alone.wav
  gpa separate street.wav --itc

the two are generated apart: they need not add up to the mixture. prints both paths.
"""
    )  # fmt: skip
    p.add_argument("audio", help=AUDIO)
    _guidance(p)
    _kept(p)
    options.output(p, "speech.wav")
    p.add_argument("--background", default="background.wav", metavar="FILE", help="default background.wav")
    _rest(p)


def _match(sub: Any) -> None:
    p = options.command(
        sub, "match", match, "clean speech as if recorded where another recording was (experimental)", """\
experimental, with speechop-mini: words 64 % wrong, 36 % in the true room (docs/speechop.md).

  gpa match studio.wav --like room.wav -o in-the-room.wav

prints the path of the file written.
"""
    )  # fmt: skip
    p.add_argument("audio", help=f"clean speech; {AUDIO}")
    p.add_argument(
        "--like", metavar="CLIP", required=True, help="any speech in the wanted place, 2 to 3 s are used"
    )
    options.output(p, "out.wav")
    _rest(p)


def _edit(sub: Any) -> None:
    p = options.command(
        sub, "edit", edit, "say other words in a span of a recording, in its voice (experimental)", """\
experimental, with speechop-mini: the new words were heard in 0 of 5 recordings (docs/speechop.md).

  gpa edit talk.wav "on friday" --span 1.2 1.85 -o changed.wav
  gpa edit talk.wav "really" --span 2.1 2.1 --before "i" --after "like it"        inserts

the words around the span are needed for its rate and its voice; those not given are recognised. what lies
outside the span keeps its samples. use recordings of your own voice, or of one whose owner agreed. prints
the path of the file written.
"""
    )  # fmt: skip
    p.add_argument("audio", help=AUDIO)
    p.add_argument("text", help="what is said instead")
    p.add_argument("--span", nargs=2, type=float, required=True, metavar=("BEGIN", "END"), help="in seconds")
    p.add_argument("--before", metavar="T", help="what is said before (default: recognised)")
    p.add_argument("--after", metavar="T", help="what is said after (default: recognised)")
    options.output(p, "out.wav")
    _rest(p)


def _guidance(p: argparse.ArgumentParser) -> None:
    """By which text, and how strongly."""
    group = p.add_argument_group("guidance by text", "without a text there is none")
    which = group.add_mutually_exclusive_group()
    which.add_argument("--transcript", metavar="T", help="what is said")
    which.add_argument("--itc", action="store_true", help="recognise it (implicit task composition)")
    group.add_argument(
        "--gamma", type=float, metavar="G", help="strength, 0 is none (default: the model's for such a text)"
    )


def _kept(p: argparse.ArgumentParser) -> Any:
    """Whether the recording is filtered or made anew; returns the group, of which one can be chosen."""
    which = p.add_mutually_exclusive_group()
    which.add_argument("--filtered", action="store_const", const=True, default=None,
        help="the recording itself, turned down where the result is quieter")  # fmt: skip
    which.add_argument("--remade", action="store_const", const=False, default=None, dest="filtered",
        help="what the network makes, all of it new (default: as the model's settings say)")  # fmt: skip
    return which


def _rest(p: argparse.ArgumentParser) -> None:
    """What all of them have."""
    how = p.add_argument_group("generation")
    how.add_argument("--steps", type=int, metavar="N", help="of the sampler (default: the model's)")
    how.add_argument("--seed", type=int, default=0, help="default 0: the same sound every time")
    how.add_argument(
        "--window",
        type=float,
        default=8.0,
        metavar="S",
        help="longer audio is cut into windows (default 8 s)",
    )
    how.add_argument(
        "--overlap", type=float, default=1.0, metavar="S", help="that windows share (default 1 s)"
    )
    p.add_argument(
        "--model",
        metavar="M",
        default=DEFAULT_MODEL,
        help=f"directory, owner/name, or shipped name (default {DEFAULT_MODEL})",
    )
    p.add_argument(
        "--recogniser",
        metavar="M",
        default=RECOGNISER,
        help=f"GPA model that recognises words where they are needed (default {RECOGNISER})",
    )
    machine = p.add_argument_group("machine")
    machine.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default auto)")
    options.threads(machine)
    machine.add_argument("--offline", action="store_true", help="never use the network")
    machine.add_argument("-v", "--verbose", action="store_true", help="say more, on stderr")
    options.json(p, "print one JSON object: path, transcript, windows, evaluations of the network, timing")
