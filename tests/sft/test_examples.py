"""SFT examples: the loss is on the completion and its end, on nothing else, packed or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tacit.config import OptimiserConfig, TinyConfig
from tacit.core import tiny
from tacit.core.fit import Fit
from tacit.core.policy import Policy
from tacit.core.rollouts import Prompt
from tacit.core.runtime import Runtime
from tacit.sft.examples import CompletionLoss, Examples

TOKENIZER = tiny.char_tokenizer("0123456789=")


class Reversal:
    """Numbers of 1 to 11 digits, whose completion is the number written backwards `times` times."""

    def __init__(self, times: int = 1, unsolved: int = -1):
        self.times, self.unsolved = times, unsolved

    def prompt_at(self, ordinal: int, seed: int) -> Prompt:
        return Prompt(f"reversal-{seed}-{ordinal}", f"{7 ** ((5 * ordinal + seed) % 13)}=")

    def solve(self, prompt: Prompt) -> str | None:
        return None if prompt.id.endswith(f"-{self.unsolved}") else prompt.text[-2::-1] * self.times


def job(task: Any = None, context: int = 64, dtype: torch.dtype = torch.float64, **options: Any) -> CompletionLoss:
    config = TinyConfig(hidden=16, layers=2, heads=2, mlp=24, context=context)
    policy = Policy(tiny.tiny_model(config, TOKENIZER, dtype=dtype), TOKENIZER)
    for p in policy.model.parameters():
        p.data *= 4 if p.ndim >= 2 else 1
    return CompletionLoss(policy, task or Reversal(), **{"batch_size": 6, **options})


def total_loss(j: CompletionLoss, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of one whole batch."""
    loss = sum(j.loss(micro)[0] for micro in j.batch_at(step))
    names, params = zip(*j.policy.trainable(), strict=True)
    return loss.detach(), dict(zip(names, torch.autograd.grad(loss, params), strict=True))


def test_the_loss_by_hand():
    j = job()
    task, expected, supervised = j.task, torch.zeros((), dtype=torch.float64), 0
    for ordinal in range(6, 12):
        prompt = task.prompt_at(ordinal, 0)
        before, after = TOKENIZER(prompt.text)["input_ids"], [*TOKENIZER(task.solve(prompt))["input_ids"], tiny.EOS_ID]
        logp = j.policy.model(input_ids=torch.tensor([before + after])).logits[0, :-1].log_softmax(-1)
        targets = torch.tensor((before + after)[1:])
        mask = torch.arange(len(targets)) >= len(before) - 1  # the completion and its end; no token of the prompt
        expected = expected - (logp.gather(-1, targets[:, None])[:, 0] * mask).sum()
        supervised += int(mask.sum())
    gradients = torch.autograd.grad(expected, [p for _, p in j.policy.trainable()])
    found, found_gradients = total_loss(j, step=1)
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-9)
    torch.testing.assert_close(list(found_gradients.values()), list(gradients), rtol=0, atol=1e-9)
    assert sum(j.weight(micro) for micro in j.batch_at(1)) == supervised


def test_the_end_is_learnt():
    examples = job().encode([Reversal().prompt_at(3, 0)])
    assert TOKENIZER.decode(examples.prompts[0].tolist()) + TOKENIZER.decode(examples.completions[0].tolist()[:-1]) == "49=94"
    assert examples.completions[0][-1] == tiny.EOS_ID
    assert len(examples) == 1 and examples.select(torch.tensor([0, 0])).completions.to_lists() == examples.completions.to_lists() * 2


@pytest.mark.parametrize("budget", [16384, 60, 1])
@pytest.mark.parametrize("packing", [True, False])
def test_packing_and_micro_batches_do_not_change_the_loss(packing, budget):
    expected = total_loss(job(packing=False))
    found = total_loss(job(packing=packing, micro_batch_tokens=budget))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_packing_fills_rows():
    widths: dict[bool, list[torch.Size]] = {True: [], False: []}
    for packing, seen in widths.items():
        j = job(packing=packing, batch_size=40)
        j.loss(j.batch_at(0)[0])
        j.policy.model.base_model.register_forward_pre_hook(lambda _, a, k, seen=seen: seen.append(k["input_ids"].shape), with_kwargs=True)
        j.loss(j.batch_at(0)[0])
    assert widths[True][-1].numel() < 0.9 * widths[False][-1].numel()


def test_batches_depend_on_the_step_and_the_seed_alone():
    j = job(seed=5, micro_batch_tokens=1)
    batch = lambda step: [(m.prompts.to_lists(), m.completions.to_lists()) for m in j.batch_at(step)]  # noqa: E731
    assert batch(2) == batch(2) and batch(2) != batch(3)
    ordinals = [j.policy.encode_prompt(j.task.prompt_at(n, 5)) for n in range(12, 18)]
    assert sorted(prompts[0] for prompts, _ in batch(2)) == sorted(ordinals)


@pytest.mark.parametrize("budget", [None, 12])
def test_ranks_get_like_shares_of_the_same_batch(budget):
    j = job(batch_size=16, micro_batch_tokens=budget)
    rows = lambda micros: sorted(p + c for m in micros for p, c in zip(m.prompts.to_lists(), m.completions.to_lists(), strict=True))  # noqa: E731
    whole = rows(j.batch_at(3))
    for ranks in (2, 3, 5):
        micros = j.batch_at(3, ranks)
        assert rows(micros) == whole
        shares = [sum(len(row) for row in rows(micros[rank::ranks])) for rank in range(ranks)]
        assert min(shares) > 0.6 * max(shares), shares


def test_it_learns():
    j = job(batch_size=32, dtype=torch.float32)
    loop = Fit(j, OptimiserConfig(lr=1e-2), steps=25, runtime=Runtime(device="cpu"))
    prompts = [j.task.prompt_at(n, 0) for n in range(900, 913)]
    before = j.heldout_loss(prompts)
    losses = [loop.step()["loss/train"] for _ in range(25)]
    assert losses[-1] < 0.8 * losses[0] and j.heldout_loss(prompts) < 0.8 * before


def test_heldout_loss_is_the_mean_over_tokens():
    j = job(micro_batch_tokens=20)
    prompts = [j.task.prompt_at(n, 0) for n in range(6)]
    loss, _ = total_loss(j)
    tokens = sum(j.weight(micro) for micro in j.batch_at(0))
    assert j.heldout_loss(prompts) == pytest.approx(float(loss) / tokens, rel=1e-9)
    assert isinstance(j.encode(prompts), Examples)


def test_a_prompt_without_a_solution():
    j = job(Reversal(unsolved=7))
    j.batch_at(0)
    with pytest.raises(ValueError, match="the task knows no solution for prompt 'reversal-0-7', so there is nothing to imitate"):
        j.batch_at(1)


def test_an_example_that_does_not_fit():
    j = job(Reversal(times=9), context=30)
    with pytest.raises(
        ValueError, match="prompt 'reversal-0-1' with its solution has 52 tokens, the model's context holds 30: leave such examples out"
    ):
        j.batch_at(0)
    fitting = job(context=10).encode([Prompt("a", "1234=")])
    assert fitting.prompts.lengths + fitting.completions.lengths == 10, "exactly full is not too long"
