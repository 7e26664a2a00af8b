"""The replica of the published checkpoint's tokenizer and prompts (specification 8), compact in tests/assets.

Origin: published-tiny of the golden data; the tokenizer is the same JSON without white space, compressed.
"""

import json
import lzma
from functools import cache
from pathlib import Path
from typing import Any

DIRECTORY = Path(__file__).parent / "assets" / "published-tiny"
GLM_SIZE = 64
VOCAB_SIZE = 4739


@cache
def tokenizer_json() -> str:
    """The text of the replica's tokenizer.json."""
    return lzma.decompress((DIRECTORY / "tokenizer.json.xz").read_bytes()).decode()


@cache
def read_cases() -> dict[str, Any]:
    """cases.json: `offsets`, `specials`, `texts`, `cases` (prompts) and `training` rows."""
    return json.loads((DIRECTORY / "cases.json").read_text(encoding="utf-8"))


def write_tokenizer(directory: Path) -> Path:
    """Write tokenizer.json into a directory and return that directory."""
    (directory / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    return directory
