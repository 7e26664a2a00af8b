"""What whoever runs a server may set: bounds on what is asked of it, and who may ask."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gpa.errors import UsageError
from gpa.text.wordlist import read_text


@dataclass(frozen=True)
class Settings:
    """Bounds of a server; every one is an option of `gpa serve`.

    `requests` are those on their way at once, `per_client` those of one address or key: more get 429. An
    upload has `upload_bytes` at most and `audio_seconds` once it is decoded, a text `text_characters`. A
    request may take `seconds` and `seconds_per_second` more for each second of sound that it gets or is
    estimated to make, then it is 408. `keys` are the API keys, none meaning that anybody may ask. Voices
    that are registered live in `voices`; with `require_consent` each needs a recording of the speaker's
    consent. `drain_seconds` is how long requests may go on after SIGTERM.
    """

    requests: int = 64
    per_client: int = 32
    upload_bytes: int = 100 << 20
    audio_seconds: float = 4 * 3600.0
    text_characters: int = 100_000
    seconds: float = 120.0
    seconds_per_second: float = 2.0
    keys: tuple[str, ...] = ()
    voices: Path | None = None
    require_consent: bool = False
    drain_seconds: float = 30.0


def keys_of(path: Path) -> tuple[str, ...]:
    """The API keys of a file, one a line. UsageError if there is none."""
    keys = tuple(line.strip() for line in read_text(path).splitlines() if line.strip())
    if not keys:
        raise UsageError(f"{path}: no key in it; without --keys anybody may ask")
    return keys
