"""Joint training: the strong branch alone where λ is 1, one vocabulary, rounds, and runs that resume bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tacit.config import KINDS, ModelConfig, OptimiserConfig, SelectionConfig, TinyConfig
from tacit.core import tiny
from tacit.core.checkpoint import CheckpointStore
from tacit.core.fit import Fit
from tacit.core.policy import Policy, load_policy
from tacit.core.rollouts import Prompt
from tacit.core.rundir import JsonLines
from tacit.core.runtime import Runtime
from tacit.job import run
from tacit.sft.examples import CompletionLoss
from tacit.sft.noise import embedding_noise, neftune
from tacit.sft.wmss import JointLoss, choose_examples, cost, entropies

TOKENIZER = tiny.char_tokenizer("0123456789=")


class Reversal:
    def prompt_at(self, ordinal: int, seed: int) -> Prompt:
        return Prompt(f"reversal-{seed}-{ordinal}", f"{7 ** ((5 * ordinal + seed) % 13)}=")

    def solve(self, prompt: Prompt) -> str | None:
        return prompt.text[-2::-1]


def policy(seed: int = 0, hidden: int = 16, dtype: torch.dtype = torch.float64, alphabet: str = "0123456789=") -> Policy:
    tokenizer = tiny.char_tokenizer(alphabet)
    made = Policy(tiny.tiny_model(TinyConfig(hidden=hidden, layers=1, heads=2, mlp=24, context=64), tokenizer, seed=seed, dtype=dtype), tokenizer)
    for p in made.model.parameters():
        p.data *= 4 if p.ndim >= 2 else 1
    return made


def joint(dtype: torch.dtype = torch.float64, **options: Any) -> JointLoss:
    return JointLoss(policy(0, dtype=dtype), Reversal(), policy(1, hidden=8, dtype=dtype), **{"lam": 0.5, "batch_size": 6, **options})


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_lambda_one_is_plain_sft(dtype, tolerance):
    mixed, plain = joint(dtype, lam=1.0), CompletionLoss(policy(0, dtype=dtype), Reversal(), batch_size=6)
    losses = [Fit(j, OptimiserConfig(lr=1e-3), steps=3, runtime=Runtime(device="cpu")).step()["loss/train"] for j in (mixed, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=tolerance)
    mixed, plain = joint(dtype, lam=1.0), CompletionLoss(policy(0, dtype=dtype), Reversal(), batch_size=6)
    micro = plain.batch_at(1)[0]
    found, expected = (torch.cat([g.flatten() for g in torch.autograd.grad(j.loss(micro)[0], strong_weights(j))]) for j in (mixed, plain))
    assert float((found - expected).norm()) <= tolerance * float(expected.norm())
    mixed.loss(micro)[0].backward()
    assert not any(p.grad is not None and p.grad.any() for p in mixed.weak.model.parameters())


def strong_weights(j: CompletionLoss) -> list[torch.nn.Parameter]:
    return [p for _, p in j.policy.trainable()]


@pytest.mark.parametrize("frozen", [True, False])
def test_both_branches_train_unless_the_weak_one_is_frozen(frozen):
    j = joint(frozen=frozen, shuffle=True, label_smoothing=0.1)
    before = [[p.clone() for p in model.parameters()] for model in (j.policy.model, j.weak.model)]
    names = ["strong"] if frozen else ["strong", "weak"]
    fit = Fit(j, OptimiserConfig(lr=1e-2), steps=3, branches={n: j.branches[n] for n in names}, clip_branches=True, runtime=Runtime(device="cpu"))
    metrics = fit.step()
    changed = [
        any(not torch.equal(a, b) for a, b in zip(old, m.parameters(), strict=True)) for old, m in zip(before, j.branches.values(), strict=True)
    ]
    assert changed == [True, not frozen]
    assert all(metrics[f"optimiser/grad_norm_{name}"] > 0 for name in names) and metrics["optimiser/grad_norm"] <= len(names) ** 0.5 + 1e-6
    assert 0 < metrics["wmss/c"] <= 1 and 0 <= metrics["wmss/amplified"] <= 1


def test_label_smoothing_and_scale_by_hand():
    j = CompletionLoss(policy(), Reversal(), batch_size=1, label_smoothing=0.2, logit_scale=0.5)
    micro = j.batch_at(2)[0]
    ids, start = torch.tensor([micro.prompts[0].tolist() + micro.completions[0].tolist()]), len(micro.prompts[0]) - 1
    z = j.policy.model(input_ids=ids).logits[0, start:-1] * 0.5
    expected = torch.nn.functional.cross_entropy(z, micro.completions.values, label_smoothing=0.2, reduction="sum")
    torch.testing.assert_close(j.loss(micro)[0], expected, rtol=0, atol=1e-10)
    j.label_smoothing = 0.0
    torch.testing.assert_close(j.loss(micro)[0], torch.nn.functional.cross_entropy(z, micro.completions.values, reduction="sum"), rtol=0, atol=1e-10)


def test_another_vocabulary_is_refused():
    with pytest.raises(ValueError, match="the weak model has another vocabulary than the strong one"):
        JointLoss(policy(), Reversal(), policy(alphabet="0123456789+"), lam=0.5, batch_size=2)


def test_entropies_are_of_the_positions_that_predict():
    strong = policy()
    examples = CompletionLoss(strong, Reversal(), batch_size=1).encode([Reversal().prompt_at(3, 0)])
    ids, start = torch.tensor([examples.prompts[0].tolist() + examples.completions[0].tolist()]), len(examples.prompts[0]) - 1
    logp = strong.model(input_ids=ids).logits[0, start:-1].log_softmax(-1)
    assert entropies(strong, examples).item() == pytest.approx(float(-(logp.exp() * logp).sum(-1).mean().detach()), abs=1e-10)


def test_choosing():
    weak, strong = torch.linspace(1, 2, 40), torch.linspace(0.2, 0.1, 40)
    kept, told = choose_examples(weak, strong, SelectionConfig())
    assert len(set(kept)) == len(kept) == told["wmss/selected"] and told["wmss/entropy_gap"] == pytest.approx(0.9)
    assert len(choose_examples(weak, strong, SelectionConfig(formula="random"))[0]) == len(kept)
    assert choose_examples(weak, strong, SelectionConfig(formula="none"))[0] == list(range(40))
    with pytest.raises(ValueError, match="the weak model is the strong one"):
        choose_examples(weak, weak, SelectionConfig())


def test_neftune_only_in_training():
    noise = embedding_noise(torch.zeros(2, 9, 4), 3.0)
    assert 0.45 < float(noise.abs().max()) <= 0.5
    made = policy()
    ids = torch.tensor([[3, 4, 5]])
    before = made.model.eval()(input_ids=ids).logits
    with neftune(made.model, 5.0):
        assert torch.equal(made.model(input_ids=ids).logits, before)
        assert not torch.equal(made.model.train()(input_ids=ids).logits, before)
    with neftune(made.model, 0.0):
        assert torch.equal(made.model(input_ids=ids).logits, before)


def test_cost_says_what_comes():
    assert cost(policy(), policy(1), frozen=False).endswith("about 2.0 times as long")
    assert cost(policy(), policy(1), frozen=True).endswith("about 1.3 times as long")


def recipe(folder: Path, kind: str = "wmss", seed: int = 0, **extra: Any) -> Any:
    data = {
        "output": str(folder),
        "seed": seed,
        "task": {"name": "reversal"},
        "model": {"tiny": {"hidden": 16, "layers": 1, "heads": 2, "mlp": 24, "context": 40}},
        "steps": 4,
        "batch_size": 4,
        "max_new_tokens": 4,
        "evaluation": {"prompts": 4},
        "checkpoint": {"every": 1, "keep": 20},
        "optimiser": {"lr": 1e-2},
    }
    return KINDS[kind](**(data | extra))


@pytest.fixture(scope="module")
def past(tmp_path_factory):
    folder = tmp_path_factory.mktemp("past") / "weak"
    run(recipe(folder, "sft", seed=5, steps=2))
    return folder


def test_rounds_resume_bit_for_bit(tmp_path, past):
    options: dict[str, Any] = {"weak": str(past), "rounds": 2, "examples": 12, "shuffle": True, "neftune": 1.0}
    assert run(recipe(tmp_path / "alone", **options)).result["kind"] == "wmss"
    expected = load_file(tmp_path / "alone/policy/model.safetensors")
    for step in (0, 1, 2, 3):  # before the entropies, in a round, between rounds, in the second
        again = recipe(tmp_path / f"cut-{step}", **options)
        run(again)
        folder = Path(again.output)
        store = CheckpointStore(folder / "checkpoints", keep=20)
        for newer in store.steps():
            if newer > step:
                for file in (found := next(p for p in (folder / "checkpoints").iterdir() if p.name.endswith(f"{newer}"))).iterdir():
                    file.unlink()
                found.rmdir()
        (folder / "result.json").unlink()
        run(again, resume=True)
        found_weights = load_file(folder / "policy/model.safetensors")
        assert all(torch.equal(expected[name], found_weights[name]) for name in expected), step


def test_shuffles_differ_between_micro_batches_and_come_again_after_a_resume():
    j = joint(shuffle=True, frozen=True)
    micro = j.batch_at(0)[0]
    torch.manual_seed(7)
    state = torch.get_rng_state()
    losses = [float(j.loss(micro)[0].detach()) for _ in range(4)]
    assert len(set(losses)) == 4
    torch.set_rng_state(state)
    assert [float(j.loss(micro)[0].detach()) for _ in range(4)] == losses


def test_a_weak_model_that_is_too_close_is_told_with_the_gap(tmp_path, past, caplog):
    run(recipe(tmp_path / "next", "sft", init=str(past), steps=1, optimiser={"lr": 1e-5}))
    found = run(recipe(tmp_path / "close", weak=str(past), init=str(tmp_path / "next"), examples=8, steps=1))
    gap = next(line["wmss/entropy_gap"] for line in JsonLines(tmp_path / "close/metrics.jsonl").records() if "wmss/entropy_gap" in line)
    assert abs(gap) < 0.1 and f"entropy gap {gap:.3f}, where 0.1 or more is wanted" in caplog.text
    assert found.result["measured"]["weak_pass@1"] >= 0


def test_a_weak_model_of_another_vocabulary_is_refused_before_training(tmp_path, past):
    run(recipe(tmp_path / "sorting", "sft", task={"name": "sorting"}, steps=1))
    with pytest.raises(ValueError, match="the weak model has another vocabulary than the strong one"):
        run(recipe(tmp_path / "odd", weak=str(tmp_path / "sorting")))


def test_15_the_extracted_model_gives_the_logits_of_the_branch(tmp_path):
    j = joint(torch.float32)
    Fit(j, OptimiserConfig(lr=1e-2), steps=2, runtime=Runtime(device="cpu")).step()
    j.policy.save(tmp_path / "strong")
    alone, ids = load_policy(ModelConfig(), folder=tmp_path / "strong"), torch.tensor([[3, 4, 5, 6]])
    assert sum(p.numel() for p in alone.model.parameters()) == sum(p.numel() for p in policy(0).model.parameters())
    assert torch.equal(alone.model.eval()(input_ids=ids).logits, j.policy.model.eval()(input_ids=ids).logits)


@pytest.mark.parametrize("frozen", [False, True])
def test_adapters_train_in_both_models_and_resume(tmp_path, past, frozen):
    """LoRA: the base stays as it is, only adapters are saved, and the second round's weak model is the first one's start."""
    options: dict[str, Any] = {"weak": str(past), "frozen": frozen, "examples": 8, "rounds": 2, "steps": 2, "init": str(past)}
    options |= {"model": {"lora": {"rank": 2}}, "weak": str(past.parent / "weaker")}
    run(recipe(past.parent / "weaker", "sft", seed=5, steps=1)) if not (past.parent / "weaker").exists() else None
    run(recipe(tmp_path / "alone", **options))
    state = CheckpointStore(tmp_path / "alone/checkpoints").latest().state["learner"]  # pyright: ignore[reportOptionalMemberAccess]
    assert all("lora_" in name for name in state["policy"]) and (tmp_path / "alone/policy/adapter").is_dir()
    first = CheckpointStore(tmp_path / "alone/checkpoints").read(1)["learner"]
    assert any("lora_" in name and bool(t.any()) for name, t in first["weak"].items() if "lora_B" in name) == (not frozen)
    cut = tmp_path / "cut"
    run(recipe(cut, **options))
    for folder in (cut / "checkpoints").glob("step-00000002*"):
        shutil.rmtree(folder)
    (cut / "result.json").unlink()
    run(recipe(cut, **options), resume=True)
    one, other = (load_file(f / "policy/model.safetensors") for f in (tmp_path / "alone", cut))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_15_the_strong_branch_is_an_ordinary_model(tmp_path, past):
    run(recipe(tmp_path / "joint", weak=str(past), examples=8, steps=2))
    joint_weights, alone = (load_file(f / "policy/model.safetensors") for f in (tmp_path / "joint", past))
    assert {k: v.shape for k, v in joint_weights.items()} == {k: v.shape for k, v in alone.items()}
    state = CheckpointStore(tmp_path / "joint/checkpoints").latest().state["learner"]["policy"]  # pyright: ignore[reportOptionalMemberAccess]
    assert all(torch.equal(state[name], joint_weights[name]) for name in state)


def test_the_same_model_twice_is_refused(tmp_path, past):
    with pytest.raises(ValueError, match="the weak model is the strong one"):
        run(recipe(tmp_path / "same", weak=str(past), init=str(past), examples=8))
