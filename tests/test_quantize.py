"""Quantisers: codes and vectors are inverse, gradients go straight through, training keeps statistics."""

import math

import pytest
import torch

from gpa.nn.quantize import FSQ, FactorizedVQ, WeightNormConv1d


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def identity_fsq(levels: list[int], normalise: int = 0) -> FSQ:
    """An FSQ whose linear maps do nothing, so that inputs are the values to be rounded."""
    fsq = FSQ(len(levels), levels, normalise)
    for linear in (fsq.project_in, fsq.project_out):
        torch.nn.init.eye_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    return fsq.eval()


@pytest.mark.parametrize("levels", [[3, 3, 3], [4, 4, 4, 4], [2, 5, 3], [8, 5, 5, 5]])
def test_fsq_codes_and_vectors_are_inverse(levels: list[int]) -> None:
    fsq = identity_fsq(levels)
    codes = torch.arange(fsq.codebook_size)
    assert fsq.codebook_size == math.prod(levels)
    vectors = fsq.decode(codes)
    assert len(vectors.unique(dim=0)) == len(codes)
    half = torch.tensor(levels) // 2
    bound = (torch.tensor(levels) - 1) * (1 + 1e-3) / 2
    offset = torch.where(torch.tensor(levels) % 2 == 0, 0.5, 0.0)
    raw = torch.atanh((vectors * half + offset) / bound) - torch.atanh(offset / bound)  # `_bounded` undone
    assert torch.equal(fsq.encode(raw), codes)
    assert torch.equal(fsq.decode(fsq.encode(raw)), vectors)
    torch.testing.assert_close(fsq(raw), vectors)  # the training pass decodes alike


def test_fsq_digits_have_the_first_dimension_least_significant() -> None:
    fsq = identity_fsq([3, 3])
    big = 10.0
    assert fsq.encode(torch.tensor([[big, -big], [-big, big], [0.0, 0.0]])).tolist() == [2, 6, 4]


def test_fsq_gradient_goes_straight_through_the_rounding() -> None:
    fsq = identity_fsq([5, 5])
    weight = torch.randn(4, 6, 2)
    x = (0.5 * torch.randn(4, 6, 2)).requires_grad_()
    (fsq(x) * weight).sum().backward()
    smooth = x.detach().clone().requires_grad_()
    (fsq._bounded(smooth) / 2 * weight).sum().backward()  # as if nothing had been rounded
    assert x.grad is not None and x.grad.abs().min() > 0
    torch.testing.assert_close(x.grad, smooth.grad)


def test_batch_norm_uses_running_statistics_in_evaluation() -> None:
    fsq = FSQ(6, [3, 3, 3], normalise=2).train()
    assert fsq.norm is not None
    for _ in range(200):
        fsq(3 + torch.randn(32, 2, 6))
    mean, var = fsq.norm.running_mean, fsq.norm.running_var
    assert mean is not None and var is not None and mean.shape == (6,)
    fsq.eval()
    x = 3 + torch.randn(4, 2, 6)
    z = (fsq.project_in(x).reshape(4, 6) - mean) / (var + fsq.norm.eps).sqrt()
    half = (fsq.levels - 1) * (1 + 1e-3) / 2
    digits = (torch.tanh(z.view(4, 2, 3)) * half).round() + 1
    assert torch.equal(fsq.encode(x), (digits * fsq.basis).sum(-1).long())
    before = mean.clone()
    assert torch.equal(torch.cat([fsq.encode(x[:1]), fsq.encode(x[1:])]), fsq.encode(x))  # alone = together
    assert torch.equal(fsq.norm.running_mean, before)  # type: ignore[arg-type]
    # Without it nothing is stored, and a young encoder far from zero falls into one cell.
    assert FSQ(6, [3, 3, 3]).norm is None


def test_vq_codes_and_vectors_are_inverse() -> None:
    vq = FactorizedVQ(12, 32, 4).eval()
    rows = vq.codebook.weight.detach()
    z = 3.0 * torch.nn.functional.normalize(rows, dim=1).T[None]  # any length: the angle alone counts
    assert vq.nearest(z).tolist() == [list(range(32))]
    codes = torch.randint(32, (2, 7))
    expected = vq.out_project(rows[codes].transpose(1, 2))
    assert torch.equal(vq.decode(codes), expected) and expected.shape == (2, 12, 7)


def test_vq_training_pass_decodes_the_chosen_rows_with_a_straight_gradient() -> None:
    vq = FactorizedVQ(12, 32, 4).eval()
    vq.start(torch.randn(64, 12))
    x = torch.randn(2, 12, 7).requires_grad_()
    features, codes, loss = vq(x)
    assert torch.equal(codes, vq.encode(x)) and loss > 0
    torch.testing.assert_close(features, vq.decode(codes))
    features.sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert vq.codebook.weight.grad is None  # the codebook learns by its own loss
    vq(x)[2].backward()
    assert vq.codebook.weight.grad is not None


def test_vq_does_not_round_before_it_starts() -> None:
    vq = FactorizedVQ(12, 32, 4).train()
    x = torch.randn(2, 12, 7)
    features, _, loss = vq(x)
    plain = vq.out_project(torch.nn.functional.normalize(vq.in_project(x), dim=1))
    assert not vq.started and loss == 0 and torch.equal(features, plain)
    vq.start(torch.randn(64, 12))
    features, codes, loss = vq(x)
    assert vq.started and loss > 0
    torch.testing.assert_close(features, vq.decode(codes))


def test_vq_starts_at_cluster_centres() -> None:
    vq = FactorizedVQ(4, 24, 4)
    with torch.no_grad():
        vq.in_project.weight_v.copy_(torch.eye(4)[..., None])
        vq.in_project.weight_g.fill_(1.0)
        vq.in_project.bias.zero_()
    centres = torch.eye(4)[:3]
    vq.start((centres.repeat(50, 1) + 0.05 * torch.randn(150, 4)) * torch.rand(150, 1).add(0.5))
    nearest = torch.cdist(centres, vq.codebook.weight).min(1).values
    assert nearest.max() < 0.1  # whatever their lengths
    torch.testing.assert_close(vq.codebook.weight.norm(dim=1), torch.ones(24))


def test_vq_starts_and_chooses_in_float32_where_products_are_bf16() -> None:
    torch.manual_seed(0)
    vq, x = FactorizedVQ(16, 512, 8), torch.randn(1, 16, 2000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        vq.start(x[0].T)
        z = vq.in_project(x).float()
        codes = vq.nearest(z)
    assert vq.codebook.weight.dtype == torch.float32
    assert torch.equal(codes, vq.nearest(z)) and codes.unique().numel() > 256


def test_vq_starts_at_encoder_outputs_and_revives_dead_rows() -> None:
    vq = FactorizedVQ(12, 32, 4).train()
    x = torch.randn(500, 12)
    vq.start(x)
    assert len(vq.encode(x.T[None]).unique()) == 32  # every row wins somewhere
    vq.codebook.weight.data[:4] = -vq.codebook.weight.data[4:5]
    vq.cluster_size[:4] = 0.0
    vq(x.T[None])
    vq.eval()
    before = vq.codebook.weight.detach().clone()
    vq(x.T[None])
    assert torch.equal(vq.codebook.weight, before)  # evaluation moves nothing
    assert len(vq.encode(x.T[None]).unique()) >= 31


@pytest.mark.parametrize("transposed", [False, True])
def test_weight_norm_is_folded_as_torch_does(transposed: bool) -> None:
    conv = WeightNormConv1d(6, 4, 4, stride=2, padding=1, transposed=transposed)
    norm = conv.weight_v.flatten(1).norm(dim=1)[:, None, None]
    torch.testing.assert_close(conv.weight(), conv.weight_g * conv.weight_v / norm)
    out = conv(torch.randn(1, 6 if not transposed else 6, 10))
    assert out.shape == ((1, 4, 20) if transposed else (1, 4, 5))
