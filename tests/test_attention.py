"""Attention equals its written-out twin; rotary products depend on differences of positions alone."""

import pytest
import torch

from gpa.nn.attention import attend, attend_slowly, merge_heads, rotary_angles, rotate, split_heads


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("queries, keys", [(7, 7), (5, 11), (1, 3)])
def test_the_fused_kernel_equals_the_written_out_twin(queries: int, keys: int, masked: bool) -> None:
    q, k, v = (torch.randn(3, 2, n, 8, requires_grad=True) for n in (queries, keys, keys))
    mask = None
    if masked:
        mask = torch.rand(3, 1, 1, keys) > 0.5
        mask[..., 0] = True  # every query sees something
    fast, slow = attend(q, k, v, mask), attend_slowly(q, k, v, mask)
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-6)
    weight = torch.randn_like(fast)
    gradients = [torch.autograd.grad((out * weight).sum(), (q, k, v)) for out in (fast, slow)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
    if mask is not None:
        assert not torch.allclose(fast, attend(q, k, v), atol=1e-3)


def test_masked_keys_have_no_influence() -> None:
    q, k, v = torch.randn(1, 2, 4, 8), torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)
    mask = torch.tensor([True, True, False, True, False])
    out = attend(q, k, v, mask.expand(1, 1, 4, 5))
    torch.testing.assert_close(out, attend(q, k[:, :, mask], v[:, :, mask]))


def test_rotated_products_depend_on_the_difference_of_positions() -> None:
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)

    def product(i: int, j: int) -> float:
        left, right = (rotate(x, rotary_angles(torch.tensor([[n]]), 16)) for x, n in ((q, i), (k, j)))
        return float((left * right).sum())

    assert product(3, 1) == pytest.approx(product(50, 48), abs=1e-4)
    assert product(0, 0) == pytest.approx(float((q * k).sum()), abs=1e-5)
    assert abs(product(3, 1) - product(1, 3)) > 1e-2  # the direction counts


def test_rotation_keeps_lengths_and_every_row_has_its_own_positions() -> None:
    x = torch.randn(2, 3, 6, 8)
    positions = torch.stack([torch.arange(6), torch.arange(6) + 10])
    turned = rotate(x, rotary_angles(positions, 8))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    alone = rotate(x[1:], rotary_angles(positions[1:], 8))
    torch.testing.assert_close(turned[1:], alone)
    assert not torch.allclose(turned[:1], rotate(x[:1], rotary_angles(positions[1:], 8)))


def test_heads_split_and_merge() -> None:
    x = torch.randn(2, 5, 12)
    assert split_heads(x, 3).shape == (2, 3, 5, 4)
    assert torch.equal(merge_heads(split_heads(x, 3)), x)
    assert torch.equal(split_heads(x, 3)[:, 1], x[..., 4:8])
