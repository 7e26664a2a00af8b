"""Random requests of every route, such as the OpenAPI schema allows and such as it does not.

Schemathesis makes them and compares what is answered with what the schema promises: no 5xx, and a status, a
media type, headers and a shape that are documented. The application runs in this process.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import functools
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.transport.serialization import Binary

from conftest import speechlike
from gpa import audio
from gpa.models.gpa import GPA
from gpa.serve.app import create_app
from gpa.serve.settings import Settings
from tiny_model import write_tiny_model
from tiny_speechop import tiny_speechop


def no_fault(_: Any, answer: Any, case: Any) -> None:
    """A model that was never trained fails to speak now and then; that alone is not the client's fault."""
    assert answer.status_code < 500 or answer.json()["error"]["code"] == "generation_failed", answer.text


CHECKS = [
    *(no_fault, status_code_conformance, content_type_conformance),
    *(response_headers_conformance, response_schema_conformance),
]
SECONDS = 20.0  # that a request may take
OPERATIONS = [
    (method, path) for path, methods in create_app().openapi()["paths"].items() for method in methods
]
TEXTS = ("hello there", "one. two. three.")
VOICES = ("anna", "ben", "alloy", "nobody")
NEW = ("zoe", "kim")  # voices that are registered now and then, and deleted
SOUND = [audio.to_bytes(speechlike(seconds, seed=1), 16000) for seconds in (0.05, 0.6, 1.2)]
URLS = [f"data:audio/wav;base64,{base64.b64encode(sound).decode()}" for sound in SOUND]


def _load() -> Any:
    folder = Path(tempfile.mkdtemp(prefix="gpa-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return GPA.from_pretrained(write_tiny_model(folder / "made"), device="cpu", threads=1), tiny_speechop()


@functools.cache
def application() -> Any:
    """One whose model is there, until the process ends. Bounds are small."""
    app = create_app(_load, Settings(audio_seconds=20, text_characters=500, upload_bytes=1 << 20))
    life = contextlib.ExitStack()
    life.enter_context(TestClient(app))
    atexit.register(life.close)
    while not app.state.service:
        assert not app.state.error, app.state.error
        time.sleep(0.01)
    return app


@functools.cache
def served() -> Any:
    """The schema of the application."""
    schemathesis.openapi.format("binary", st.one_of(st.sampled_from(SOUND), st.binary()).map(Binary))
    app = application()

    async def alive(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":  # which Schemathesis ends with a test of pytest's
            await app(scope, receive, send)

    return schemathesis.openapi.from_asgi("/openapi.json", alive)


def sensible(draw: Any, case: Any) -> None:
    """Values that random ones hardly ever hit: a voice that there is, words, sound, the model's name."""
    body = case.body if isinstance(case.body, dict) else {}
    choices = {"voice": VOICES, "voice_id": VOICES, "model": ("tiny",), "input": TEXTS, "text": TEXTS}
    choices |= {"name": NEW if body else (*NEW, "anna", "tiny")}
    choices |= {"output_format": ("mp3_44100_128", "pcm_16000", "wav_8000")}
    choices |= dict.fromkeys(("file", "audio", "src_audio", "ref_audio", "audio_sample", "recording"), SOUND)
    choices |= {"ref_audio": URLS} if case.media_type == "application/json" else {}
    if "consent_id" in (case.path_parameters or {}):
        consents = application().state.service.voices
        choices |= {"consent_id": (consents.add_consent("zoe", "en", SOUND[0])["id"],)}
    for part in (body, case.path_parameters or {}, case.query or {}):
        for name in part.keys() & choices.keys():
            part[name] = draw(st.sampled_from(choices[name]))


def conforms(method: str, path: str, seed: int, examples: int) -> Counter[int]:
    """So many requests of an operation, half of them not as its schema says; how often which status came."""
    statuses: Counter[int] = Counter()
    operation = served()[path][method.upper()]
    form = operation.body and operation.body[0].media_type == "multipart/form-data"
    checks = CHECKS if form else [*CHECKS, negative_data_rejection]  # an array in a form is a field, twice
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=-(-examples // 2), deadline=None, database=None,
            suppress_health_check=list(HealthCheck), phases=[hypothesis.Phase.generate],
        )  # fmt: skip
        @hypothesis.given(st.data(), operation.as_strategy(mode))
        def ask(data: Any, case: Any) -> None:
            if case.meta.generation.mode == GenerationMode.POSITIVE and data.draw(st.booleans()):
                sensible(data.draw, case)
            begun = time.monotonic()
            answer = case.call_and_validate(checks=checks)
            assert time.monotonic() - begun < SECONDS, "took too long"
            statuses[answer.status_code] += 1

        try:
            ask()
        except hypothesis.errors.Unsatisfiable:  # nothing is wrong for this route
            pass
    return statuses


def trial(random: np.random.Generator, folder: Path) -> bool:
    """Some requests of one route."""
    method, path = OPERATIONS[random.integers(len(OPERATIONS))]
    statuses = conforms(method, path, int(random.integers(1 << 31)), 6)
    return 200 in statuses
