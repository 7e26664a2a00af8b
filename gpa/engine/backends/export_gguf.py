"""A network as a GGUF file: what llama.cpp and every program built on it load.

Text and codes become ids elsewhere, so the file has no text tokenizer: every id has a character as its name.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpa.errors import CheckpointError, MissingExtraError, UsageError

if TYPE_CHECKING:
    from gpa.engine.network import Network

PRECISIONS = ("f32", "f16", "q8_0", "q4_k")
QUANTIZATION_VERSION = 2  # of the blocks' layout: GGML_QNT_VERSION
FIRST_CHARACTER = 0x20000  # after the planes that text is written with; 983,040 more follow
BLOCK, K_BLOCK = 32, 256  # weights of a row that q8_0 and q4_k pack together


def export_gguf(network: Network, path: Path, precision: str = "f16") -> None:
    """Write a network; matrices in `precision`, norms and biases in float32.

    q4_k, by llama.cpp's own arithmetic, is for rows of a multiple of 256, else it becomes q8_0, which is for
    rows of a multiple of 32, else it becomes f16. UsageError for another precision, CheckpointError for
    weights beyond float16.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
    if network.sizes.attention_bias:
        raise CheckpointError("attention_bias: llama.cpp's Qwen3 has no biases; onnxruntime's graph can")
    try:
        import gguf
    except ImportError as error:
        raise MissingExtraError("gguf", "llamacpp") from error
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.QWEN3])
    _describe(writer, network)
    writer.add_quantization_version(QUANTIZATION_VERSION)
    writer.add_file_type(
        {"f32": 0, "f16": 1, "q8_0": 7, "q4_k": 14}[precision]
    )  # LLAMA_FTYPE_*: 14 is Q4_K_S
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, network.sizes.num_hidden_layers)
    for name, weight in network.state_dict().items():
        values = weight.detach().float().cpu().numpy()
        packed, kind = _packed(values, precision if values.ndim > 1 else "f32", name)
        writer.add_tensor(str(names.get_name(name, (".weight",))), packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: Any, network: Network) -> None:
    s = network.sizes
    writer.add_vocab_size(s.vocab_size)
    writer.add_context_length(s.max_position_embeddings)
    writer.add_embedding_length(s.hidden_size)
    writer.add_block_count(s.num_hidden_layers)
    writer.add_feed_forward_length(s.intermediate_size)
    writer.add_head_count(s.num_attention_heads)
    writer.add_head_count_kv(s.num_key_value_heads)
    writer.add_key_length(s.head_dim)
    writer.add_value_length(s.head_dim)
    writer.add_rope_freq_base(s.rope_theta)
    writer.add_layer_norm_rms_eps(s.rms_norm_eps)
    _name_ids(writer, s.vocab_size)
    for name in ("bos", "eos", "pad"):
        found = network.config.get(f"{name}_token_id")
        if isinstance(found, int):
            getattr(writer, f"add_{name}_token_id")(found)


def _name_ids(writer: Any, count: int) -> None:
    """One character for each id, so that a grammar of llama.cpp can say which ids are legal."""
    from gguf import TokenType

    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([character(token_id) for token_id in range(count)])
    writer.add_token_scores([0.0] * count)
    writer.add_token_types([TokenType.NORMAL] * count)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)


def character(token_id: int) -> str:
    """The name of an id in the file: a code point that no text uses."""
    return chr(FIRST_CHARACTER + token_id)


def _packed(values: np.ndarray, precision: str, name: str) -> tuple[np.ndarray, Any]:
    """The bytes of a tensor, and which of GGML's types they are."""
    from gguf import GGMLQuantizationType as Kind
    from gguf import quants

    if precision == "f32":
        return values, Kind.F32
    if precision == "q4_k" and values.shape[-1] % K_BLOCK == 0:
        return _q4_k(values), Kind.Q4_K
    if precision != "f16" and values.shape[-1] % BLOCK == 0:
        return quants.quantize(values, Kind.Q8_0), Kind.Q8_0
    with np.errstate(over="ignore"):  # found in the next line
        half = values.astype(np.float16)
    if not np.isfinite(half).all():
        raise CheckpointError(f"{name} holds weights beyond float16: export f32")
    return half, Kind.F16


def _q4_k(values: np.ndarray) -> np.ndarray:
    """Rows as blocks of 4.5 bits a weight, by the function of llama.cpp that llama-quantize calls."""
    try:
        import xllamacpp.xllamacpp as llama
    except ImportError as error:
        raise MissingExtraError("xllamacpp", "llamacpp") from error
    library = ctypes.CDLL(llama.__file__)
    if not hasattr(library, "quantize_q4_K"):
        raise UsageError(
            "this xllamacpp does not quantise to q4_k: export f16 and run llama.cpp's llama-quantize"
        )
    rows, width = values.shape
    source = np.ascontiguousarray(values, np.float32)
    packed = np.empty((rows, width // K_BLOCK * 144), np.uint8)
    address = ctypes.c_void_p
    library.quantize_q4_K.argtypes = (address, address, ctypes.c_int64, ctypes.c_int64, address)
    library.quantize_q4_K.restype = ctypes.c_size_t
    written = library.quantize_q4_K(source.ctypes.data, packed.ctypes.data, rows, width, None)
    if written != packed.nbytes:
        raise UsageError(
            f"xllamacpp wrote {written} bytes of q4_k, {packed.nbytes} are a matrix of {values.shape}"
        )
    return packed
