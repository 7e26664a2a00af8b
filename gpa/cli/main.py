"""The command `gpa`: which commands and options there are, and how errors and warnings look.

What a command does is in `gpa.cli.commands`. The result of a command alone goes to stdout, everything said
about it to stderr. Exit codes are those of `gpa.errors`, 2 for wrong usage, 128 and its number for a signal.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gpa
from gpa.cli import (
    bench,
    codec_import,
    commands,
    evaluation,
    exporting,
    learning,
    options,
    preparation,
    serving,
)
from gpa.cli import restoration as speechop
from gpa.cli.transcribing import asr
from gpa.errors import AudioWarning, DiskError, GPAError, TextWarning, reader_gone
from gpa.models.gpa.subtitles_gpa import FORMATS
from gpa.train import signals

ABOUT = """speech from text, text from speech, speech in another voice: one small model

examples:
  gpa tts "Good morning." -o morning.wav      speak a sentence
  gpa asr morning.wav                         write down what is said
  gpa voice me.wav -o me.json                 keep a voice: 3 to 6 seconds of clear speech
  gpa vc morning.wav --voice me.json          say the same in that voice
"""
EPILOG = """`gpa COMMAND --help` explains a command, with examples.
exit codes: 0 done, 2 usage, 3 audio, 4 checkpoint, 5 text or prompt, 6 nothing generated,
            7 optional package missing, 8 training, 9 training data, 10 a full disk, 1 anything else;
            128 and its number for a signal: 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP, 138 SIGUSR1"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; SystemExit only for --help, --version and wrong usage."""
    args, rest = _parser().parse_known_args(argv)
    if rest and args.run not in (commands.train, commands.lab):  # which hand their arguments on
        args.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    args.rest, args.argv = rest, list(sys.argv[1:] if argv is None else argv)
    with _talk_on_stderr(args.verbose), signals.raised():
        try:
            code = int(args.run(args) or 0)
            sys.stdout.flush()
            return code
        except GPAError as error:
            commands.say(f"error: {error}")
            return error.exit_code
        except KeyboardInterrupt as error:
            return commands.stopped(error, args.command)
        except BrokenPipeError:
            return reader_gone()
        except OSError as error:  # no permission, a folder where a file should be, a full standard output
            from gpa import disk

            commands.say(f"error: {error}")
            return GPAError.exit_code if not disk.is_full(error) else reader_gone() and DiskError.exit_code


@contextlib.contextmanager
def _talk_on_stderr(verbose: bool) -> Iterator[None]:
    """Warnings and log records as lines on stderr; other libraries keep their small talk to themselves."""

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        commands.say(f"warning: {message}")

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
            commands.say(level + record.getMessage())

    handler = Lines()
    logger = logging.getLogger("gpa")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if verbose else logging.WARNING)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "30")  # seconds: a bar in a log is a line twice a minute
    if not verbose:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "" if sys.stderr.isatty() else "1")
    try:
        with warnings.catch_warnings():
            if not verbose:
                warnings.simplefilter("ignore")
            warnings.simplefilter("always", AudioWarning)
            warnings.simplefilter("always", TextWarning)
            warnings.showwarning = show  # catch_warnings restores it
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


class _Version(argparse.Action):
    """`--version`, looked up only when asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(f"gpa {gpa.__version__}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpa", description=ABOUT, epilog=EPILOG, formatter_class=options.Raw, allow_abbrev=False
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    parser.set_defaults(verbose=False)
    sub = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in (_tts, _asr, _vc, _run, _voice, _info, _verify, _doctor, _demo):
        add(sub)
    preparation.add(sub)
    learning.add(sub)
    serving.add(sub)
    speechop.add(sub)
    codec_import.add(sub)
    exporting.add(sub)
    bench.add(sub)
    evaluation.add(sub)
    return parser


def _tts(sub: Any) -> None:
    p = options.command(
        sub, "tts", commands.tts, "speak a text", """\
  gpa tts "The rain has stopped." -o rain.wav
  gpa tts "In my own voice." --voice me.wav --seed 7 -o mine.wav
  gpa tts "Heard while it is made." --stream -o - | aplay
  gpa tts - < chapter.txt -o chapter.flac
  gpa tts "An address that has to be right." --best-of 8 -o address.wav

prints the path of the file written. `gpa info` lists the voices of a model. a long text is spoken sentence
by sentence, with rests by punctuation and after paragraphs (blank lines). a sentence that fails (no end, a
loop, silence) is tried once more with another seed; if it fails again, the rest is spoken without it, stderr
says what is missing, and the exit code is 6. where nothing could be spoken there is no file.
"""
    )  # fmt: skip
    p.add_argument("text", help="what to say; - reads it from standard input")
    options.voice(p)
    p.add_argument("--stream", action="store_true", help="hand out the sound while it is made: one take")
    p.add_argument(
        "--lookahead",
        type=int,
        metavar="N",
        help="frames that sound waits for (default: all that it depends on; fewer begin sooner)",
    )
    p.add_argument("--pause", type=float, metavar="S", help="seconds after a sentence (default 0.2)")
    p.add_argument(
        "--best-of",
        type=int,
        metavar="N",
        help="takes of a sentence; the one in which its words are likeliest is kept (default: what the model"
        " is set to, 4 for gpa-mini; with --stream 1); 1 is quickest",
    )
    p.add_argument(
        "--verify", action="store_true", default=None, help="a sentence that reads back wrong fails"
    )
    p.add_argument(
        "--gamma", type=float, metavar="G", help="how strongly the text guides (0: not at all, faster)"
    )
    p.add_argument(
        "--pronunciations",
        type=Path,
        metavar="FILE",
        help="words and their sound: tomato T AH0 M AA1 T OW0",
    )
    options.output(p, "out.wav")
    options.sampling(p)
    options.model(p)
    options.engine(p)
    options.json(p, "print one JSON object: path, seconds, tokens, finish_reason, timing")


def _asr(sub: Any) -> None:
    p = options.command(
        sub, "asr", asr, "write down what is said", """\
  gpa asr note.wav
  gpa asr film.flac -o film.srt
  gpa asr lecture.mp3 --format verbose_json -o lecture.json
  gpa asr talks/*.flac --format vtt -o subtitles
  gpa asr talks/*.flac > transcripts.tsv
  gpa asr interview.wav --stream
  gpa asr note.wav --words names.txt
  gpa tts "Hello there." -o - | gpa asr -

prints the transcript; of several files one line each, PATH<tab>TRANSCRIPT. a file that cannot be read
is reported, the others are still transcribed, and the exit code says so. recordings may be hours long.
silence and steady noise are skipped, and stderr says how much; times are those of the recording. subtitles
have two lines of 42 characters at most. verbose_json has segments and words with their times, as OpenAI's
servers answer.
"""
    )  # fmt: skip
    p.add_argument("audio", nargs="+", help="WAV, FLAC, Ogg, MP3, M4A and more; - reads standard input")
    p.add_argument(
        "--format", choices=FORMATS, help="default: that of the suffix of -o, else text; json: the text alone"
    )
    p.add_argument(
        "-o",
        "--output",
        type=Path,
        help="file, or folder for one file a recording (default: standard output)",
    )
    p.add_argument("--stream", action="store_true", help="print words as soon as they are certain")
    p.add_argument("--words", type=Path, metavar="FILE", help="names and terms that may be said, one a line")
    p.add_argument("--beams", type=int, metavar="N", help="spellings kept side by side (1: none, fastest)")
    options.sampling(p)
    options.model(p)
    options.engine(p)
    options.json(p, "print one JSON object a file: path, text, segments, words, tokens, timing, or error")


def _vc(sub: Any) -> None:
    p = options.command(
        sub, "vc", commands.vc, "say the same in another voice", """\
  gpa vc speech.wav --voice me.json -o converted.wav
  gpa vc speech.wav --voice me.json --mode lm --seed 7 -o anew.wav
  gpa vc speech.wav --voice me.json --transcript "What it really says." -o clearer.wav

the codec exchanges the voice and keeps words and timing; the language model speaks anew. the default is
what measured better for the checkpoint, and is said. a transcript, or --itc for the model's own, guides the
words of the language model; it and the options of generation, but for --seed, choose --mode lm. prints the
path of the file written.
"""
    )  # fmt: skip
    p.add_argument("audio", help="what to convert; - reads standard input")
    options.voice(p)
    p.add_argument(
        "--mode",
        choices=("lm", "codec"),
        help="codec: only the voice is exchanged, fast; lm: the model speaks anew (default: the model's)",
    )
    words = p.add_mutually_exclusive_group()
    words.add_argument("--transcript", metavar="T", help="what the recording says")
    words.add_argument("--itc", action="store_true", help="let the model itself recognise what it says")
    p.add_argument("--gamma", type=float, metavar="G", help="strength of the transcript (default 1, 0: none)")
    options.output(p, "out.wav")
    options.sampling(p)
    options.model(p)
    options.engine(p)
    options.json(p, "print one JSON object: path, mode, seconds, tokens, finish_reason, timing")


def _run(sub: Any) -> None:
    p = options.command(
        sub, "run", commands.run, "do what an instruction says", """\
  gpa run "Transcribe this in capitals." --audio note.wav
  gpa run "Read this slowly." --text "The rain has stopped." -o rain.wav
  gpa run "Say it in this voice, and keep the pitch." --audio note.wav --voice me.json

the instruction alone decides what comes out: a transcript is printed, speech is written to -o and its path
printed. a model follows instructions if it was trained with some of its rows by the wording alone, says
`gpa info`: instructed. one pass: what is longer is for tts, asr and vc.
"""
    )  # fmt: skip
    p.add_argument("instruction", help="what to do, in words")
    p.add_argument("--audio", metavar="FILE", help="speech that it is about; - reads standard input")
    p.add_argument("--text", metavar="T", help="text that it is about")
    options.voice(p)
    options.output(p, "out.wav")
    options.sampling(p)
    options.model(p)
    options.engine(p)
    options.json(p, "print one JSON object: text or path, tokens, finish_reason, timing")


def _voice(sub: Any) -> None:
    p = options.command(
        sub, "voice", commands.voice, "keep the voice of a recording in a small file", """\
  gpa voice me.wav -o me.json
  gpa tts "It is me." --voice me.json -o me-too.wav

a few integers, no audio. 3 to 6 seconds of one person in a quiet room are best. prints the path written.
"""
    )  # fmt: skip
    p.add_argument("audio", help="the recording; - reads standard input")
    p.add_argument("-o", "--output", type=Path, default=Path("voice.json"), help="default voice.json")
    options.model(p)


def _info(sub: Any) -> None:
    p = options.command(
        sub, "info", commands.info, "sizes, voices, licences and fingerprints of a model", """\
  gpa info
  gpa info path/to/checkpoint --json
"""
    )  # fmt: skip
    options.which(p)
    p.add_argument("--offline", action="store_true", help="never use the network")
    options.json(p, "the same as one JSON object")


def _verify(sub: Any) -> None:
    p = options.command(
        sub, "verify", commands.verify, "recompute a checkpoint's recorded outputs, stage by stage", """\
  gpa verify
  gpa verify path/to/checkpoint --device cuda

prints the largest error of each stage. exits with 1 if one is beyond its tolerance: this machine, or a newer
library, then computes something else than the machine the checkpoint was made on.
"""
    )  # fmt: skip
    options.which(p)
    options.device(p, "float32")  # what the outputs were recorded in
    options.json(p, "print one JSON object with every stage")


def _doctor(sub: Any) -> None:
    p = options.command(
        sub, "doctor", commands.doctor, "try everything gpa needs on this machine", """\
  gpa doctor
  gpa doctor > report.txt       for a bug report
"""
    )  # fmt: skip
    options.json(p, "print one JSON object with every finding")


def _demo(sub: Any) -> None:
    p = options.command(
        sub, "demo", commands.demo, "speak, transcribe and convert, with pictures", """\
  gpa demo
  gpa demo --text "Any sentence you like." --out listen
"""
    )  # fmt: skip
    p.add_argument("--text", help="the sentence (default: one of ours)")
    p.add_argument(
        "--out",
        type=Path,
        default=Path("demo_out"),
        help="folder for WAVs and the picture (default demo_out)",
    )
    p.add_argument("--voices", nargs=2, metavar=("FROM", "TO"), help="two voices (default: two shipped ones)")
    p.add_argument("--seed", type=int, default=0, help="default 0: the same sound every time")
    options.model(p)
