"""Where a run can be watched beside metrics.jsonl: TensorBoard, trackio or Weights & Biases.

A backend has three methods. `Tracker` holds one, and no run is lost to it: what a backend raises is one
warning, and from there on it is left alone. RUN/tracker.json keeps which run of a backend this is and how far
it was told, so a resumed run goes on in it.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gpa import disk
from gpa.errors import MissingExtraError

if TYPE_CHECKING:
    from gpa.train.samples import Sample

log = logging.getLogger(__name__)
EXTRAS = {"tensorboard": "train", "trackio": "trackio", "wandb": "wandb"}  # package -> extra that brings it
STATE = "tracker.json"


class Backend(Protocol):
    """What a tracker can be told; `id` is what its package calls the run."""

    id: str

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
        """`start` is the step that the run resumes from."""
        self.name, self._path = name, run / STATE
        self._backend: Backend | None = None
        self._step, self._names = 0, set[str]()  # how far the backend was told, and what of that step
        if name != "none":
            self._try(lambda: self._open(run.resolve(), start))

    def _open(self, run: Path, start: int) -> None:
        before = self._states().get(self.name, {}) if start else {}
        self._backend = _BACKENDS[self.name](run, start, before.get("id", ""))
        if before and before["id"] == self._backend.id:
            self._step, self._names = before["step"], set(before["names"])
        if self.name == _TensorBoard.id:  # forgets what comes after the start
            self._step, self._names = min(
                (self._step, self._names), (start + 1, set()), key=lambda told: told[0]
            )

    def _states(self) -> dict[str, Any]:
        return json.loads(self._path.read_text(encoding="utf-8")) if self._path.is_file() else {}

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Metrics of a step by name; what the backend was told before a resume it is not told again."""
        new = {name: value for name, value in values.items() if self._new(step, name)}
        self._tell(step, new, lambda backend: backend.scalars(step, new))

    def media(self, step: int, samples: Sequence[Sample]) -> None:
        """What the model said at a step, likewise."""
        new = [each for each in samples if self._new(step, each.name)]
        self._tell(step, [each.name for each in new], lambda backend: backend.media(step, new))

    def _new(self, step: int, name: str) -> bool:
        return step > self._step or (step == self._step and name not in self._names)

    def _tell(self, step: int, names: Iterable[str], act: Callable[[Backend], None]) -> None:
        if (backend := self._backend) is None or not (told := set(names)):
            return

        def tell() -> None:
            act(backend)
            self._names = told | (self._names if step == self._step else set())
            self._step = step
            state = {"id": backend.id, "step": step, "names": sorted(self._names)}
            disk.write_text(self._path, json.dumps(self._states() | {self.name: state}) + "\n")

        self._try(tell)

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

    id = "tensorboard"

    def __init__(self, run: Path, start: int, known: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run / "tensorboard"), purge_step=start + 1)

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

    def __init__(self, module: Any, run: Any, id_: str) -> None:
        self.module, self.run, self.id = module, run, id_

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


def _trackio(run: Path, start: int, known: str) -> Backend:
    import trackio

    name = known or f"{run.name}-{uuid.uuid4().hex[:6]}"  # trackio resumes the newest run of a name, whosever
    return _Logged(trackio, trackio.init(project="gpa", name=name, resume="allow", embed=False), name)


def _wandb(run: Path, start: int, known: str) -> Backend:
    import wandb

    limits = wandb.Settings(init_timeout=30, finish_timeout=60, silent=True)
    again: dict[str, Any] = {"id": known, "resume": "allow"} if known else {}
    made = wandb.init(project="gpa", name=run.name, dir=str(run), settings=limits, **again)
    return _Logged(wandb, made, made.id)


_BACKENDS: dict[str, Callable[[Path, int, str], Backend]] = {
    "tensorboard": _TensorBoard,
    "trackio": _trackio,
    "wandb": _wandb,
}
