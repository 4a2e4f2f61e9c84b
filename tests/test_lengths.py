"""Whether completions fit behind prompts is known before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from tacit.config import RLConfig, SFTConfig, TaskConfig
from tacit.core.policy import load_policy
from tacit.core.rollouts import Prompt
from tacit.job import run
from tacit.lengths import LOOKED_AT, check_room, first_prompts
from tacit.tasks.base import resolve_task

SHARED = {
    "output": "run",
    "task": {"name": "sorting", "options": {"min_length": 2, "max_length": 3}},
    "model": {"tiny": {"hidden": 16, "layers": 1, "heads": 2, "mlp": 32, "context": 12}},
    "steps": 1,
    "evaluation": {"prompts": 2},
}


def rl(limit: int) -> RLConfig:
    return RLConfig.model_validate(SHARED | {"sampling": {"prompts": 2, "group_size": 2, "max_new_tokens": limit}})


def checked(config: RLConfig | SFTConfig, *texts: str) -> list[int]:
    policy = load_policy(config.model, alphabet="0123456789")
    return check_room(config, policy, [Prompt(id=f"p/{i}", text=text) for i, text in enumerate(texts)])


def test_prompt_and_completion_may_fill_the_context_and_not_a_token_more() -> None:
    assert checked(rl(7), "123", "12345") == [3, 5]
    with pytest.raises(
        ValueError,
        match=r"^sampling.max_new_tokens \(8\) goes beyond the model's context of 12 tokens: prompt 'p/1' has 5; "
        r"set sampling.max_new_tokens to 7 or less, leave long prompts out, or raise model.tiny.context$",
    ):
        checked(rl(8), "123", "12345")


def test_the_key_is_that_of_the_kind() -> None:
    config = SFTConfig.model_validate(SHARED | {"max_new_tokens": 10})
    assert checked(config, "12") == [2]
    with pytest.raises(ValueError, match=r"^max_new_tokens \(10\) goes .* set max_new_tokens to 9 or less"):
        checked(config, "123")


def test_a_prompt_that_leaves_no_room_at_all_is_told_so() -> None:
    with pytest.raises(ValueError, match="prompt 'p/0' has 12 tokens and the model's context holds 12, so no completion fits"):
        checked(rl(1), "123456789012")


def test_heldout_prompts_and_those_that_training_begins_with_are_looked_at() -> None:
    task = resolve_task(TaskConfig(name="sorting"))
    found = first_prompts(task, task.heldout(3), seed=5)
    assert [prompt.id for prompt in found[:3]] == [prompt.id for prompt in task.heldout(3)]
    assert [prompt.id for prompt in found[3:]] == [task.prompt_at(i, 5).id for i in range(LOOKED_AT)]


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_job_that_does_not_fit_does_not_start(dry_run: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="goes beyond the model's context of 12 tokens"):
        run(rl(10), dry_run=dry_run)  # also where the small step of a dry run would fit
    assert not Path("run", "config.yaml").exists()
