"""Where a run can be watched beside metrics.jsonl: TensorBoard, trackio or Weights & Biases.

A backend has three methods. `Tracker` holds one, and no run is lost to it: what a backend raises is one
warning, and from there on it is left alone.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gpa.errors import MissingExtraError

if TYPE_CHECKING:
    from gpa.train.samples import Sample

log = logging.getLogger(__name__)
EXTRAS = {"tensorboard": "train", "trackio": "trackio", "wandb": "wandb"}  # package -> extra that brings it
TRACKERS = ("none", *EXTRAS)


class Backend(Protocol):
    """What a tracker can be told."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Metrics of a step by name."""
        ...

    def media(self, step: int, samples: Sequence[Sample]) -> None:
        """What the model said at a step; its files are there."""
        ...

    def close(self) -> None:
        """The run is over, or stops for now."""
        ...


class Tracker:
    """A backend, or none, that never stops a run: after an error it is told nothing more."""

    def __init__(self, name: str = "none", run: Path = Path(), start: int = 0) -> None:
        """`start` is the step that the run resumes from: what a tracker has of later ones is void."""
        self.name = name
        self._backend: Backend | None = None
        if name != "none":
            self._try(lambda: setattr(self, "_backend", _BACKENDS[name](run.resolve(), start)))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Metrics of a step by name."""
        if (backend := self._backend) is not None:
            self._try(lambda: backend.scalars(step, values))

    def media(self, step: int, samples: Sequence[Sample]) -> None:
        """What the model said at a step."""
        if (backend := self._backend) is not None:
            self._try(lambda: backend.media(step, samples))

    def close(self) -> None:
        """Let the backend write what it still holds."""
        if (backend := self._backend) is not None:
            self._try(backend.close)
        self._backend = None

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001 (somebody else's program and network, of any error)
            self._backend = None
            why = (str(error).splitlines() or [type(error).__name__])[0]
            log.warning("train.tracker=%s gave up, the run goes on without it: %s", self.name, why)


def check(name: str) -> None:
    """MissingExtraError for a tracker that is not installed."""
    if name != "none" and importlib.util.find_spec(name) is None:
        raise MissingExtraError(name, EXTRAS[name])


class _TensorBoard:
    """Event files in RUN/tensorboard; events beyond the step of a resume are hidden."""

    def __init__(self, run: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run / "tensorboard"), purge_step=start)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def media(self, step: int, samples: Sequence[Sample]) -> None:
        from matplotlib.image import imread

        for each in samples:
            self.writer.add_audio(each.name, each.wav[None], step, each.rate)
            picture = imread(str(each.spectrogram))[..., :3]
            self.writer.add_image(f"{each.name}/spectrogram", picture, step, dataformats="HWC")
            self.writer.add_text(f"{each.name}/text", each.caption, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class _Logged:
    """trackio and Weights & Biases: modules of one surface (`init`, `log`, `Audio`, `Image`)."""

    def __init__(self, module: Any, run: Any) -> None:
        self.module, self.run = module, run

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def media(self, step: int, samples: Sequence[Sample]) -> None:
        made: dict[str, Any] = {}
        for each in samples:
            made[each.name] = self.module.Audio(str(each.sound), caption=each.caption)
            made[f"{each.name}/spectrogram"] = self.module.Image(str(each.spectrogram), caption=each.caption)
        self.run.log(made, step=step)

    def close(self) -> None:
        self.run.finish()


def _trackio(run: Path, start: int) -> Backend:
    import trackio

    return _Logged(trackio, trackio.init(project="gpa", name=run.name, resume="allow", embed=False))


def _wandb(run: Path, start: int) -> Backend:
    import wandb

    limits = wandb.Settings(init_timeout=30, finish_timeout=60, silent=True)
    dir_ = str(run)
    return _Logged(wandb, wandb.init(project="gpa", name=run.name, dir=dir_, settings=limits))


_BACKENDS: dict[str, Callable[[Path, int], Backend]] = {
    "tensorboard": _TensorBoard,
    "trackio": _trackio,
    "wandb": _wandb,
}
