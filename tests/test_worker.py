"""The server's thread: many works on one engine, each alone in its results, its errors and its end."""

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gpa.engine.scheduler import Engine
from gpa.errors import PromptError
from gpa.models.gpa import GPA
from gpa.models.gpa.options_gpa import SpeechOptions, TranscriptOptions
from gpa.serve import worker as serving
from gpa.serve.worker import Job, Worker

RATE = 16000
BRIEF: SpeechOptions = {"max_new_tokens": 12}


@pytest.fixture(scope="module")
def model(tiny: Path) -> GPA:
    return GPA.from_pretrained(tiny, device="cpu", threads=1)


@pytest.fixture
def worker(model: GPA) -> Iterator[Worker]:
    worker = Worker(model.engine())
    worker.start()
    yield worker
    assert worker.stop(10)


def speak(model: GPA, worker: Worker, text: str, seed: int = 0):
    voice, options = model.resolve_voice("anna"), SpeechOptions(**BRIEF, seed=seed, temperature=0.7)
    return worker.submit(lambda engine: model.utterance(engine, text, voice, options))


async def sound(job: Job) -> np.ndarray:
    return np.concatenate([chunk.wav async for chunk in job])


def test_results_are_those_of_the_work_alone(model: GPA, worker: Worker) -> None:
    """Texts, a recording that is there and one that is fed as it comes, all at once."""
    wav = np.random.default_rng(0).normal(0, 0.1, 5 * RATE).astype(np.float32)
    brief: TranscriptOptions = {"max_new_tokens": 8}

    async def everything():
        texts = [await speak(model, worker, f"number {n}", n) for n in range(6)]
        there = await worker.submit(lambda engine: model.recognition(engine, brief), iter(np.split(wav, 5)))
        live = await worker.submit(lambda engine: model.recognition(engine, brief), live=True)

        async def write(job: Job) -> str:
            return "".join([partial.text async for partial in job])

        async def talk() -> None:
            for block in np.split(wav, 50):
                live.feed(block)
                await asyncio.sleep(0.001)
            live.close()

        spoken = asyncio.gather(*map(sound, texts))
        return await asyncio.gather(spoken, write(there), write(live), talk())

    spoken, there, live, _ = asyncio.run(everything())
    for n, made in enumerate(spoken):
        alone = model.tts(f"number {n}", "anna", seed=n, temperature=0.7, **BRIEF)
        assert np.array_equal(made, alone.wav)
    assert there == live == model.asr((wav, RATE), **brief).text
    assert not worker.jobs and not worker.engine.busy


def test_what_cannot_be_done_is_told_to_who_asked(model: GPA, worker: Worker) -> None:
    """At once where the request is refused, later where a source breaks; the others go on."""

    def broken() -> Iterator[np.ndarray]:
        yield np.zeros(RATE, np.float32)
        raise OSError("the disk is gone")

    async def everything():
        good = await speak(model, worker, "hello there")
        with pytest.raises(PromptError):
            await speak(model, worker, "...")
        bad = await worker.submit(lambda engine: model.recognition(engine, {}), broken())
        with pytest.raises(OSError, match="the disk is gone"):
            [each async for each in bad]
        return await sound(good)

    assert len(asyncio.run(everything())) and not worker.jobs


def test_who_goes_away_leaves_nothing(model: GPA, worker: Worker) -> None:
    async def everything() -> None:
        for n in range(30):
            job = await speak(model, worker, "one two three. four five six.", n)
            if n % 3:
                async for _ in job:
                    break
            job.cancel()
        for _ in range(100):
            if not worker.jobs:
                return
            await asyncio.sleep(0.05)

    asyncio.run(everything())
    engine = worker.engine
    assert isinstance(engine, Engine) and not worker.jobs and not engine.busy and engine.cache.used == 0


def test_a_slow_reader_holds_up_its_own_work_alone(
    model: GPA, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "UNREAD", 3)
    text = " ".join(f"this is sentence {n}." for n in range(40))

    async def everything():
        slow = await speak(model, worker, text)
        quick = await sound(await speak(model, worker, "hello there"))
        for _ in range(200):
            if not worker.engine.busy:
                break
            await asyncio.sleep(0.05)
        waiting = slow._results.qsize()
        return waiting, quick, await sound(slow)

    waiting, quick, slow = asyncio.run(everything())
    assert waiting < 3 + 12, "what is made for somebody who does not read is bounded"
    assert len(quick) and np.array_equal(slow, model.tts(text, "anna", temperature=0.7, **BRIEF).wav)


def test_the_loop_never_computes_and_the_end_is_told(model: GPA) -> None:
    worker, threads = Worker(model.engine()), set()
    step = worker.engine.step

    def noted():
        threads.add(threading.current_thread().name)
        time.sleep(0.01)
        return step()

    worker.engine.step = noted  # type: ignore[method-assign]
    worker.start()

    async def everything() -> None:
        job = await speak(model, worker, "one two three. " * 400)
        async for _ in job:
            worker.tell(lambda: None)
            asyncio.get_running_loop().run_in_executor(None, worker.stop)

    with pytest.raises(Exception, match="the server stops"):
        asyncio.run(everything())
    assert threads == {"gpa-worker"} and not worker.alive
