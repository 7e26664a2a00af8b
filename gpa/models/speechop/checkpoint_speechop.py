"""Checkpoint directories of SpeechOp: speechop.json, model.safetensors, and the latent codec in latent/.

Knows files and tensor names; nothing about audio, text or sampling.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from gpa import disk, hub
from gpa.codec.feature_encoder import half_where_it_fits
from gpa.codec.kl import KLCodec
from gpa.errors import CheckpointError
from gpa.models.speechop.configuration_speechop import FILE, SpeechOpConfig
from gpa.models.speechop.modeling_speechop import SpeechOpModel

if TYPE_CHECKING:
    from gpa.models.speechop.asr_features_speechop import ASRFeatures

SHIPPED = Path(__file__).resolve().parents[2] / "assets"
CODEC = "latent"


def shipped() -> list[str]:
    """Names of the SpeechOp models that come with the package."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{FILE}"))


def find(path_or_repo: str | os.PathLike, revision: str | None = None, offline: bool = False) -> Path:
    """The checkpoint directory behind a path, a shipped name or a repository id."""
    name = os.fspath(path_or_repo)
    if name in shipped() and not Path(name).exists():
        return SHIPPED / name
    folder = hub.resolve(path_or_repo, revision, offline)
    if (folder / FILE).is_file():
        return folder
    if folder.is_file():
        raise CheckpointError(f"{folder}: a file; a model is a folder, perhaps {folder.parent}")
    known = f"; shipped models: {', '.join(shipped())}" if shipped() else ""
    hint = ", but a GPA model: load it with gpa.GPA" if (folder / "gpa.json").is_file() else ""
    raise CheckpointError(f"{folder}: no SpeechOp model here (no {FILE}){hint}{known}")


def load_model(folder: Path, config: SpeechOpConfig) -> tuple[SpeechOpModel, torch.dtype]:
    """The network in float32 on the CPU, and the precision of its file."""
    state = hub.read_state(folder)
    with hub.sizes_checked(state, str(folder)), torch.device("meta"):
        model = SpeechOpModel(config)
    hub.load_strict(model, state, where=str(folder))
    return model.eval().requires_grad_(False), hub.stored_precision(state)


def load_codec(folder: Path, device: torch.device) -> KLCodec:
    """The latent codec; CheckpointError if the directory lacks it."""
    if not (folder / CODEC).is_dir():
        raise CheckpointError(f"{folder}: no codec, {CODEC}/ is missing; export or download the model again")
    return KLCodec.from_pretrained(folder / CODEC, device=device)


def check_fit(config: SpeechOpConfig, codec: KLCodec, asr_features: ASRFeatures | None, where: str) -> None:
    """CheckpointError if the network was made for other latents than the codec's, or for another ASR
    encoder.
    """
    latent, spec = config.latent, codec.spec
    wanted = (latent.channels, latent.sample_rate, latent.hop)
    found = (spec.channels, spec.sample_rate, spec.hop_length)
    if wanted != found:
        raise CheckpointError(
            f"{where}: the network needs latents of {wanted} channels, Hz and samples a frame, its codec has "
            f"{found}: they do not belong together"
        )
    if config.asr_features.channels != (0 if asr_features is None else asr_features.channels):
        heard = "none was given" if asr_features is None else f"the one given has {asr_features.channels}"
        raise CheckpointError(
            f"{where}: the network's ASR encoder has {config.asr_features.channels} channels, {heard}"
        )


def write_checkpoint(
    out: str | os.PathLike,
    model: SpeechOpModel,
    codec: KLCodec,
    dtypes: tuple[torch.dtype, torch.dtype | None],
    overwrite: bool = False,
) -> Path:
    """Write a checkpoint directory under a temporary name, then rename it: never half of one.

    `dtypes` are the precisions of the network's and of the codec's weights. An existing directory is refused
    unless it is empty or `overwrite`, which keeps a README.md there.
    """
    out = Path(out)
    with disk.written_whole(out, overwrite) as temporary:
        state = half_where_it_fits(model.state_dict(), dtypes[0])
        save_file(state, temporary / "model.safetensors", metadata={"format": "pt"})
        model.config.write(temporary)
        codec.save_pretrained(temporary / CODEC, dtypes[1])
    return out
