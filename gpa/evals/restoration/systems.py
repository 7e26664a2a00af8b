"""The rows of the table and of the sweep: each makes one sound, or text, of one degraded clip.

Knows the public API of SpeechOp and nothing of judges; what else is measured is the same for all rows.

    S samples at 16 kHz, float32
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from gpa.compose import Guided, Plan, given, tc_avg
from gpa.errors import AudioWarning, MissingExtraError
from gpa.evals.measurement import SAMPLE_RATE, Bench, Case, Made, Suite

if TYPE_CHECKING:
    from gpa.evals.report import Item
    from gpa.evals.restoration.distance import Rating
    from gpa.evals.restoration.noisy_clips import NoisyClips
    from gpa.models.speechop.outputs_speechop import Sound
    from gpa.models.speechop.pipeline_speechop import SpeechOp

CLEAN, CODEC, NOISY, GATING = "floor", "codec", "noisy", "gating"
ALONE, BASE, AVERAGE, GOLD, ITC = "alone", "base", "tc-avg", "tc-cfg", "itc"
USUAL = "usual"  # what `gpa enhance` does unless it is told otherwise
FILTERED = {row: f"{row}-filtered" for row in (ALONE, GOLD, ITC)}
HEARD, SAME = "transcript", "gamma-0"  # not in the table: our recogniser's text; whether gamma 0 is `alone`
GAMMA = 1.5  # the paper's, for a text that is right
GAMMAS, STEPS, SHARES = (0.0, 0.5, 0.75, 1.0, 1.5, 3.0), (8, 16, 32, 64), (0.3, 0.5, 0.7)


@dataclass
class Scene:
    """What the rows of a run share. `heard` is what the recogniser understood of a clip, by its id."""

    bench: Bench
    op: SpeechOp
    recogniser: Any
    degrade: NoisyClips
    steps: int
    ratings: Mapping[str, Rating] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)  # ratings that are not installed, and why
    heard: dict[str, Item] = field(default_factory=dict)
    made: Made | None = None  # by the row that was asked last


Make = Callable[[Scene, Case, np.ndarray], Made]  # of a degraded clip (S,)


@dataclass(frozen=True)
class Row:
    """One row: `name` is that of its file and in the report, `most` how many clips it takes (0: all)."""

    name: str
    title: str
    make: Make
    reads: bool = False
    most: int = 0
    missing: Callable[[], str] = lambda: ""

    def suite(self, scene: Scene) -> Suite:
        """As the evaluation takes it; what was made is left in the scene for further ratings."""

        def make(bench: Bench, case: Case, wav: np.ndarray) -> Made:
            scene.made = None
            noisy = wav if self.name in (CLEAN, CODEC) else scene.degrade(wav, case.id)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", AudioWarning)  # noise is loud, and may be all that is heard
                scene.made = self.make(scene, case, noisy)
            return scene.made

        return Suite(self.title, lambda bench, n: [], make, reads=self.reads)


def table_rows(scene: Scene) -> list[Row]:
    """The rows of the main table, in its order, and the two beside it."""
    compose = scene.op.config.compose
    share, base = compose.avg_weight, compose.base_guidance
    rows = [
        Row(CLEAN, "clean", lambda scene, case, wav: Made(wav)),
        Row(CODEC, "codec", _codec),
        Row(NOISY, "noisy", lambda scene, case, wav: Made(wav)),
        Row(GATING, "spectral gating", _gated, missing=_no_gating),
        Row(HEARD, "transcript", _transcribed, reads=True),
        Row(ALONE, "alone", alone()),
        Row(AVERAGE, f"TC-Avg {share:g}", averaged(share)),
        Row(GOLD, f"TC-CFG {GAMMA:g} gold", guided(GAMMA)),
        Row(ITC, f"ITC {compose.gamma_asr:g}", itc()),
        Row(USUAL, "gpa enhance", _usual),
        Row(FILTERED[ALONE], "alone, filtered", alone(filtered=True)),
        Row(FILTERED[GOLD], f"TC-CFG {GAMMA:g} gold, filtered", guided(GAMMA, filtered=True)),
        Row(FILTERED[ITC], f"ITC {compose.gamma_asr:g}, filtered", itc(filtered=True)),
        Row(SAME, "gamma 0", _same, most=2),
    ]
    if compose.guidance_s2s != base:  # what composition starts from is then another sampler than `alone`
        rows.insert(6, Row(BASE, f"alone, guidance {base:g}", _base))
    return rows


def sweep_rows(scene: Scene) -> list[Row]:
    """The points of the sweep that are not rows of the table."""
    known = {GAMMA, 0.0}
    rows = [Row(gamma_row(g), f"TC-CFG {g:g}", guided(g)) for g in GAMMAS if g not in known]
    rows += [Row(steps_row(k), f"{k} steps", guided(GAMMA, k)) for k in STEPS if k != scene.steps]
    usual = scene.op.config.compose.avg_weight
    return rows + [Row(share_row(a), f"TC-Avg {a:g}", averaged(a)) for a in SHARES if a != usual]


def warming() -> Row:
    """One step, which nobody measures."""
    return Row("warming", "warming up", guided(GAMMA, 1))


def gamma_row(gamma: float) -> str:
    """The row that a strength is measured in."""
    return {0.0: ALONE, GAMMA: GOLD}.get(gamma, f"gamma-{gamma:g}")


def steps_row(steps: int, usual: int = 0) -> str:
    """The row that a number of steps is measured in, `usual` being that of the table."""
    return GOLD if steps == usual else f"steps-{steps}"


def share_row(share: float, usual: float | None = None) -> str:
    """The row that a share of TC-Avg is measured in, `usual` being that of the table."""
    return AVERAGE if share == usual else f"share-{share:g}"


def names(rows: Sequence[Row]) -> list[str]:
    """Names of rows."""
    return [row.name for row in rows]


# How rows are made -----------------------------------------------------------------------------------------


def _codec(scene: Scene, case: Case, wav: np.ndarray) -> Made:
    """The clip through the latent codec, at the level the network works at."""
    front = scene.op.front
    heard = front.hear((wav, SAMPLE_RATE), "the clip")
    return Made(front.decode(heard.latents, heard.gain, len(heard.wav)), front.sample_rate)


def _noisereduce() -> Any:
    try:
        import noisereduce
    except ImportError as error:
        raise MissingExtraError("noisereduce (pip install noisereduce)", "eval") from error
    return noisereduce


def _no_gating() -> str:
    try:
        _noisereduce()
    except MissingExtraError as error:
        return str(error)
    return ""


def _gated(scene: Scene, case: Case, wav: np.ndarray) -> Made:
    """noisereduce with its defaults: non-stationary spectral gating."""
    return Made(np.asarray(_noisereduce().reduce_noise(y=wav, sr=SAMPLE_RATE), np.float32))


def _transcribed(scene: Scene, case: Case, wav: np.ndarray) -> Made:
    listen = getattr(scene.recogniser, "asr", None)
    if listen is None:
        return Made(text=scene.recogniser(wav))
    return Made(text=listen((wav, SAMPLE_RATE)).text)


def _sound(sound: Sound) -> Made:
    return Made(sound.wav, sound.sample_rate, values={"evaluations": sound.evaluated})


def _enhanced(scene: Scene, wav: np.ndarray, text: str | None, steps: int = 0, **more: Any) -> Sound:
    """What the network draws, or with `filtered` the recording itself, filtered by that."""
    settings = {
        "steps": steps or scene.steps,
        "seed": scene.bench.seed,
        "filtered": False,
        "strong": True,
        **more,
    }
    return scene.op.enhance((wav, SAMPLE_RATE), text, **settings)


def _usual(scene: Scene, case: Case, wav: np.ndarray) -> Made:
    """As a user has it who gives no option."""
    return _sound(scene.op.enhance((wav, SAMPLE_RATE), steps=scene.steps, seed=scene.bench.seed))


def alone(filtered: bool = False) -> Make:
    """Without a text."""
    return lambda scene, case, wav: _sound(_enhanced(scene, wav, None, filtered=filtered))


def guided(gamma: float, steps: int = 0, filtered: bool = False) -> Make:
    """TC-CFG by the true transcript; 0 steps are the usual number."""
    more = {"gamma": gamma, "filtered": filtered}
    return lambda scene, case, wav: _sound(_enhanced(scene, wav, case.text, steps, **more))


def itc(filtered: bool = False) -> Make:
    """ITC as a user has it, by the transcript that was measured; a clip without one goes without."""

    def make(scene: Scene, case: Case, wav: np.ndarray) -> Made:
        text = scene.heard[case.id].heard or ""
        return _sound(_enhanced(scene, wav, "asr", recogniser=lambda wav: text, filtered=filtered))

    return make


def _same(scene: Scene, case: Case, wav: np.ndarray) -> Made:
    """Whether gamma 0 gives the samples of no text, bit for bit."""
    alone, zero = _enhanced(scene, wav, None), _enhanced(scene, wav, case.text, gamma=0)
    return Made(zero.wav, zero.sample_rate, values={"identical": float(np.array_equal(alone.wav, zero.wav))})


def _composed(scene: Scene, case: Case, wav: np.ndarray, plan: Plan) -> Made:
    texts, sources = {"words": case.text}, {"source": (wav, SAMPLE_RATE)}
    steps, seed = scene.steps, scene.bench.seed
    return _sound(scene.op.compose(plan, texts=texts, sources=sources, steps=steps, seed=seed))


def _guided_base(scene: Scene) -> Guided:
    """Enhancement as it enters a composition."""
    return Guided("enhance", given(source="source"), scale=scene.op.config.compose.base_guidance)


def averaged(share: float) -> Make:
    """TC-Avg by the true transcript."""
    return lambda scene, case, wav: _composed(scene, case, wav, tc_avg(_guided_base(scene), "words", share))


def _base(scene: Scene, case: Case, wav: np.ndarray) -> Made:
    return _composed(scene, case, wav, Plan(_guided_base(scene)))
