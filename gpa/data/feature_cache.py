"""The codec's training cache: one clip's feature-encoder output and waveform, in two flat files.

Written once by `write` (resumable per clip), read at random by `FeatureCache`. Rows are the manifest's, in
its order, then those `invented`. The pitch is measured when it is first asked for, into a third file.
"""

from __future__ import annotations

import argparse
import json
import math
import zlib
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from gpa import audio, disk, hub
from gpa.codec.feature_encoder import FRAME, WhisperFeatures, load_whisper_features
from gpa.codec.pitch import yin
from gpa.data.augmented_copies import AugmentedCopies
from gpa.errors import CheckpointError, UsageError

CHANGE = (0.08, 0.24)  # of speed, natural logarithm, either way
FEATURES, AUDIO, INDEX, PITCH = "features.f16", "audio.i16", "index.jsonl", "pitch.f16"
ENCODER = "encoder.json"  # where the encoder is, for the export of a codec
COMMAND = "python -m gpa.data.feature_cache MANIFEST --encoder DIR -o CACHE"


def write(
    rows: list[dict[str, Any]],
    root: Path,
    features: WhisperFeatures,
    out: Path,
    copy: AugmentedCopies | None = None,
) -> None:
    """Append the clips that `out` does not hold yet; a partial last clip of a killed run is overwritten.

    A row that is `resampled` has so many times the speed of its file. With `reading` the features are those
    of degraded sound; the sound beside them stays the clip's. CheckpointError if `out` holds clips of another
    manifest.
    """
    out.mkdir(parents=True, exist_ok=True)
    done = _written(out, rows)
    frames = sum(row["frames"] for row in done)
    bar = tqdm(rows[len(done) :], initial=len(done), total=len(rows), desc="features", dynamic_ncols=True)
    with (
        disk.room(out),
        (out / FEATURES).open("ab") as f,
        (out / AUDIO).open("ab") as a,
        (out / INDEX).open("a") as index,
    ):
        f.truncate(frames * features.channels * 2)
        a.truncate(frames * FRAME * 2)
        for number, row in enumerate(bar, len(done)):
            wav = audio.load(root / row["path"])
            if speed := row.get("resampled"):
                wav = audio.load((wav, round(audio.SAMPLE_RATE * speed)))
            wav = np.pad(wav, (0, -len(wav) % (2 * FRAME)))
            with torch.inference_mode():
                heard = copy(wav, number) if copy else features(torch.from_numpy(wav)[None])[0]
            states = heard.T  # (T, C)
            f.write(states.half().numpy().tobytes())
            a.write((wav.clip(-1, 1) * 32767).astype(np.int16).tobytes())
            f.flush()
            a.flush()
            index.write(json.dumps({**row, "frames": len(states), "offset": frames}) + "\n")
            index.flush()
            frames += len(states)


def _written(out: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Clips that an earlier run finished; a line that a kill cut short is removed from the index."""
    index = out / INDEX
    if not index.exists():
        return []
    done = read_lines(index)
    if list(map(_clip, done)) != list(map(_clip, rows[: len(done)])):
        raise CheckpointError(f"{index}: holds clips of another manifest; write to a new folder")
    disk.write_text(index, "".join(json.dumps(row) + "\n" for row in done))  # a kill here loses no clip
    return done


def _clip(row: dict[str, Any]) -> tuple[str, float | None]:
    return row["path"], row.get("resampled")


def invented(rows: list[dict[str, Any]], copies: int) -> list[dict[str, Any]]:
    """Training clips again, each `copies` times at a speed of its own: lower or higher voices, of nobody.

    Resampled sound has another pitch and other formants, so a recogniser of speakers takes it for somebody
    else (Yamamoto et al. 2019). The speaker of such a row is "", its split "invented".
    """
    found = []
    for n in range(copies):
        for row in (row for row in rows if row["split"].startswith("train")):
            rng = np.random.default_rng(zlib.crc32(f"{row['path']} {n}".encode()))
            change = float(rng.uniform(*CHANGE)) * (1 if rng.random() < 0.5 else -1)
            speed = round(math.exp(change), 3)
            name = {"id": f"{row.get('id', row['path'])}@{speed}", "speaker": "", "split": "invented"}
            found.append({**row, **name, "resampled": speed})
            if "duration" in row:
                found[-1]["duration"] = round(row["duration"] / speed, 3)
    return found


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file, without a last line that a kill cut short."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


class FeatureCache:
    """Random access by row number: `features(i)` (T, C) float32, `wav(i)` (T * 320,) float32, `rows[i]` the
    row.

    With `sound_only` the features, the greater part, are not read before they are asked for. CheckpointError
    for a folder that is not a cache, or one whose writing was cut short.
    """

    def __init__(self, path: str | Path, *, sound_only: bool = False) -> None:
        self._path = path = Path(path)
        absent = [name for name in (INDEX, FEATURES, AUDIO) if not (path / name).is_file()]
        if absent:
            raise CheckpointError(
                f"{path}: no feature cache ({', '.join(absent)} missing); make it: {COMMAND}"
            )
        self.rows = read_lines(path / INDEX)
        frames = sum(row["frames"] for row in self.rows)
        sizes = [(path / name).stat().st_size for name in (FEATURES, AUDIO)]
        if not frames or sizes[1] != frames * FRAME * 2 or sizes[0] % (frames * 2):
            raise CheckpointError(
                f"{path}: the cache is incomplete; finish it by the same command: {COMMAND}"
            )
        self._frames, self._audio = frames, np.fromfile(path / AUDIO, np.int16)
        if not sound_only:
            self.features(0)

    @cached_property
    def _features(self) -> np.ndarray:
        return np.memmap(self._path / FEATURES, np.float16, "r").reshape(self._frames, -1)

    @property
    def encoder(self) -> str:
        """Folder of the encoder that made the features; "" for a cache that does not say."""
        path = self._path / ENCODER
        return str(hub.read_json(path)["encoder"]) if path.is_file() else ""

    def __len__(self) -> int:
        return len(self.rows)

    def features(self, i: int) -> np.ndarray:
        """Encoder features of row i, (T, C) at 50 frames/s."""
        row = self.rows[i]
        return self._features[row["offset"] : row["offset"] + row["frames"]].astype(np.float32)

    def heard(
        self, i: int, degraded: FeatureCache | None, share: float, rng: np.random.Generator
    ) -> np.ndarray:
        """Features of row i; as often as `share` says, those of a degraded copy if there is one of it."""
        other = degraded if degraded and i < len(degraded) and rng.random() < share else self
        return other.features(i)

    def scaling(self, rows: Iterable[int]) -> tuple[Tensor, Tensor]:
        """By what the features of some rows are centred and scaled, (C, 1) each: mean, and 1 / deviation."""
        x = np.concatenate([self.features(i) for i in rows])
        return torch.from_numpy(x.mean(0))[:, None], torch.from_numpy(1 / x.std(0).clip(1e-3))[:, None]

    def wav(self, i: int, begin: int = 0, end: int | None = None) -> np.ndarray:
        """Samples of row i between two frames."""
        row = self.rows[i]
        end = row["frames"] if end is None else end
        part = self._audio[(row["offset"] + begin) * FRAME : (row["offset"] + end) * FRAME]
        return part.astype(np.float32) / 32767

    def pitch(self, i: int, begin: int = 0, end: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """f0 in Hz and voicing (0 or 1) of row i between two frames, (T,) each; see `gpa.codec.pitch`."""
        row = self.rows[i]
        end = row["frames"] if end is None else end
        part = self._pitch[row["offset"] + begin : row["offset"] + end].astype(np.float32)
        return np.abs(part), (part > 0).astype(np.float32)

    def measure_pitch(self) -> None:
        """Make sure that the pitch is there; minutes for ten hours of speech, once."""
        path = self._path / PITCH
        if path.is_file() and path.stat().st_size == self._frames * 2:
            return
        with disk.file_whole(path) as partial, partial.open("wb") as f:
            for i in tqdm(range(len(self.rows)), desc="pitch", dynamic_ncols=True):
                f0, voiced = yin(torch.from_numpy(self.wav(i))[None], FRAME)
                f.write(torch.where(voiced > 0, f0, -f0)[0].half().numpy().tobytes())

    @cached_property
    def _pitch(self) -> np.ndarray:  # f0 of every frame, negative where unvoiced
        self.measure_pitch()
        return np.fromfile(self._path / PITCH, np.float16)

    def degraded(self, path: str | Path) -> FeatureCache:
        """The cache of the same clips, degraded, with or without those invented; CheckpointError if it holds
        others.
        """
        other = FeatureCache(path)
        mine, theirs = ([(_clip(row), row["frames"]) for row in c.rows] for c in (self, other))
        recorded = sum("resampled" not in row for row in self.rows)  # these are first
        if len(theirs) not in (recorded, len(mine)) or mine[: len(theirs)] != theirs:
            raise CheckpointError(f"{path}: holds other clips than {self._path}")
        return other

    def select(self, splits: tuple[str, ...]) -> Iterator[int]:
        """Row numbers of the given splits."""
        return (i for i, row in enumerate(self.rows) if row["split"] in splits)


def main(argv: list[str] | None = None) -> None:
    """`python -m gpa.data.feature_cache MANIFEST --encoder DIR -o CACHE`."""
    parser = argparse.ArgumentParser(prog="python -m gpa.data.feature_cache", description=write.__doc__)
    parser.add_argument(
        "manifest",
        type=Path,
        help="JSONL: path, text, speaker, split, ... per clip; paths relative to its folder",
    )
    parser.add_argument(
        "--encoder",
        type=Path,
        required=True,
        help="folder of a Whisper encoder (config.json, model.safetensors)",
    )
    parser.add_argument("--invented", type=int, default=0, metavar="N",
        help="training clips N times more, at other speeds: voices of nobody, for a codec")  # fmt: skip
    parser.add_argument("--degraded", action="store_true", help="as others would be heard: for data.degraded")
    parser.add_argument("--noise", default="", help="folder of noise with a manifest.json, with --degraded")
    parser.add_argument("--rooms", default="", help="folder of impulse responses, with --degraded")
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args(argv)
    rows = [json.loads(line) for line in args.manifest.read_text().splitlines()]
    if args.invented < 0:
        raise UsageError(f"--invented {args.invented}: 0 or more copies")
    rows += invented(rows, args.invented)
    features = load_whisper_features(args.encoder)
    copy = AugmentedCopies(features, args.noise, args.rooms) if args.degraded else None
    write(rows, args.manifest.parent, features, args.out, copy)
    disk.write_text(args.out / ENCODER, json.dumps({"encoder": str(args.encoder.resolve())}) + "\n")


if __name__ == "__main__":
    main()
