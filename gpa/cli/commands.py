"""What the commands of `gpa` do: translate arguments, call the API, print the result.

Every function takes the parsed arguments and returns an exit code or None. Results go to stdout, talk goes to
stderr. No model code here.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gpa import audio
from gpa.audio.opening import readable_name
from gpa.errors import CheckpointError, GenerationError, Stopped, UsageError
from gpa.models.gpa.options_gpa import SamplingOptions
from gpa.text.wordlist import read_text

if TYPE_CHECKING:
    from gpa.models.gpa.outputs_gpa import Chunk, Speech, Transcript

LONG = 400  # characters of a text that takes long enough for a progress bar
DEFAULT_MODEL = "gpa-mini"
PUBLISHED_LICENCES = {  # docs/checkpoints.md has the details
    "language_model": "Apache-2.0 in its repository; academic and personal use only, says its page",
    "BiCodec": "CC BY-NC-SA 4.0 (Spark-TTS)",
    "glm-4-voice-tokenizer": "its own, in the LICENSE file beside the weights",
    "wav2vec2-large-xlsr-53": "Apache-2.0",
}
CONVERTED = {
    "codec": "mode codec: the voice was exchanged, words and timing kept (--mode lm speaks anew)",
    "lm": "mode lm: the language model spoke it anew (--mode codec only exchanges the voice)",
}

OF_THE_LM = ("replay", "rank", "steps", "lr", "batch_ids")  # options of gpa finetune --adapt-lm
FINETUNE = (
    *("name", "voice_rank", "voice_steps", "adapt_lm", *OF_THE_LM),
    *("items", "judge", "transcriber", "limit", "licence", "seed", "threads", "device", "offline"),
)


def say(message: str) -> None:
    """One remark on stderr."""
    print(f"gpa: {message}", file=sys.stderr)


def without_speech(found: Transcript) -> str:
    """What to say of a transcript of no words."""
    return f"no speech in {found.duration:.1f} s of sound (silence, noise or music)"


def at_least_one(args: argparse.Namespace, *names: str) -> None:
    """UsageError for a count below 1 that is given, alone or in a list, naming its option."""
    for name in names:
        given = getattr(args, name)
        for value in given if isinstance(given, list) else [given]:
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} {value}: at least 1")


def tts(args: argparse.Namespace) -> int:
    """Speak a text into a file; what could not be spoken is reported, and the exit code says so."""
    check_output(args)
    text = _stdin_text() if args.text == "-" else args.text
    said = _pronunciations(args.pronunciations) if args.pronunciations else None
    model = load(args)
    given = {name: getattr(args, name) for name in ("pause", "best_of", "verify", "lookahead", "gamma")}
    options = {name: value for name, value in given.items() if value is not None}
    options.setdefault("best_of", 1 if args.stream else model.processor.takes(sampling(args)))
    began = time.perf_counter()
    how = True if args.stream else "parts"
    chunks = model.tts(text, voice=args.voice, stream=how, pronunciations=said, **options, **sampling(args))
    speech, seconds = _spoken(args, chunks, model.sample_rate, bar=len(text) > LONG)
    took = time.perf_counter() - began
    _report(args, model.sample_rate, seconds, took, fields(speech))
    for failure in speech.failures:
        say(f"error: missing at {failure.seconds:.1f} s: {failure.reason}")
    return GenerationError.exit_code if speech.failures else 0


def _spoken(args: argparse.Namespace, chunks: Iterable[Chunk], rate: int, bar: bool) -> tuple[Speech, float]:
    """What is said of a stream whose sound goes where it was asked for, and its seconds."""
    from tqdm import tqdm

    from gpa.cli.sound_out import destination
    from gpa.models.gpa import Speech

    told: list[Chunk] = []
    hidden = not (bar and sys.stderr.isatty())
    shape = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
    seconds = 0.0
    with (
        destination(args.output, rate, args.stream) as write,
        tqdm(total=100, bar_format=shape, disable=hidden, dynamic_ncols=True) as progress,
    ):
        for chunk in chunks:
            write(chunk.wav)
            seconds += chunk.seconds
            told.append(dataclasses.replace(chunk, wav=chunk.wav[:0].copy()))  # a view would keep the sound
            progress.set_postfix_str(f"{seconds:.0f} s of sound", refresh=False)
            progress.update(max(0.0, 100 * chunk.done - progress.n))
    return Speech.of(told), seconds


def vc(args: argparse.Namespace) -> None:
    """Say what a recording says in another voice, into a file."""
    check_output(args)
    words = "asr" if args.itc else args.transcript
    if args.gamma is not None and words is None:
        raise UsageError("--gamma is the strength of a transcript: give --transcript or --itc")
    source = sound_of(args.audio)
    model = load(args)
    guided = {"transcript": words, "gamma": args.gamma}
    began = time.perf_counter()
    speech = model.vc(source, voice=args.voice, mode=args.mode, **guided, **sampling(args))
    took = time.perf_counter() - began
    say(CONVERTED[speech.mode])
    deliver(args, speech, took, {"mode": speech.mode, **fields(speech)})


def run(args: argparse.Namespace) -> None:
    """Do what an instruction says: print a transcript, or write speech into a file."""
    from gpa.models.gpa import Speech

    check_output(args)
    source = None if args.audio is None else sound_of(args.audio)
    model = load(args)
    began = time.perf_counter()
    made = model.run(args.instruction, audio=source, text=args.text, voice=args.voice, **sampling(args))
    took = time.perf_counter() - began
    if isinstance(made, Speech):
        deliver(args, made, took, fields(made))
    elif args.json:
        print_json({"text": made.text, **fields(made), "took": round(took, 3)})
    else:
        print(made.text)
        if made.finish_reason == "no speech":
            say(without_speech(made))


def voice(args: argparse.Namespace) -> None:
    """Write the voice of a recording to a JSON file."""
    if args.output.suffix != ".json":
        raise UsageError(f"{args.output}: a voice is a JSON file, give it the suffix .json")
    reference = sound_of(args.audio)
    load(args).voice(reference).save(args.output)
    print(args.output)


def info(args: argparse.Namespace) -> None:
    """Describe a model."""
    found = load(args).info()
    stated = {found["name"]: found["about"].get("licence", "not stated")}
    # Published files say nothing about their licences.
    found["licences"] = PUBLISHED_LICENCES if found["format"] == "published" else stated
    print_json(found) if args.json else print("\n".join(_lines(found)))


def verify(args: argparse.Namespace) -> int:
    """Compare a checkpoint with its recorded outputs; 1 if a stage is beyond its tolerance."""
    model = load(args)
    from gpa.models.gpa import verify_gpa

    stages = verify_gpa.verify(model)
    good = all(stage.ok for stage in stages)
    if args.json:
        rows = [{**dataclasses.asdict(stage), "ok": stage.ok} for stage in stages]
        print_json({"ok": good, "path": str(model.path), "stages": rows})
    else:
        for stage in stages:
            mark = "ok  " if stage.ok else "FAIL"
            print(
                f"{mark}  {stage.name:<14}  {stage.error:<8.2g}  of at most {stage.tolerance:<6g} "
                f"{stage.unit}, {stage.items} items"
            )
        print("All stages agree." if good else "This is not what was recorded.")
    return 0 if good else 1


def doctor(args: argparse.Namespace) -> int:
    """Report on this machine; 1 if something gpa needs is broken."""
    from gpa.cli import doctor as probes

    checks = probes.diagnose()
    if args.json:
        print_json({"ok": probes.healthy(checks), "checks": [dataclasses.asdict(check) for check in checks]})
    else:
        print(probes.report(checks))
    return 0 if probes.healthy(checks) else 1


def demo(args: argparse.Namespace) -> None:
    """Show all three tasks."""
    from gpa.cli.demo import run

    run(load(args), args.out, text=args.text, voices=args.voices, seed=args.seed)


def stopped(error: KeyboardInterrupt, command: str) -> int:
    """Say that a signal came, and of some commands that they go on; returns the exit code."""
    resumes = command in ("prepare", "train", "finetune")
    more = "; the same command goes on from what is complete" if resumes else ""
    say((str(error) or "interrupted") + more)
    return getattr(error, "exit_code", Stopped.exit_code)


def train(args: argparse.Namespace) -> None:
    """Hand everything after `gpa train` to gpa.train."""
    from gpa.train.command import main

    main(args.rest)


def schema(args: argparse.Namespace) -> None:
    """Print the JSON Schema of every kind of recipe."""
    from gpa.train import command, recipe_schema

    found = recipe_schema.schema({kind: command.kind_of(kind)[0] for kind in command.KINDS})
    print(json.dumps(found, indent=2))


def lab(args: argparse.Namespace) -> int:
    """Hand everything after `gpa lab` to a process of its own: nothing here knows those tools."""
    return subprocess.call([sys.executable, "-m", "gpa.lab", *args.rest])


def finetune(args: argparse.Namespace) -> int:
    """Learn a voice; 1 if something old became worse past the limit."""
    from transformers.utils import logging as small_talk

    from gpa.finetune.job import Job
    from gpa.finetune.job import finetune as run

    small_talk.disable_progress_bar()  # of every loading of weights
    given = {name: getattr(args, name) for name in FINETUNE if getattr(args, name) is not None}
    alone = [f"--{name.replace('_', '-')}" for name in OF_THE_LM if name in given and not args.adapt_lm]
    if alone:
        say(f"{', '.join(alone)}: without --adapt-lm for nothing; --voice-steps is for the voice")
    out = args.output or Path("runs") / f"voice-{given['name'] or args.voice.resolve().stem}"
    outcome = run(Job(args.voice, out, args.model, **given), say, only_plan=args.plan)
    if outcome is None:
        return 0
    if outcome.table:
        print(outcome.table)
    say(f"took {outcome.took:.1f} min, {outcome.predicted:.1f} were predicted")
    print(outcome.model)
    for line in outcome.regressions:
        say(f"regressed by more than {args.limit:g} points: {line}")
    if outcome.regressions:
        say("more rehearsal (--replay), fewer --steps or a lower --lr forget less")
    return 1 if outcome.regressions else 0


def plot(args: argparse.Namespace) -> None:
    """Draw the metrics of runs; prints the picture of each."""
    from gpa.train import metrics

    for run in args.runs:
        if args.out:
            metrics.keep(run, args.out / run.resolve().name)
        print(args.out / f"{run.resolve().name}.png" if args.out else metrics.plot(run), flush=True)


def plan(args: argparse.Namespace) -> None:
    """Print memory, time and cost of a recipe at a scale."""
    from gpa import config
    from gpa.models.gpa.modeling_gpa import meta_backbone
    from gpa.train import planning

    if args.gpu not in planning.GPUS:
        raise UsageError(f"--gpu {args.gpu}: choose one of {', '.join(planning.GPUS)}")
    for name in ("gpus", "hours", "epochs", "mfu", "memory"):
        if (value := getattr(args, name)) is not None and value <= 0:
            raise UsageError(f"--{name} {getattr(args, name)}: must be above 0")
    gpu = planning.GPUS[args.gpu]
    if args.price is not None:
        gpu = dataclasses.replace(gpu, price=args.price)
    recipe = config.load_yaml(args.recipe)
    length = int(recipe.get("data", {}).get("max_ids", planning.Budget.length))
    micro = int(recipe.get("data", {}).get("batch_ids", planning.Budget.micro_ids))
    budget = planning.Budget(args.hours, args.epochs, micro_ids=micro, length=length, mfu=args.mfu)
    shape = planning.Shape.of(meta_backbone(recipe.get("model", {})))
    for line in planning.lines(planning.plan(shape, budget, gpu, args.gpus), budget, args.gpu, args.gpus):
        print(line)
    served = planning.serving(
        shape, args.memory * planning.GIB if args.memory else gpu.memory, bool(args.memory)
    )
    where = f"a processor with {args.memory:g} GiB" if args.memory else f"one {args.gpu}"
    for line in planning.serving_lines(served, where):
        print(line)


def load(args: argparse.Namespace) -> Any:
    """The model that the options name."""
    if args.model == DEFAULT_MODEL and not Path(args.model).exists():
        check_shipped()
    from gpa.models.gpa import GPA

    device = getattr(args, "device", "cpu")  # `info` computes nothing
    options = {"dtype": getattr(args, "dtype", "auto"), "threads": getattr(args, "threads", None)}
    options["engine"] = getattr(args, "engine", "")
    return GPA.from_pretrained(args.model, device=device, offline=args.offline, **options)


def check_shipped() -> None:
    """A checkout without its weights, or a broken wheel, should say so and not look for a repository."""
    from gpa.models.gpa.checkpoint_gpa import SHIPPED

    if not (SHIPPED / DEFAULT_MODEL / "config.json").is_file():
        raise CheckpointError(
            f"the shipped model {DEFAULT_MODEL} is missing from {SHIPPED}: install the package again or "
            "fetch the whole repository; meanwhile give another with --model, or train one with recipes/gpa"
        )


def _pronunciations(path: Path) -> dict[str, str]:
    """Words and their phones, one word a line."""
    pairs = (line.split(None, 1) for line in read_text(path).split("\n") if line.strip())
    return {word: " ".join(phones) for word, *phones in pairs}


def sampling(args: argparse.Namespace) -> SamplingOptions:
    """The generation options that were given; the model decides about the others."""
    given = {name: getattr(args, name) for name in SamplingOptions.__annotations__}
    return cast(SamplingOptions, {name: value for name, value in given.items() if value is not None})


def sound_of(path: str) -> Any:
    """Audio of a path, or of standard input for -."""
    return sys.stdin.buffer if path == "-" else path


def _stdin_text() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise UsageError(f"the text on standard input is not UTF-8: {error}") from error


def check_output(args: argparse.Namespace) -> None:
    """Refuse what could only fail after the work is done."""
    if args.output == "-" and args.json:
        raise UsageError("-o - and --json both want standard output: choose one")
    if args.output == "-" and sys.stdout.isatty():
        raise UsageError("-o - writes a WAV file to standard output: redirect it to a file or a pipe")
    if readable_name(args.output) != "-" and Path(args.output).suffix.lower() not in audio.FORMATS:
        raise UsageError(f"{args.output}: choose a name that ends in one of {', '.join(audio.FORMATS)}")


def deliver(args: argparse.Namespace, speech: Any, took: float, about: dict[str, Any]) -> None:
    """Write generated sound where it was asked for, and say so; `about` is for --json."""
    from gpa.cli.sound_out import destination

    with destination(args.output, speech.sample_rate) as write:
        write(speech.wav)
    _report(args, speech.sample_rate, len(speech.wav) / speech.sample_rate, took, about)


def _report(args: argparse.Namespace, rate: int, seconds: float, took: float, about: dict[str, Any]) -> None:
    """Say where the sound is."""
    if args.json:
        timing = {"seconds": round(seconds, 3), "took": round(took, 3), "rtf": round(took / seconds, 3)}
        print_json({"path": args.output, "sample_rate": rate, **about, **timing})
    elif args.output != "-":
        print(args.output)


def fields(result: Any, *more: str) -> dict[str, Any]:
    """Attributes of a result for --json, `more` beside the usual ones."""
    names = (*more, "tokens", "finish_reason")
    found = {name: getattr(result, name) for name in names}
    failures = [dataclasses.asdict(failure) for failure in getattr(result, "failures", ())]
    return {**found, "tokens": result.tokens.tolist()} | ({"failures": failures} if failures else {})


def print_json(value: Any) -> None:
    """One line for machines; of a file name that is not UTF-8, \\udcXX as `os.fsencode` takes it back."""
    text = json.dumps(value, ensure_ascii=False)
    print(text.encode("utf-8", "backslashreplace").decode("utf-8"), flush=True)


def _lines(tree: dict[str, Any], indent: str = "") -> list[str]:
    """A nested description as aligned text."""
    width = max((len(key) for key in tree), default=0)
    lines = []
    for key, value in tree.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", *_lines(value, indent + "  ")]
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
            lines.append(f"{indent}{key:<{width}}  {shown}")
    return lines
