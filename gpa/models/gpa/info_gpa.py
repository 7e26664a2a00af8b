"""What a loaded checkpoint says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpa.engine.network import Network
    from gpa.models.gpa.processing_gpa import GPAProcessor


def describe(network: Network, processor: GPAProcessor, path: Path | None) -> dict[str, Any]:
    """Path, format, sizes, limits, voices and fingerprints, ready for JSON."""
    c, codec, p = network.sizes, processor.codec, processor
    spec, config = codec.spec, processor.config
    parameters = {"language_model": sum(x.numel() for x in network.parameters()), **codec.parameters()}
    parameters |= p.glm.parameters() if p.glm else {}
    return {
        "name": config.name,
        "path": str(path) if path else None,
        "format": config.format,
        "parameters": parameters,
        "language_model": {
            "layers": c.num_hidden_layers,
            "hidden_size": c.hidden_size,
            "heads": c.num_attention_heads,
            "key_value_heads": c.num_key_value_heads,
            "intermediate_size": c.intermediate_size,
            "vocab_size": c.vocab_size,
            "context": c.max_position_embeddings,
            "dtype": str(network.dtype).removeprefix("torch."),
            "device": str(network.device),
        },
        "vocabulary": {block.name: [block.offset, block.size] for block in p.vocab.blocks},
        "codec": {
            "name": spec.name,
            "sample_rate": spec.sample_rate,
            "semantic_rate": spec.code_rate,
            "semantic_codes": spec.codebook_size,
            "codebooks": spec.n_codebooks,
            "global_tokens": spec.n_global,
            "global_codes": spec.global_size,
            "context": spec.context and list(spec.context),
        },
        "max_audio_seconds": config.max_audio_seconds,
        "max_text_chars": config.max_text_chars,
        "takes": config.takes,
        "conversion": config.conversion,
        "instructed": config.instructed,
        "words": len(p.lexicon),
        "ngrams": len(p.ngrams),
        "pronunciations": len(p.pronunciations),
        "voices": sorted(p.voices),
        "about": dict(config.about),
        "fingerprints": p.fingerprints(),
    }
