"""What is measured between a sound and the clean recording it should be: MCD, PESQ, STOI.

Pure functions of two waveforms; PESQ and STOI where their packages are installed. docs/bench.md.

    S samples at 16 kHz, float32   T frames   M mel bands
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache

import numpy as np

from gpa.errors import MissingExtraError, UsageError
from gpa.nn.mel import mel_filters

RATE = 16_000
WINDOW, HOP, FFT, MELS = 400, 160, 512, 40  # 25 ms every 10 ms
CEPSTRA = 13
FLOOR_DB = 60.0  # below a sound's own loudest band; what is quieter counts as that quiet
PESQ_RANGE = (1.0, 4.65)

Rating = Callable[[np.ndarray, np.ndarray], "float | None"]  # (clean, made) -> number, None if it has none


def mel_cepstra(wav: np.ndarray) -> np.ndarray:
    """Mel cepstra 1 to 13, (T, 13), of (S,): the cosine series of the log amplitude of mel bands.

    log amplitude at band k is about c_0 + sum_m c_m cos(pi m (k + 1/2) / M). c_0, the level, is left out.
    """
    window = np.hanning(WINDOW + 1)[:-1]
    padded = np.pad(np.asarray(wav, np.float64), (0, max(0, WINDOW - len(wav))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]  # (T, WINDOW)
    amplitude = np.abs(np.fft.rfft(frames * window, FFT)) @ _filters()  # (T, M)
    floor = max(float(amplitude.max()) * 10 ** (-FLOOR_DB / 20), 1e-10)
    return np.log(np.maximum(amplitude, floor)) @ _cosines()


def mel_cepstral_distortion(clean: np.ndarray, made: np.ndarray) -> float:
    """Mel-cepstral distortion in dB of two sounds (S,) frame by frame, without warping.

    (10 / ln 10) sqrt(2) mean_t ||c_t - c'_t||, the RMS distance of the smoothed spectra in dB. It knows no
    level. UsageError for lengths that differ.
    """
    if len(clean) != len(made):
        raise UsageError(
            f"sounds of {len(clean)} and {len(made)} samples: MCD without warping needs equal ones"
        )
    gap = np.linalg.norm(mel_cepstra(clean) - mel_cepstra(made), axis=1)  # (T,)
    return float(10 / np.log(10) * np.sqrt(2) * gap.mean())


@cache
def _filters() -> np.ndarray:  # (FFT / 2 + 1, M)
    return mel_filters(FFT // 2 + 1, MELS, 0.0, RATE / 2, RATE, slaney=False)


@cache
def _cosines() -> np.ndarray:  # (M, CEPSTRA)
    bands, order = np.arange(MELS) + 0.5, np.arange(1, CEPSTRA + 1)
    return 2 / MELS * np.cos(np.pi * np.outer(bands, order) / MELS)


# Packages that may be there --------------------------------------------------------------------------------


def wideband_pesq() -> Rating:
    """PESQ (P.862.2), about 1 to 4.6; None where it finds no speech."""
    try:
        import pesq as package
    except ImportError as error:
        raise MissingExtraError("pesq (pip install pesq)", "eval") from error

    def rate(clean: np.ndarray, made: np.ndarray) -> float | None:
        found = float(package.pesq(RATE, clean, made, "wb", on_error=package.PesqError.RETURN_VALUES))
        return found if PESQ_RANGE[0] <= found <= PESQ_RANGE[1] else None

    return rate


def intelligibility() -> Rating:
    """STOI, 0 to 1; None where there are too few frames of speech."""
    try:
        import pystoi as package
    except ImportError as error:
        raise MissingExtraError("pystoi (pip install pystoi)", "eval") from error

    def rate(clean: np.ndarray, made: np.ndarray) -> float | None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # it returns 1e-5 then
            found = float(package.stoi(clean, made, RATE))
        return found if found > 1e-4 else None

    return rate


def open_ratings() -> tuple[dict[str, Rating], dict[str, str]]:
    """{name: rating} of what is installed, and {name: reason} of what is not."""
    found: dict[str, Rating] = {"mcd": mel_cepstral_distortion}
    absent: dict[str, str] = {}
    for name, opener in (("pesq", wideband_pesq), ("stoi", intelligibility)):
        try:
            found[name] = opener()
        except MissingExtraError as error:
            absent[name] = str(error)
    return found, absent
