"""SFT on conversations: the loss falls on the assistant's words and on what ends them, and on nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tacit.config import KINDS, TinyConfig
from tacit.core import tiny
from tacit.core.policy import Policy
from tacit.core.rollouts import Prompt
from tacit.job import run
from tacit.sft.examples import CompletionLoss
from tacit.tasks.records import Records

TEMPLATE = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}a:{% endif %}"  # "\n" ends a turn
TALK = [
    {"role": "user", "content": "ab"},
    {"role": "assistant", "content": "ba"},
    {"role": "user", "content": "bb"},
    {"role": "assistant", "content": "a"},
]
TINY = TinyConfig(hidden=16, layers=1, heads=2, mlp=24, context=64)


def policy(chat: bool = True, system: str | None = None) -> Policy:
    tokenizer = tiny.char_tokenizer("abus:\n")
    tokenizer.chat_template = TEMPLATE
    model = tiny.tiny_model(TINY, tokenizer, seed=0, dtype=torch.float64)
    end = tokenizer.convert_tokens_to_ids("\n")
    assert model.generation_config is not None
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, end]  # pyright: ignore[reportAttributeAccessIssue]
    return Policy(model, tokenizer, chat=chat, system=system)


@pytest.fixture
def talk(tmp_path) -> Records:
    other = [{"role": "user", "content": "ba"}, TALK[3]]
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in (other, TALK)))
    return Records(str(tmp_path / "talk.jsonl"), heldout_share=0.5)


def test_the_loss_is_that_of_the_assistants_tokens_in_the_whole_conversation(talk):
    p = policy()
    job = CompletionLoss(p, talk, batch_size=2)
    examples = job.encode(talk.test)
    assert [p.decode(list(examples.prompts[i])) for i in range(2)] == ["u:ab\na:", "u:ab\na:ba\nu:bb\na:"]
    assert [p.decode(list(examples.completions[i])) for i in range(2)] == ["ba\n", "a\n"]

    ids = torch.tensor([p.tokenizer.apply_chat_template(TALK, tokenize=True, return_dict=False)])
    learnt = torch.tensor([c == "x" for c in "....." + "..xxx" + "....." + "..xx"])  # of u:ab_ a:ba_ u:bb_ a:a_
    logp = p.model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    torch.testing.assert_close(job.loss(examples)[0], -logp[learnt[1:]].sum(), rtol=0, atol=1e-10)


def test_a_system_message_stands_first_once():
    p = policy(system="s")
    assert p.decode(p.encode_prompt(Prompt("a", "ab"))) == "s:s\nu:ab\na:"
    own = [{"role": "system", "content": "uu"}, TALK[0]]
    assert p.decode(p.encode_prompt(Prompt("a", "", None, {"chat_turns": own}))) == "s:uu\nu:ab\na:"


def test_a_conversation_needs_a_template(talk):
    with pytest.raises(ValueError, match=r"prompt 'talk\.jsonl:2/2' is a conversation: set model\.chat: true"):
        CompletionLoss(policy(chat=False), talk, batch_size=1).encode(talk.test)


def test_a_run_on_conversations(tmp_path, talk):
    p = policy()
    p.model.float().save_pretrained(tmp_path / "model")
    p.tokenizer.save_pretrained(tmp_path / "model")
    data: dict[str, Any] = {"output": str(tmp_path / "run"), "task": {"name": str(tmp_path / "talk.jsonl"), "options": {"heldout_share": 0.5}}}
    more: dict[str, Any] = {
        "steps": 60,
        "batch_size": 2,
        "max_new_tokens": 4,
        "evaluation": {"prompts": 1, "temperature": 0},
        "optimiser": {"lr": 1e-2},
    }
    found = run(KINDS["sft"].model_validate(data | more | {"model": {"path": str(tmp_path / "model"), "chat": True}}))
    assert found.folder is not None
    lines = [json.loads(line) for line in (Path(found.folder) / "metrics.jsonl").read_text().splitlines()]
    first, last = ([line["loss/train"] for line in lines if "loss/train" in line][i] for i in (0, -1))
    assert last < 0.5 * first
