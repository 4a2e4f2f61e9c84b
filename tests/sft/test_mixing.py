"""The claims of joint-logit training, under the numbers of the specification's section 6, and its reference vectors."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tacit.sft import mixing

LAM = st.floats(0.05, 0.95)
VECTORS = [
    ([0.8, 0.1, 0.1], [0.717186, 0.179297, 0.103517], 0.966025, 0.332419, [-0.141407, 0.089648, 0.051758]),
    ([0.3, 0.6, 0.1], [0.447287, 0.447287, 0.105426], 0.948528, 0.804555, [-0.276357, 0.223643, 0.052713]),
    ([0.3, 0.1, 0.6], [0.503626, 0.205605, 0.290769], 0.842418, 0.685920, [-0.248187, 0.102802, 0.145384]),
    ([1 / 3] * 3, [0.472734, 0.334273, 0.192993], 0.946016, 0.749223, [-0.263633, 0.167137, 0.096496]),
]


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def draw(seed: int, size: int = 9, rows: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(2, rows, size, generator=g, dtype=torch.float64) * 2
    return z[0], z[1], torch.randint(size, (rows,), generator=g)


def at(x: Tensor, y: Tensor) -> Tensor:
    return x.gather(-1, y[:, None])[:, 0]


SEEDS = st.integers(0, 10**6)


@pytest.mark.parametrize(("weak", "mix", "c", "ce", "grad"), VECTORS)
def test_reference_vectors(weak, mix, c, ce, grad):
    strong, weak, y = t(0.6, 0.3, 0.1).log().requires_grad_(), t(*weak).log(), torch.tensor(0)
    loss = mixing.joint_cross_entropy(strong, weak, y, 0.5)
    torch.testing.assert_close(mixing.mixed_logits(strong, weak, 0.5).softmax(-1), t(*mix), rtol=0, atol=1e-6)
    assert mixing.log_normaliser(strong, weak, 0.5).exp().item() == pytest.approx(c, abs=1e-6)
    assert loss.item() == pytest.approx(ce, abs=1e-6)
    torch.testing.assert_close(torch.autograd.grad(loss, strong)[0], t(*grad), rtol=0, atol=1e-6)
    torch.testing.assert_close(mixing.residual(strong.detach(), y), t(-0.4, 0.3, 0.1), rtol=0, atol=1e-12)  # plain SFT


def test_reference_logits():
    strong, weak, y = t(4, 1, 0, -1), t(2, 1.5, 0.5, -1), torch.tensor(0)
    for lam, expected in [(1.0, 0.072172), (0.5, 0.227946), (0.42, 0.271418), (0.8, 0.115411)]:
        assert mixing.joint_cross_entropy(strong, weak, y, lam).item() == pytest.approx(expected, abs=1e-6)


@given(SEEDS, LAM)
def test_01_residual(seed, lam):
    strong, weak, y = draw(seed)
    strong, weak = strong.requires_grad_(), weak.requires_grad_()
    loss = mixing.joint_cross_entropy(strong, weak, y, lam).sum()
    residual = mixing.residual(mixing.mixed_logits(strong, weak, lam), y)
    torch.testing.assert_close(residual.sum(-1), torch.zeros(len(y), dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(loss, [strong, weak]), (lam * residual, (1 - lam) * residual), rtol=0, atol=1e-12)


@given(SEEDS, LAM)
def test_02_margins_mix(seed, lam):
    strong, weak, y = draw(seed)
    mixed = mixing.margins(mixing.mixed_logits(strong, weak, lam), y)
    torch.testing.assert_close(mixed, lam * mixing.margins(strong, y) + (1 - lam) * mixing.margins(weak, y), rtol=0, atol=1e-12)


@given(SEEDS, LAM)
def test_03_hard_negatives_gain_on_the_target(seed, lam):
    strong, weak, y = draw(seed)
    hard = mixing.margins(weak, y) < mixing.margins(strong, y) - 1e-9
    odds = [(p / p.gather(-1, y[:, None]))[hard] for p in (mixing.mixed_logits(strong, weak, lam).softmax(-1), strong.softmax(-1))]
    assert hard.any() and (odds[0] > odds[1]).all()


@given(SEEDS, LAM)
def test_04_theorem_1(seed, lam):
    strong, _weak, y = draw(seed)
    lower = mixing.margins(strong, y) - torch.rand(strong.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    dominated = -lower  # logits with z[y] = 0 and every margin below the strong one's
    dominated.scatter_(-1, y[:, None], 0.0)
    mixed = at(mixing.mixed_logits(strong, dominated, lam).softmax(-1), y)
    assert (mixed <= at(strong.softmax(-1), y) + 1e-12).all()


def test_04_one_larger_margin_can_raise_the_target():
    strong, weak = t(0, 0, -1), t(0, -9, -0.9)  # the margin of token 1 is larger under the weak model, that of token 2 smaller
    assert mixing.mixed_logits(strong, weak, 0.5).softmax(-1)[0] > strong.softmax(-1)[0]


@given(SEEDS, LAM)
def test_05_corollary_2_is_an_iff(seed, lam):
    strong, weak, y = draw(seed)
    mix, alone = mixing.mixed_logits(strong, weak, lam).softmax(-1), strong.softmax(-1)
    threshold = (-(1 - lam) * (mixing.margins(strong, y) - mixing.margins(weak, y))).exp()
    ratio = (at(mix, y) / at(alone, y))[:, None]
    clear = (ratio - threshold).abs() > 1e-9
    assert torch.equal((mix >= alone)[clear], (ratio >= threshold)[clear])


@given(SEEDS)
def test_06_endpoints(seed):
    strong, weak, y = (x.requires_grad_() if x.is_floating_point() else x for x in draw(seed))
    for lam, kept, idle in [(1.0, strong, weak), (0.0, weak, strong)]:
        loss = mixing.joint_cross_entropy(strong, weak, y, lam)
        plain = -at(kept.log_softmax(-1), y)
        torch.testing.assert_close(loss, plain, rtol=0, atol=1e-12)
        grads = torch.autograd.grad(loss.sum(), [kept, idle])
        torch.testing.assert_close(grads[0], torch.autograd.grad(plain.sum(), kept)[0], rtol=0, atol=1e-12)
        assert not grads[1].any()
    torch.testing.assert_close(mixing.mixed_logits(strong, strong, 0.3), strong, rtol=0, atol=1e-12)


@given(SEEDS, LAM)
def test_07_product_of_experts(seed, lam):
    strong, weak, _y = draw(seed)
    log_c, mix = mixing.log_normaliser(strong, weak, lam), mixing.mixed_logits(strong, weak, lam).log_softmax(-1)
    product = weak.softmax(-1) ** (1 - lam) * strong.softmax(-1) ** lam
    torch.testing.assert_close(mix.exp(), product / product.sum(-1, keepdim=True), rtol=0, atol=1e-12)
    assert (log_c <= 1e-12).all()
    q = draw(seed + 1)[0].softmax(-1)
    cross = lambda logp: -(q * logp).sum(-1)  # noqa: E731
    torch.testing.assert_close(cross(mix), (1 - lam) * cross(weak.log_softmax(-1)) + lam * cross(strong.log_softmax(-1)) + log_c, rtol=0, atol=1e-11)


@given(SEEDS, LAM, st.floats(-5, 5))
def test_08_constant_weak_logits_are_temperature(seed, lam, constant):
    strong, _, y = draw(seed)
    found = mixing.joint_cross_entropy(strong, torch.full_like(strong, constant), y, lam)
    torch.testing.assert_close(found, -at((lam * strong).log_softmax(-1), y), rtol=0, atol=1e-12)


@given(SEEDS, LAM)
def test_09_amplification_is_conditional(seed, lam):
    strong, weak, y = draw(seed)
    mixed, alone = mixing.mixed_logits(strong, weak, lam), at(strong.log_softmax(-1), y)
    larger = lam * at(mixing.residual(mixed, y), y).abs() > at(mixing.residual(strong, y), y).abs()
    found = mixing.amplified(at(mixed.log_softmax(-1), y), alone, lam)
    assert torch.equal(found, larger)
    assert not found[alone.exp() <= 1 - lam].any()
    for strong_p, bound in [(0.9, 0.8), (0.99, 0.98)]:
        near = t(bound - 1e-6, bound + 1e-6).log()
        assert mixing.amplified(near, t(strong_p, strong_p).log(), 0.5).tolist() == [True, False]


def test_10_constant_weak_logits_leave_the_larger_residual():
    torch.manual_seed(0)
    share = torch.distributions.Dirichlet(torch.ones(19, dtype=torch.float64))
    strong, weak = (torch.cat([torch.full((200, 1), p, dtype=torch.float64), share.sample((200,)) * (1 - p)], -1).log() for p in (0.99, 0.6))
    y = torch.zeros(200, dtype=torch.int64)
    wmss, d0 = (float(0.5 * mixing.residual(mixing.mixed_logits(strong, w, 0.5), y)[:, 0].abs().mean()) for w in (weak, strong * 0))
    assert 0.01 < wmss < 0.5 * d0, "plain SFT: .010"


@given(SEEDS, LAM)
def test_11_shuffled_wrong_tokens(seed, lam):
    strong, weak, _ = draw(seed, size=5, rows=1)
    every = torch.stack([torch.cat([weak[0, :1], weak[0, 1:][list(order)]]) for order in itertools.permutations(range(4))])
    p = every.softmax(-1)
    torch.testing.assert_close(p[:, 0], p[:1, 0].expand(24), rtol=0, atol=1e-12)
    torch.testing.assert_close((p * p.log()).sum(-1), (p[:1] * p[:1].log()).sum(-1).expand(24), rtol=0, atol=1e-12)
    log_c = mixing.log_normaliser(strong, every, lam)
    target = mixing.mixed_logits(strong, every, lam).softmax(-1)[:, 0]
    rank = strong[0, 1:].argsort()
    ordered = torch.empty(2, 4, dtype=torch.float64)
    ordered[0, rank], ordered[1, rank] = weak[0, 1:].sort().values, weak[0, 1:].sort(descending=True).values
    matched = torch.cat([weak[:, :1].expand(2, 1), ordered], -1)
    found, p_y = mixing.log_normaliser(strong, matched, lam), mixing.mixed_logits(strong, matched, lam).softmax(-1)[:, 0]
    torch.testing.assert_close(found, torch.stack([log_c.max(), log_c.min()]), rtol=0, atol=1e-12)
    torch.testing.assert_close(p_y, torch.stack([target.min(), target.max()]), rtol=0, atol=1e-12)


@given(SEEDS, LAM)
def test_12_hessian_and_gradient_shielding(seed, lam):
    strong, weak, y = (x[:1] for x in draw(seed))
    h = mixing.hessian(mixing.mixed_logits(strong, weak, lam))[0]
    assert torch.linalg.eigvalsh(h).min() > -1e-12
    torch.testing.assert_close(h.sum(-1), torch.zeros(len(h), dtype=torch.float64), rtol=0, atol=1e-12)
    joint = lambda s, w: mixing.joint_cross_entropy(s, w, y, lam).sum()  # noqa: E731
    cross = torch.autograd.functional.hessian(joint, (strong, weak))[0][1][0, :, 0]
    torch.testing.assert_close(cross, lam * (1 - lam) * h, rtol=0, atol=1e-10)
    sure = strong.scatter_add(-1, y[:, None], t(60.0)[None])
    assert mixing.hessian(sure).abs().max() < 1e-12
    torch.testing.assert_close(joint(strong + 3.0, weak - 7.0), joint(strong, weak), rtol=0, atol=1e-10)


def test_13_sensitivity_crossover():
    assert pytest.approx(1.084, abs=5e-4) == (1240.10 / 1191.33) ** 2
    assert mixing.sensitivity_crossover(1240.10, 1191.33) == pytest.approx(0.490, abs=5e-4)
    assert mixing.sensitivity_crossover(3.0, 3.0) == 0.5
