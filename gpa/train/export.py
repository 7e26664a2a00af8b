"""From what training leaves behind to a checkpoint directory that people load.

    python -m gpa.train.export --lm runs/mini/export --codec runs/codec/export --features WHISPER --out DIR \\
        [--settings export.yaml] [--voice NAME=REF.wav ... [--without-timbres]] [--golden CLIP.wav=TEXT ...]

The settings file holds keys of gpa.json (name, max_audio_seconds, max_text_chars, sampling, beams, about).
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gpa.codec import load_codec
from gpa.config import load_yaml
from gpa.engine.network import Network
from gpa.errors import UsageError
from gpa.models.gpa import GPA
from gpa.models.gpa.configuration_gpa import VERSION, GPAConfig
from gpa.models.gpa.verify_gpa import record
from gpa.train.assemble import stored

if TYPE_CHECKING:
    from gpa.audio import AudioLike
    from gpa.codec.base import TokenCodec

LISTS = ("words", "ngrams", "pronunciations")  # files that a processor takes, in this order

logger = logging.getLogger(__name__)


# As for `write_checkpoint`: each part is one argument, given by name.
def assemble(  # noqa: PLR0913
    lm: str | Path,
    codec: TokenCodec,
    out: str | Path,
    *,
    tokenizer: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    voices: Mapping[str, AudioLike] | None = None,
    timbres: bool = True,
    golden: Sequence[tuple[AudioLike, str]] = (),
    lists: Mapping[str, Path] | None = None,
    dtype: torch.dtype = torch.float16,
    overwrite: bool = False,
) -> Path:
    """Write a checkpoint directory; returns it.

    `lm` is a transformers directory of a trained Qwen3, `tokenizer` (default: the same) one with
    tokenizer.json. `voices` are recordings by name, stored with a timbre if `timbres`: speakers whom the
    decoder has learnt may sound cleaner without. Voices and golden outputs are made by the checkpoint as
    stored, in `dtype`, so they are what a user's computer gives. `golden` are (clip, text) pairs, two or
    more, or none. `lists` are files by name: "words" of gpa.lab.word_list, which recognition spells by,
    "ngrams" of gpa.lab.ngram_list, by which it puts them together, "pronunciations" of
    gpa.lab.pronunciation_list, by which speech is asked for.
    """
    config = GPAConfig.from_dict({"version": VERSION, "format": "instruct", **(settings or {})}, "settings")
    network, _ = Network.load(Path(lm))
    model = GPA(network, codec, tokenizer or lm, config=config)
    lists, processor = lists or {}, model.processor
    if strange := sorted(set(lists) - set(LISTS)):
        raise UsageError(f"lists {strange}: known are {', '.join(LISTS)}")
    takes = (processor.take_words, processor.take_ngrams, processor.take_pronunciations)
    for name, take in zip(LISTS, takes, strict=True):
        if name in lists:
            take(lists[name])
    with stored(model, Path(out), dtypes=(dtype, dtype), overwrite=overwrite) as (made, folder):
        for name, clip in (voices or {}).items():
            voice = made.voice(clip, name=name)
            voice = voice if timbres else replace(voice, timbre=None)
            voice.save(folder / "voices" / f"{name}.json")
        if golden:
            record(made, folder, [clip for clip, _ in golden], [text for _, text in golden])
        logger.info("%s: %s parameters", out, made.info()["parameters"])  # whose folder moves at the end
    return Path(out)


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python -m gpa.train.export", description="Make a checkpoint directory."
    )
    parser.add_argument("--lm", type=Path, required=True, help="export folder of the language model's run")
    parser.add_argument("--codec", type=Path, required=True, help="export folder of the codec's run")
    parser.add_argument(
        "--features", type=Path, required=True, help="directory of the codec's feature encoder"
    )
    parser.add_argument("--ctc", type=Path, help="export folder of a run of letters, for recognition")
    parser.add_argument(
        "--tokenizer", type=Path, help="directory with tokenizer.json (default: that of --lm)"
    )
    parser.add_argument("--settings", type=Path, help="YAML with keys of gpa.json")
    parser.add_argument("--voice", action="append", default=[], metavar="NAME=CLIP", help="a voice to ship")
    parser.add_argument("--without-timbres", action="store_true", help="of voices: their ids alone")
    parser.add_argument(
        "--golden", action="append", default=[], metavar="CLIP=TEXT", help="outputs to record, two or more"
    )
    parser.add_argument("--words", type=Path, help="list of gpa.lab.word_list, for recognition")
    parser.add_argument("--ngrams", type=Path, help="of gpa.lab.ngram_list, for recognition")
    parser.add_argument("--pronunciations", type=Path, help="of gpa.lab.pronunciation_list, for speech")
    parser.add_argument("--dtype", default="float16", choices=("float16", "bfloat16", "float32"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--overwrite", action="store_true", help="replace --out (a README.md there stays)")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    assemble(
        args.lm,
        load_codec(args.codec, encoder=args.features, ctc=args.ctc),
        args.out,
        tokenizer=args.tokenizer,
        settings=load_yaml(args.settings) if args.settings else None,
        voices=dict(_pair(item, "--voice") for item in args.voice),
        timbres=not args.without_timbres,
        golden=[_pair(item, "--golden") for item in args.golden],
        lists={name: file for name in LISTS if (file := getattr(args, name))},
        dtype=getattr(torch, args.dtype),
        overwrite=args.overwrite,
    )


def _pair(item: str, option: str) -> tuple[str, str]:
    left, sep, right = item.partition("=")
    if not (sep and left and right):
        raise UsageError(f"{option} {item!r}: two parts joined by '=' are needed")
    return left, right


if __name__ == "__main__":
    main()
