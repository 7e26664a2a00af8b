"""Twice the codes: the codec still says the same, the language model still reads and writes the same."""

from pathlib import Path

import pytest
import torch

from gpa.codec import trained
from gpa.codec.bicodec import BiCodecConfig, BiCodecModel
from gpa.errors import CheckpointError
from gpa.lab import double_codebook
from gpa.models.gpa.modeling_gpa import load_backbone, new_backbone
from gpa.prompt.vocab import Vocab
from gpa.text.tokenizer import build_tokenizer_json
from training import CODEC, LM, write_tokens

pytest.importorskip("sentencepiece")


def test_a_codec_says_nearly_the_same_with_twice_the_codes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    before = BiCodecModel(BiCodecConfig.from_dict(CODEC)).eval()
    trained.write(before, {"letters": torch.nn.Linear(2, 2)}, tmp_path / "a")
    double_codebook.main([str(tmp_path / "a"), "-o", str(tmp_path / "b")])
    after = trained.load_network(tmp_path / "b")
    size = before.config.quantizer.codebook_size
    assert after.config.quantizer.codebook_size == 2 * size
    old, new = before.quantizer.codebook.weight, after.quantizer.codebook.weight
    torch.testing.assert_close((new[:size] + new[size:]) / 2, old)
    length = old.norm(dim=1).mean()
    assert ((new[:size] - old).norm(dim=1) / length - double_codebook.APART).abs().max() < 1e-3
    assert trained.read_heads(tmp_path / "b").keys() == {"letters"}
    rest = set(before.state_dict()) - {"quantizer.codebook.weight", "quantizer.cluster_size"}
    assert all(torch.equal(before.state_dict()[name], after.state_dict()[name]) for name in rest)


def test_a_language_model_follows(tmp_path: Path) -> None:
    """Logits of either half are those of the code before, whichever half was heard."""
    tokens = write_tokens(tmp_path / "tokens")
    old = Vocab.from_file(tokens)
    torch.manual_seed(0)
    model = new_backbone(LM, old).eval()
    model.save_pretrained(tmp_path / "lm")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "lm" / name).write_bytes((tokens / name).read_bytes())
    more = tmp_path / "more"
    more.mkdir()
    build_tokenizer_json(tokens / "spm.model", 2 * old.semantic.size, old.global_.size, more)
    double_codebook.main([str(tmp_path / "lm"), "--tokens", str(more), "-o", str(tmp_path / "out")])
    new, wide = Vocab.from_file(more), load_backbone(tmp_path / "out").eval()
    codes = [0, 3, old.semantic.size - 1]
    said = [
        old.control["start_semantic"],
        *old.semantic.ids(codes),
        *old.global_.ids([1]),
        *old.text.span[5:8],
    ]
    for shift in (0, old.semantic.size):
        also = [new.control["start_semantic"], *new.semantic.ids(c + shift for c in codes)]
        also += [*new.global_.ids([1]), *new.text.span[5:8]]
        with torch.inference_mode():
            a, b = model(torch.tensor([said])).logits[0], wide(torch.tensor([also])).logits[0]
        for one, other in ((old.text, new.text), (old.global_, new.global_), (old.semantic, new.semantic)):
            first = b[:, other.offset : other.offset + one.size]
            torch.testing.assert_close(a[:, one.offset : one.offset + one.size], first)
        halves = b[:, new.semantic.offset : new.semantic.offset + new.semantic.size].chunk(2, -1)
        torch.testing.assert_close(*halves)
    with pytest.raises(CheckpointError, match="twice the semantic codes"):
        double_codebook.split_lm(tmp_path / "lm", tokens, tmp_path / "wrong")
