"""The codec's training cache: one clip's feature-encoder output and waveform, in two flat files.

Written once by `write` (resumable per clip), read at random by `FeatureCache`. Rows are the manifest's, in its order.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from gpa import audio
from gpa.codec.features import FRAME, WhisperFeatures, load_whisper_features

FEATURES, AUDIO, INDEX = "features.f16", "audio.i16", "index.jsonl"


def write(rows: list[dict[str, Any]], root: Path, features: WhisperFeatures, out: Path) -> None:
    """Append the clips that `out` does not hold yet; a partial last clip of a killed run is overwritten."""
    out.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in (out / INDEX).read_text().splitlines() if line.endswith("}")] if (out / INDEX).exists() else []
    frames = sum(row["frames"] for row in done)
    with (out / FEATURES).open("ab") as f, (out / AUDIO).open("ab") as a, (out / INDEX).open("w") as index:
        f.truncate(frames * features.channels * 2)
        a.truncate(frames * FRAME * 2)
        index.writelines(json.dumps(row) + "\n" for row in done)
        for row in tqdm(rows[len(done) :], initial=len(done), total=len(rows), desc="features", dynamic_ncols=True):
            wav = audio.load(root / row["path"])
            wav = np.pad(wav, (0, -len(wav) % (2 * FRAME)))
            with torch.inference_mode():
                states = features(torch.from_numpy(wav)[None])[0].T  # (T, C)
            f.write(states.half().numpy().tobytes())
            a.write((wav.clip(-1, 1) * 32767).astype(np.int16).tobytes())
            f.flush(), a.flush()
            index.write(json.dumps({**row, "frames": len(states), "offset": frames}) + "\n")
            index.flush()
            frames += len(states)


class FeatureCache:
    """Random access by row number: `features(i)` (T, C) float32, `wav(i)` (T * 320,) float32, `rows[i]` the manifest row."""

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in (path / INDEX).read_text().splitlines()]
        frames = sum(row["frames"] for row in self.rows)
        # Read whole (0.37 GB an hour): random access through a memory map stalled for a minute at a time where pages were reclaimed.
        self._features = np.fromfile(path / FEATURES, np.float16).reshape(frames, -1)
        self._audio = np.fromfile(path / AUDIO, np.int16)

    def __len__(self) -> int:
        return len(self.rows)

    def features(self, i: int) -> np.ndarray:
        """Encoder features of row i, (T, C) at 50 frames/s."""
        row = self.rows[i]
        return self._features[row["offset"] : row["offset"] + row["frames"]].astype(np.float32)

    def wav(self, i: int, begin: int = 0, end: int | None = None) -> np.ndarray:
        """Samples of row i between two frames."""
        row = self.rows[i]
        end = row["frames"] if end is None else end
        part = self._audio[(row["offset"] + begin) * FRAME : (row["offset"] + end) * FRAME]
        return part.astype(np.float32) / 32767

    def select(self, splits: tuple[str, ...]) -> Iterator[int]:
        """Row numbers of the given splits."""
        return (i for i, row in enumerate(self.rows) if row["split"] in splits)


def main(argv: list[str] | None = None) -> None:
    """`python -m gpa.data.features MANIFEST --encoder DIR -o CACHE`."""
    parser = argparse.ArgumentParser(prog="python -m gpa.data.features", description=write.__doc__)
    parser.add_argument("manifest", type=Path, help="JSONL: path, text, speaker, split, ... per clip; paths relative to its folder")
    parser.add_argument("--encoder", type=Path, required=True, help="folder of a Whisper encoder (config.json, model.safetensors)")
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args(argv)
    rows = [json.loads(line) for line in args.manifest.read_text().splitlines()]
    write(rows, args.manifest.parent, load_whisper_features(args.encoder), args.out)


if __name__ == "__main__":
    main()
