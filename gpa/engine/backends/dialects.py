"""How vLLM, SGLang and llama.cpp are asked for ids over HTTP: a body of JSON, and the ids of each event."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gpa.engine.backends.export_gguf import character
from gpa.engine.request import Request, Sampling

BIAS = 100.0  # of a legal id, in nats, where a server knows no list of them: no logit competes with it


@dataclass(frozen=True)
class Asked:
    """What a server has to know of a request: it draws, and the client sees to the ends."""

    request: Request
    count: int  # most ids
    legal: tuple[range, ...]  # the stop ids are among them
    size: int  # of the vocabulary

    @property
    def ids(self) -> list[int]:
        """The legal ids one by one."""
        return sorted({token_id for run in self.legal for token_id in run})

    @property
    def free(self) -> bool:
        """Whether any id may come."""
        return any(len(run) == self.size for run in self.legal)


class Dialect(Protocol):
    """One kind of server."""

    name: str
    path: str

    def body(self, asked: Asked, model: str) -> dict[str, Any]:
        """What is posted to `path`; the answer is a stream of events."""

    def ids(self, event: Mapping[str, Any], before: int) -> Sequence[int]:
        """The new ids of an event, `before` having come already."""


class VLLM:
    """`/v1/completions` of vLLM: https://docs.vllm.ai/en/latest/serving/openai_compatible_server."""

    name, path = "vLLM", "/v1/completions"

    def body(self, asked: Asked, model: str) -> dict[str, Any]:
        """Legal ids as a list, none for any."""
        r = asked.request
        return {
            "model": model,
            "prompt": list(r.prompt),
            "max_tokens": asked.count,
            "min_tokens": r.rules.min_new,
            "stop_token_ids": sorted(r.rules.stop),
            "ignore_eos": True,  # of the server's tokenizer: ours are above
            "allowed_token_ids": None if asked.free else asked.ids,
            "seed": r.seed,
            "stream": True,
            "return_token_ids": True,
            **_drawn(r.sampling),
        }

    def ids(self, event: Mapping[str, Any], before: int) -> Sequence[int]:
        """Of the one choice; a last event may have none."""
        return [token_id for choice in event["choices"] for token_id in choice.get("token_ids") or ()]


class SGLang:
    """`/generate` of SGLang, started with --skip-tokenizer-init:
    https://docs.sglang.ai/basic_usage/native_api.html.
    """

    name, path = "SGLang", "/generate"

    def body(self, asked: Asked, model: str) -> dict[str, Any]:
        """Legal ids by a bias. The seed counts on a server with --enable-deterministic-inference."""
        r = asked.request
        bias = {} if asked.free else dict.fromkeys(map(str, asked.ids), BIAS)
        sampling = {
            "max_new_tokens": asked.count,
            "min_new_tokens": r.rules.min_new,
            "stop_token_ids": sorted(r.rules.stop),
            "ignore_eos": True,
            "no_stop_trim": True,
            "logit_bias": bias or None,
            "sampling_seed": r.seed,
            **_drawn(r.sampling),
        }
        return {"input_ids": list(r.prompt), "sampling_params": sampling, "stream": True}

    def ids(self, event: Mapping[str, Any], before: int) -> Sequence[int]:
        """An event holds all ids so far, or with --incremental-streaming-output the new ones; the stop id may
        have been trimmed.
        """
        about = event["meta_info"]
        found = list(event["output_ids"])
        ids = found[before:] if len(found) == about["completion_tokens"] else found
        stop = (about.get("finish_reason") or {}).get("matched")
        return [*ids, stop] if isinstance(stop, int) and ids[-1:] != [stop] else ids


class LlamaCpp:
    """`/completion` of llama.cpp's server on a file of `gpa export`: legal ids by a grammar over its names.

    https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
    """

    name, path = "llama.cpp", "/completion"

    def __init__(self, eos: int | None) -> None:
        """`eos` ends a completion in the file: the server lets it come where the grammar may end."""
        self.eos = eos

    def body(self, asked: Asked, model: str) -> dict[str, Any]:
        """Nothing of an earlier prompt is used again: it would change the sums."""
        r = asked.request
        drawn = _drawn(r.sampling)
        return {
            "prompt": list(r.prompt),
            "n_predict": asked.count,
            "grammar": self.grammar(asked),
            "ignore_eos": self.eos not in r.rules.stop,
            "samplers": ["temperature", "top_k", "top_p"],
            "min_p": 0.0,
            "cache_prompt": False,
            "return_tokens": True,
            "stream": True,
            **drawn,
            "top_k": max(0, drawn["top_k"]),
            "seed": r.seed % (2**32 - 1),  # the last one means: any
        }

    def grammar(self, asked: Asked) -> str:
        """What a completion may look like, in characters that stand for ids."""
        rules = asked.request.rules
        rounds = rules.cycle or (asked.legal,)
        one = "".join(f"[{_class(runs, rules.stop)}]" for runs in rounds)
        stops = rules.stop - {self.eos}
        end = f"[{''.join(map(character, sorted(stops)))}]" if stops else ""
        end += "?" if stops and self.eos in rules.stop else ""
        return f"root ::= ({one}){{{-(-rules.min_new // len(rounds))},}} {end}"

    def ids(self, event: Mapping[str, Any], before: int) -> Sequence[int]:
        """The last event counts and has none."""
        return event.get("tokens") or ()


def _drawn(sampling: Sampling) -> dict[str, Any]:
    """In the words that all three share; no top_k is -1."""
    return {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k or -1,
        "top_p": sampling.top_p,
    }


def _class(runs: Sequence[range], without: frozenset[int]) -> str:
    """The ranges of a character class, for runs of ids without some."""
    found = []
    for run in runs:
        begin = run.start
        for end in sorted({token_id for token_id in without if token_id in run} | {run.stop}):
            if begin < end:
                found.append(f"{character(begin)}-{character(end - 1)}")
            begin = end + 1
    return "".join(found)
