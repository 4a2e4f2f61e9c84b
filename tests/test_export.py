"""`tacit export` on runs that were trained here: what it writes is what the run has, and others can load it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from tacit import config, export
from tacit.cli import app
from tacit.config import RLConfig, SFTConfig
from tacit.core.policy import load_tokenizer
from tacit.job import run as train

MODEL = {"tiny": {"hidden": 16, "layers": 1, "heads": 2, "mlp": 32, "context": 32}}
SHARED = {"task": {"name": "reversal", "options": {"min_length": 2, "max_length": 3}}, "evaluation": {"prompts": 8, "samples": 2}, "steps": 2}
RL = SHARED | {"sampling": {"prompts": 2, "group_size": 2, "max_new_tokens": 5, "temperature": 0.7}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Three finished runs: supervised, reinforcement learning from it, and the same with LoRA."""
    folder = tmp_path_factory.mktemp("runs")
    train(SFTConfig.model_validate(SHARED | {"model": MODEL, "output": str(folder / "sft"), "batch_size": 4, "max_new_tokens": 5}))
    train(RLConfig.model_validate(RL | {"init": str(folder / "sft"), "output": str(folder / "rl")}))
    train(RLConfig.model_validate(RL | {"init": str(folder / "sft"), "output": str(folder / "lora"), "model": {"lora": {"rank": 2}}}))
    return folder


def tacit(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def logits(folder: Path, **options) -> torch.Tensor:
    return AutoModelForCausalLM.from_pretrained(folder, **options)(torch.tensor([[3, 4, 5, 6]])).logits


@pytest.mark.parametrize("name", ["sft", "rl", "lora"])
def test_others_load_what_the_run_has(runs, tmp_path, name):
    told = tacit("export", runs / name, "-o", tmp_path / "out")
    assert told.exit_code == 0 and told.stdout == f"Exported: {tmp_path / 'out'}\n", told.output
    assert torch.equal(logits(tmp_path / "out"), logits(runs / name / "policy"))
    mine, theirs = load_tokenizer(runs / name / "policy"), AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs("abc:").input_ids == mine("abc:").input_ids and theirs.decode(mine("abc:").input_ids) == "abc:"
    assert tacit("sample", tmp_path / "out", "--prompt", "ab:").exit_code == 0
    assert tacit("eval", tmp_path / "out", "--task", "reversal", "--prompts", 4, "--max-new-tokens", 5, "-o", tmp_path / "eval").exit_code == 0


def test_a_server_finds_all_that_it_needs(runs, tmp_path):
    tacit("export", runs / "rl", "-o", tmp_path / "out")
    there = {path.name for path in (tmp_path / "out").iterdir()}
    assert there >= {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "README.md"}
    model = json.loads((tmp_path / "out" / "config.json").read_text())
    assert model["architectures"] == ["LlamaForCausalLM"] and model["dtype"] == "float32"
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["temperature"] == 0.7 and generation["max_new_tokens"] == 5 and generation["eos_token_id"] is not None


def test_adapter_alone_is_one_for_peft(runs, tmp_path):
    assert tacit("export", runs / "lora", "--adapter", "-o", tmp_path / "out").exit_code == 0
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(runs / "sft" / "policy")
    adapted = PeftModel.from_pretrained(base, str(tmp_path / "out"))(torch.tensor([[3, 4, 5, 6]])).logits
    torch.testing.assert_close(adapted, logits(runs / "lora" / "policy"), atol=1e-5, rtol=1e-5)
    told = tacit("export", runs / "rl", "--adapter", "-o", tmp_path / "none")
    assert told.exit_code == 2 and "was trained without LoRA" in told.stderr and not (tmp_path / "none").exists()


def test_another_dtype(runs, tmp_path):
    assert tacit("export", runs / "rl", "--dtype", "bfloat16", "-o", tmp_path / "out").exit_code == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    torch.testing.assert_close(logits(tmp_path / "out").float(), logits(runs / "rl" / "policy"), atol=0.03, rtol=0.03)
    told = tacit("export", runs / "rl", "--dtype", "float8", "-o", tmp_path / "eight")
    assert told.exit_code == 2 and "--dtype must be float32, bfloat16 or float16, not 'float8'" in told.stderr


def test_the_card_says_what_the_run_recorded(runs, tmp_path):
    tacit("export", runs / "rl", "-o", tmp_path / "out")
    _, front, text = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front) == {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["tacit", "reinforcement-learning"]}
    result = json.loads((runs / "rl" / "result.json").read_text())
    assert f"| after training | {100 * result['after']['mean']:.1f}% (" in text and "8 prompts, 2 samples each" in text
    assert "- seed: 0\n" in text and "- task: `reversal` with options" in text and f"from the run `{runs / 'sft'}`" in text and "- torch: " in text
    assert yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())["steps"] == 2


def test_nothing_is_overwritten_unasked_and_nothing_half_done_is_left(runs, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    told = tacit("export", runs / "rl", "-o", out)
    assert told.exit_code == 2 and "is there already; choose another --output, or replace it with --force" in told.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (out / "mine.txt").exists()
    assert tacit("export", runs / "rl", "-o", out, "--force").exit_code == 0
    assert not (out / "mine.txt").exists() and (out / "config.json").exists() and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_every_kind_of_run_has_a_card():
    assert set(export.KINDS) == set(config.KINDS)


def test_an_encoder_is_no_policy(tmp_path):
    (tmp_path / "config.yaml").write_text("kind: retrieval\noutput: run\n")
    with pytest.raises(ValueError, match="kind: retrieval trains an encoder, not a language model"):
        export.export(tmp_path)


def test_what_is_no_finished_run_is_refused(runs, tmp_path):
    told = tacit("export", tmp_path)
    assert told.exit_code == 2 and "holds no run; give the output folder of `tacit train`" in told.stderr
    (tmp_path / "config.yaml").write_text((runs / "rl" / "config.yaml").read_text())
    told = tacit("export", tmp_path)
    assert told.exit_code == 2 and "is not finished, so there is nothing to export yet; finish it with --resume" in told.stderr
