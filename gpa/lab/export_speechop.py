"""From the export of a SpeechOp run to the directory that people load: half precision, settings, a name.

    gpa lab export_speechop runs/speechop/export --settings recipes/settings/speechop-mini.yaml -o
    DIR

`--codec` takes the place of the run's codec: one with another decoder of the same latents, as the recipe
latent_decoder.yaml leaves. The settings file holds sections of speechop.json (sampler, compose, filter, tts,
about), laid over the trained ones.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gpa.codec.kl import KLCodec
from gpa.config import build, load_yaml
from gpa.errors import UsageError
from gpa.models.speechop.configuration_speechop import SpeechOpConfig
from gpa.models.speechop.pipeline_speechop import SpeechOp

ALIKE = 0.05  # of a latent's spread: what half precision does to it
FREE = ("sampler", "compose", "filter", "tts", "about")  # what does not change the network


def ship(
    export: Path,
    out: Path,
    settings: Mapping[str, Any],
    dtype: torch.dtype,
    *,
    codec: Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a checkpoint directory, both networks in `dtype`; UsageError for settings of the network, or for
    a `codec` of other latents.
    """
    if strange := sorted(set(settings) - set(FREE)):
        raise UsageError(f"settings {strange} belong to training; free are {', '.join(FREE)}")
    op = SpeechOp.from_pretrained(export, device="cpu", offline=True)
    if codec is not None:
        op.codec = _same_latents(op.codec, KLCodec.from_pretrained(codec))
    raw = dataclasses.asdict(op.config)
    raw |= {name: {**raw[name], **section} for name, section in settings.items()}
    config = build(SpeechOpConfig, raw, "settings")
    out = op.save_pretrained(out, dtype, codec_dtype=dtype, overwrite=overwrite)
    # The codec as stored is the one whose latents these are from now on.
    mark = KLCodec.from_pretrained(out / "latent").fingerprint()
    dataclasses.replace(config, about={**config.about, "codec": mark}).write(out)
    return out


def _same_latents(trained: KLCodec, other: KLCodec) -> KLCodec:
    """`other`, if it encodes as `trained` does, up to half precision."""
    wav = torch.rand(1, 10 * trained.spec.hop_length, generator=torch.Generator().manual_seed(0)) - 0.5
    pair = [codec.encode(wav) for codec in (trained, other)]
    if pair[0].shape != pair[1].shape or (pair[0] - pair[1]).abs().max() > ALIKE:
        raise UsageError(
            "--codec encodes otherwise than the codec that was trained on: freeze_latents keeps it"
        )
    return other


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="gpa lab export_speechop", description=__doc__)
    parser.add_argument("export", type=Path, help="export folder of the run")
    parser.add_argument("--settings", type=Path, help="YAML with sections of speechop.json")
    parser.add_argument("--codec", type=Path, help="latent codec in place of the run's, same latents")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16")
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args(argv)
    settings = load_yaml(args.settings) if args.settings else {}
    dtype = getattr(torch, args.dtype)
    out = ship(args.export, args.out, settings, dtype, codec=args.codec, overwrite=args.overwrite)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {size / 1e6:.1f} MB")
