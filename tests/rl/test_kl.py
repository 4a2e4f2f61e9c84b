from __future__ import annotations

from math import e, log

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tacit.rl.kl import kl_loss, kl_reward, kl_value

FORMS = ["k1", "k2", "k3", "k3_unbiased"]

# A vocabulary of four tokens, enumerated: expectations are sums. The old policy drew the data where an importance weight is tested.
LOGITS = torch.tensor([1.0, -0.5, 0.3, 0.0], dtype=torch.float64)
REFERENCE = torch.tensor([-0.2, 0.4, 0.9, -1.0], dtype=torch.float64).log_softmax(0)
OLD = torch.tensor([0.6, 0.1, 0.0, 0.5], dtype=torch.float64).log_softmax(0)


def gradient(function) -> Tensor:
    """d function(log-probs of all tokens) / d logits."""
    logits = LOGITS.clone().requires_grad_()
    return torch.autograd.grad(function(logits.log_softmax(0)), logits)[0]


def reverse_kl(logp: Tensor) -> Tensor:
    return (logp.exp() * (logp - REFERENCE)).sum()


def forward_kl(logp: Tensor) -> Tensor:
    return (REFERENCE.exp() * (REFERENCE - logp)).sum()


def close(a: Tensor, b: Tensor) -> None:
    assert_close(a, b, rtol=1e-12, atol=1e-14)


# --- values ---


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        # log r = log(ref / pi) is -1, log 2, 0
        ("k1", [1, -log(2), 0]),
        ("k2", [1 / 2, log(2) ** 2 / 2, 0]),
        ("k3", [1 / e - 1 + 1, 2 - 1 - log(2), 0]),
        ("k3_unbiased", [1 / e - 1 + 1, 2 - 1 - log(2), 0]),
    ],
)
def test_values(form, expected):
    logp = torch.tensor([-1, log(0.25), log(0.5)], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([-2, log(0.5), log(0.5)], dtype=torch.float64)
    expected = torch.tensor(expected, dtype=torch.float64)
    close(kl_value(logp, ref, form), expected)
    close(kl_loss(logp, ref, form), expected)
    penalty = kl_reward(logp, ref, form)
    close(penalty, expected)
    assert not penalty.requires_grad


@pytest.mark.parametrize("form", ["k1", "k3", "k3_unbiased"])
def test_in_expectation_the_value_is_the_divergence(form):
    logp = LOGITS.log_softmax(0)
    close((logp.exp() * kl_value(logp, REFERENCE, form)).sum(), reverse_kl(logp))


def test_k3_keeps_its_precision_near_the_reference():
    # e^x - 1 - x at x = 1e-4 is x²/2 + x³/6; in float32 1 + x would lose it
    logp, ref = torch.tensor([0.0]), torch.tensor([1e-4])
    assert kl_value(logp, ref, "k3").item() == pytest.approx(0.5e-8 + 1e-12 / 6, rel=2e-3)


@pytest.mark.parametrize("function", [kl_value, kl_loss, kl_reward])
def test_unknown_form(function):
    with pytest.raises(ValueError, match="unknown KL form 'k4': choose k1, k2, k3 or k3_unbiased"):
        function(torch.zeros(1), torch.zeros(1), "k4")


# --- gradients, by enumeration ---


def expected_gradient(form: str) -> Tensor:
    """Mean gradient of the loss over tokens drawn from pi itself."""
    weights = LOGITS.log_softmax(0).exp()
    return gradient(lambda logp: (weights * kl_loss(logp, REFERENCE, form)).sum())


@pytest.mark.parametrize("form", ["k1", "k2", "k3_unbiased"])
def test_on_policy_the_mean_gradient_is_that_of_the_reverse_kl(form):
    close(expected_gradient(form), gradient(reverse_kl))


def test_on_policy_the_mean_gradient_of_k3_is_that_of_the_forward_kl():
    close(expected_gradient("k3"), gradient(forward_kl))
    assert (gradient(forward_kl) - gradient(reverse_kl)).abs().max() > 0.01


def test_the_plain_gradient_of_k1_is_zero_in_expectation():
    weights = LOGITS.log_softmax(0).exp()
    close(gradient(lambda logp: (weights * kl_value(logp, REFERENCE, "k1")).sum()), torch.zeros(4).double())


@pytest.mark.parametrize("form", FORMS)
def test_importance_weighted_every_form_follows_the_reverse_kl(form):
    def loss(logp: Tensor) -> Tensor:
        return (OLD.exp() * kl_loss(logp, REFERENCE, form, ratio=(logp - OLD).exp())).sum()

    close(gradient(loss), gradient(reverse_kl))


@pytest.mark.parametrize("form", FORMS)
def test_importance_weighting_multiplies_the_value(form):
    logp = LOGITS.log_softmax(0)
    ratio = (logp - OLD).exp()
    close(kl_loss(logp, REFERENCE, form, ratio), ratio * kl_value(logp, REFERENCE, form))


def test_without_the_importance_weight_older_data_bias_the_gradient():
    biased = gradient(lambda logp: (OLD.exp() * kl_loss(logp, REFERENCE, "k2")).sum())
    assert (biased - gradient(reverse_kl)).abs().max() > 0.01


def penalty_gradient(form: str) -> Tensor:
    """Mean policy gradient of minus the reward, when the reward is the penalty alone."""
    weights = LOGITS.log_softmax(0).exp()
    return gradient(lambda logp: (weights * kl_reward(logp, REFERENCE, form) * logp).sum())


def test_as_a_penalty_in_the_reward_k1_follows_the_reverse_kl():
    close(penalty_gradient("k1"), gradient(reverse_kl))


def test_as_a_penalty_in_the_reward_k3_does_not():
    close(penalty_gradient("k3"), gradient(reverse_kl) - gradient(forward_kl))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("weighted", [False, True])
def test_sign(form, weighted):
    """Two tokens, pi = (.9, .1), reference even: descent must lower the first logit."""
    logits = torch.tensor([log(9), 0.0], dtype=torch.float64, requires_grad=True)
    logp = logits.log_softmax(0)
    ratio = (logp - logp.detach()).exp() if weighted else None
    (logp.exp().detach() * kl_loss(logp, torch.tensor([0.5, 0.5]).double().log(), form, ratio)).sum().backward()
    assert logits.grad[0] > 0 > logits.grad[1]


@pytest.mark.parametrize("form", ["k2", "k3"])
def test_gradcheck(form):
    logp = torch.tensor([-0.3, -2.0, -1.1], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([-0.9, -0.4, -1.2], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: kl_loss(x, ref, form), (logp,))


def test_gradcheck_of_the_weighted_k3():
    logp = torch.tensor([-0.3, -2.0, -1.1], dtype=torch.float64, requires_grad=True)
    ref, old = torch.tensor([-0.9, -0.4, -1.2], dtype=torch.float64), torch.tensor([-0.5, -1.0, -1.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: kl_loss(x, ref, "k3", (x - old).exp()), (logp,))
