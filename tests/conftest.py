"""What many tests start from: one second of sound, in memory and as a file, and the repository root."""

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

RATE = 16000


def pytest_configure() -> None:
    """Commands that tests start can be interrupted, also where the tests run under nohup or behind `&`."""
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def speechlike(seconds: float = 1.0, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """Return float32 (S,): a voiced buzz with a moving pitch, syllables and a little noise, peak 0.6."""
    random = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * np.cumsum(110 + 30 * np.sin(2 * np.pi * 1.3 * t)) / rate
    buzz = sum(np.sin(k * phase) / k for k in range(1, 12))
    syllables = np.clip(np.sin(2 * np.pi * 2.1 * t) + 0.4, 0.02, None)
    wav = buzz * syllables + 0.01 * random.standard_normal(len(t))
    return (0.6 * wav / np.abs(wav).max()).astype(np.float32)


@pytest.fixture(scope="session")
def second() -> np.ndarray:
    """One second of speech-like sound, float32 (16000,), exact in 16 bits: files return it unchanged."""
    return (np.round(speechlike() * 32768) / 32768).astype(np.float32)


@pytest.fixture
def wav_file(tmp_path: Path, second: np.ndarray) -> Path:
    """The same second as a 16-bit WAV file."""
    path = tmp_path / "second.wav"
    soundfile.write(path, (second * 32768).astype(np.int16), RATE)
    return path


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the repository."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny random model of our own kind, with voices anna and ben; read only."""
    from tiny_model import write_tiny_model  # loads torch, which many tests do without

    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the published checkpoint's replica, golden outputs included; read only."""
    from published import write_replica

    return write_replica(tmp_path_factory.mktemp("published-tiny"))


@pytest.fixture
def threads_kept() -> Iterator[None]:
    """The number of torch's threads is afterwards what it was; asked for by name, as it loads torch."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
