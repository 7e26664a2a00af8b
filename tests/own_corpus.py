"""Two minutes of speech that lie in a clone: what gpa-mini's codec makes of stored ids."""

import json
from collections.abc import Collection
from pathlib import Path

import torch

from gpa import GPA
from gpa.audio import save

SENTENCES = Path(__file__).parent / "assets" / "two-minutes.json"


def write_corpus(folder: Path, only: Collection[str] = ()) -> float:
    """Write SPLIT/SPEAKER/NN.wav with its .txt, all of them or the ids of `only`; returns the seconds."""
    mini, seconds = GPA.from_pretrained("gpa-mini", device="cpu"), 0.0
    for row in json.loads(SENTENCES.read_text(encoding="utf-8")):
        if only and row["id"] not in only:
            continue
        path = folder / f"{row['id']}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        with torch.inference_mode():
            wav = mini.codec.decode(row["semantic"], mini.voices[row["voice"]].codes)
        save(path, wav, mini.sample_rate)
        path.with_suffix(".txt").write_text(row["text"], encoding="utf-8")
        seconds += len(wav) / mini.sample_rate
    return seconds
