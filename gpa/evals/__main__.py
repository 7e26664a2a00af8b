"""`python -m gpa.evals SUITE ... --model M --data DIR`: measure, write items and summary, print the table."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
from pathlib import Path
from typing import Any

from gpa.errors import GPAError
from gpa.evals import items, report, run

log = logging.getLogger(__name__)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gpa.evals",
        description="Error rates on held-out data; the judges run offline: pip install 'gpa-audio[eval]'.",
    )
    parser.add_argument(
        "suites", nargs="+", choices=list(run.SUITES), metavar="SUITE", help=", ".join(run.SUITES)
    )
    parser.add_argument("--model", help="checkpoint: path, repository or shipped name")
    parser.add_argument(
        "--codec", help="codec folder for the codec suite; an export or .pt of a training run does"
    )
    parser.add_argument("--features", type=Path, help="feature encoder, where the codec folder holds none")
    parser.add_argument("--data", help="data folder (default: GPA_DATA)")
    parser.add_argument("--out", type=Path, default=Path("runs/evals"), help="where results go")
    parser.add_argument("-n", type=int, default=50, help="items per suite, 0 for all (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="chooses the items and seeds the model")
    parser.add_argument("--split", default="dev", help="held-out split (default dev)")
    parser.add_argument("--voices", nargs="+", default=[], help="voices of tts (default: all shipped ones)")
    parser.add_argument(
        "--seen", type=Path, help="JSONL whose `text` was trained on too, never spoken in tests"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of the judge (default 1)")
    parser.add_argument("--device", default="auto", help="device of the model (default auto)")
    parser.add_argument("--save-wavs", action="store_true", help="keep what was made in OUT/wavs")
    return parser


def _codec(args: argparse.Namespace) -> Any:
    if not args.codec:
        return None
    if args.features:
        from gpa.codec import trained

        return trained.load(args.codec, args.features)
    from gpa.codec import load_codec

    return load_codec(args.codec)


def _bench(args: argparse.Namespace) -> run.Bench:
    model, voices = None, list(args.voices)
    if args.model:
        from gpa.models.gpa import GPA

        model = GPA.from_pretrained(args.model, device=args.device)
        voices = voices or sorted(model.voices)
    seen = []
    if args.seen:
        seen = [json.loads(line)["text"] for line in args.seen.read_text(encoding="utf-8").splitlines()]
    return run.Bench(
        data=items.data_root(args.data),
        model=model,
        codec=_codec(args),
        voices=voices,
        seen=seen,
        n=args.n,
        seed=args.seed,
        split=args.split,
        threads=args.threads,
        wavs=args.out / "wavs" if args.save_wavs else None,
    )


def weights_hash(path: str | None) -> str | None:
    """SHA-256 over the safetensors of a local folder, in the order of their names; None for anything else."""
    if not path or not Path(path).is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted(Path(path).rglob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def main(argv: list[str] | None = None) -> int:
    """Entry point: 0, or the exit code of a typed error."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    logging.getLogger("faster_whisper").setLevel(logging.WARNING)
    try:
        bench = _bench(args)
        about = run.about(bench)
        about |= {"command": ["python", "-m", "gpa.evals", *(sys.argv[1:] if argv is None else argv)]}
        about |= {"model_sha256": weights_hash(args.model), "codec_sha256": weights_hash(args.codec)}
        found: dict[str, list[report.Item]] = {}
        summaries: list[report.Summary] = []
        for suite in args.suites:
            found[suite] = run.run_suite(suite, bench)
            summaries.append(report.summarise(suite, found[suite], args.seed))
            report.write(args.out, found, summaries, about)  # after each, as a suite may take an hour
    except GPAError as e:
        log.error("%s", e)
        return e.exit_code
    print(report.markdown(summaries))
    return 0


if __name__ == "__main__":
    sys.exit(main())
