"""The forecast of memory, part by part, beside numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tacit.config import RLConfig, SFTConfig, WMSSConfig
from tacit.forecast import HOLES, MIB, SCRATCH, MicroBatch, Sizes, Texts, cache, disk, forecast, head, kept_by_layer, micro_batch, saved_bytes

SHARED = {"output": "run", "task": {"name": "sorting"}, "model": {"tiny": {}}, "evaluation": {"prompts": 6, "samples": 2}}
SMALL = Sizes(layers=2, hidden=8, heads=2, attention=8, keys=4, mlp=16, vocabulary=10, parameters=1000, trained=1000)
PLAIN = MicroBatch(tokens=100, row=10, masked=False, several=True)


def rl(sampling: dict[str, Any] | None = None, **changes: Any) -> RLConfig:
    sampling = {"prompts": 4, "group_size": 3, "max_new_tokens": 6} | (sampling or {})
    return RLConfig.model_validate(SHARED | {"sampling": sampling} | changes)


def sft(**changes: Any) -> SFTConfig:
    return SFTConfig.model_validate(SHARED | {"batch_size": 20, "max_new_tokens": 6} | changes)


def parts(config: RLConfig | SFTConfig, sizes: Sizes = SMALL, **how: Any) -> dict[str, int]:
    return {part.name: part.bytes for part in forecast(config, sizes, Texts(4, 5), process=500, **how).parts}


def test_micro_batches_of_supervised_training_are_filled_with_rows_of_the_longest() -> None:
    assert micro_batch(sft(micro_batch_tokens=40), SMALL, Texts(4, 5)) == MicroBatch(36, 9, True, True)  # 4 rows of 9 of the 20
    assert micro_batch(sft(packing=False), SMALL, Texts(4, 5)) == MicroBatch(180, 9, False, False)  # all 20, below the 4096 of a CPU
    assert micro_batch(sft(micro_batch_tokens=3), SMALL, Texts(4, 5)).tokens == 9  # a row longer than the budget is one of its own
    assert micro_batch(sft(micro_batch_tokens=180, runtime={"processes": 3}), SMALL, Texts(4, 5)).tokens == 63  # 7 rows a process


def test_micro_batches_of_reinforcement_learning_share_their_prompts() -> None:
    assert micro_batch(rl(), SMALL, Texts(40)) == MicroBatch(4 * 58, 58, False, False)  # 40 + 3 * 6 tokens a prompt
    alone = rl(algorithm={"prefix_sharing": False, "micro_batch_tokens": 100})
    assert micro_batch(alone, SMALL, Texts(40)) == MicroBatch(92, 46, False, True)
    tight = rl(algorithm={"micro_batch_tokens": 53})  # room for two completions behind the prompt
    assert micro_batch(tight, SMALL, Texts(40)) == MicroBatch(52, 52, False, True)
    short = rl({"max_new_tokens": 60})  # 4 + 180 tokens are more than nine tenths of three rows of 64
    assert micro_batch(short, SMALL, Texts(4)) == MicroBatch(12 * 64, 64, False, False)
    assert micro_batch(rl(algorithm={"minibatch_rows": 2, "prefix_sharing": False}), SMALL, Texts(4)).tokens == 20


@pytest.mark.parametrize(
    ("sizes", "how", "expected"),
    [
        # fp32: two inputs, two normalised, two outputs of norms (6 x 8); queries and result (2 x 8), keys and values (2 x 4), the MLP's four (4 x 16)
        ({}, {}, 4 * (48 + 16 + 8 + 64)),
        # frozen norms do not keep what they scaled
        ({"trained": 100}, {}, 4 * (32 + 16 + 8 + 64)),
        # bf16: inputs of norms are kept in fp32 (2 x 8 x 4), the rest in two bytes
        ({"element": 2}, {}, 64 + 2 * (32 + 16 + 8 + 64)),
        # autocast: norms in fp32 (4 x 8 x 4), their outputs once for each of five matrices, in two bytes
        ({}, {"autocast": True}, 128 + 2 * (40 + 16 + 8 + 64)),
        # attention that keeps its scores: twice, for both heads, over a row of 10
        ({}, {"eager": True}, 4 * (136 + 2 * 2 * 10)),
    ],
)
def test_what_a_layer_keeps_of_a_token(sizes: dict[str, int], how: dict[str, bool], expected: int) -> None:
    made = replace(SMALL, **sizes)
    assert kept_by_layer(made, PLAIN, **how) == expected


def test_a_mask_is_kept_where_rows_hold_several_texts() -> None:
    assert kept_by_layer(SMALL, MicroBatch(100, 10, True, True)) - kept_by_layer(SMALL, PLAIN) == 4 * 10


def test_parts_of_supervised_training() -> None:
    found = parts(sft(packing=False))
    kept = 180 * (2 * 544 + 8 * 12)  # 180 tokens: two layers, and the last norm with what it gives
    assert found == {
        "process": 500,
        "weights": 4000,
        "optimiser states": 8000,
        "keys and values": 12 * (4 + 6 + 16) * 2 * 4 * 2 * 4,  # evaluation: 6 prompts, 2 completions each
        "logits of a step": 12 * 10 * 36,
        "gradients": 4000,
        "activations": kept,
        "their gradients": 180 * 544,
        "logits and their gradient": 4 * 4 * 1800 + 4 * 80,
        "holes between blocks": round(HOLES * kept) + SCRATCH,
        "file being written": 12000,
        "tensors being written": 12000,
    }


def test_the_largest_phase_counts_once_and_processes_add_up() -> None:
    config = sft(packing=False, runtime={"processes": 2})
    found = forecast(config, SMALL, Texts(4, 5), process=500)
    of = {phase: sum(p.bytes for p in found.parts if p.phase == phase) for phase in ("always", "drawing", "learning", "saving")}
    assert of["learning"] > max(of["drawing"], of["saving"]) > 0
    assert found.memory == found.host_memory == 2 * (of["always"] + of["learning"])
    assert {p.name: p.bytes for p in found.parts}["gradients of all processes"] == 4000


def test_an_adapter_has_gradients_and_moments_and_the_model_has_none() -> None:
    adapted = replace(SMALL, parameters=1100, trained=100)
    found = parts(sft(), adapted)
    assert (found["weights"], found["gradients"], found["optimiser states"], found["file being written"]) == (4400, 400, 800, 1200)
    assert found["logits and their gradient"] == 4 * 4 * 1800  # the head is frozen


def test_a_reference_is_a_copy_unless_adapters_can_be_switched_off() -> None:
    config = rl(algorithm={"kl": {"coefficient": 0.1}})
    assert parts(config)["reference policy"] == 4000
    assert "reference policy" not in parts(rl())
    adapted = replace(SMALL, trained=100)
    assert "reference policy" not in parts(config, adapted)


def test_a_critic_is_a_trunk_that_trains_or_an_adapter() -> None:
    config = rl(algorithm={"advantage": "gae"})
    found = parts(config)
    assert (found["critic"], found["its optimiser states"], found["gradients of the critic"]) == (4000, 8000, 4000)
    assert saved_bytes(config, SMALL) == 3 * 2 * 4000 and "critic" not in parts(rl())
    assert parts(config, replace(SMALL, tied=False))["critic"] == 4 * (1000 - 80)  # without the head
    assert parts(config, replace(SMALL, parameters=1100, trained=100))["critic"] == 400


def test_the_native_decoder_packs_weights_and_shares_whole_pages_of_prompts() -> None:
    config = rl({"prompts": 2, "group_size": 3, "max_new_tokens": 20}, evaluation={"prompts": 2})
    found = {p.name: p.bytes for p in forecast(config, SMALL, Texts(70), process=0, native=True).parts}
    assert found["weights of the native decoder"] == 4000
    pages = 2 * 2 + 6 * 1  # of 32 positions: two full ones of each prompt, and one in which a row goes on from 70 to 90
    assert found["keys and values"] == pages * 32 * 2 * 4 * 2 * 4
    untied = replace(SMALL, tied=False, element=2)
    assert parts(rl(), untied, native=True)["weights of the native decoder"] == 2 * (1000 - 80)  # the embedding is read where it lies


def test_fewer_rows_at_a_time_hold_fewer_keys() -> None:
    one, all_ = (cache(rl({"rows": rows}, evaluation={"prompts": 1}), SMALL, Texts(4), native=False) for rows in (3, 512))
    assert all_ == 4 * one


def test_wmss_counts_the_weak_model_and_a_frozen_one_for_less() -> None:
    weak = replace(SMALL, parameters=600, trained=600, layers=1)
    config = WMSSConfig.model_validate(SHARED | {"batch_size": 20, "weak": "w", "packing": False})
    trained = parts(config, weak=weak)
    assert trained["weak model"] == 2400 and trained["its optimiser states"] == 4800 and trained["gradients of the weak model"] == 2400
    assert trained["activations"] == 180 * (2 * 544 + 96) + 180 * (544 + 96)
    assert trained["file being written"] == 12000 + 2400 + 4800 and "strong model as the round began" not in trained
    again = parts(config.model_copy(update={"rounds": 2}), weak=weak)
    assert again["strong model as the round began"] == 4000 and again["file being written"] == 12000 + 4000 + 2400 + 4800
    frozen = parts(config.model_copy(update={"frozen": True}), weak=weak)
    assert frozen["activations"] == 180 * (2 * 544 + 96)
    assert frozen["file being written"] == 12000 + 2400
    assert "its optimiser states" not in frozen


def test_the_best_policy_and_kept_ones_are_counted() -> None:
    best, plain = (parts(sft(**how, evaluation={"every": 2})) for how in ({"keep": "best"}, {}))
    assert best["best policy so far"] == 4000 and best["file being written"] == plain["file being written"] + 4000
    assert disk(sft(steps=10, keep="every", keep_every=3), SMALL) == disk(sft(steps=10), SMALL) + 3 * SMALL.weights


def test_checkpointing_keeps_the_inputs_of_layers_and_one_layer() -> None:
    plain, saving = parts(sft(packing=False)), parts(sft(packing=False, model={"tiny": {}, "gradient_checkpointing": True}))
    assert saving["activations"] == 180 * (2 * 8 * 4 + 544 + 96) < plain["activations"]


def test_logits_are_held_in_chunks_of_the_vocabulary() -> None:
    large = replace(SMALL, vocabulary=2**20)
    assert head(large, PLAIN) == 4 * 4 * 2**22 + 4 * 2**20 * 8  # four rows at a time, however many tokens there are


def test_on_cuda_the_device_and_the_machine_are_told_apart() -> None:
    found = forecast(sft(runtime={"processes": 2}), SMALL, Texts(4, 5), process=500, device="cuda")
    names = {p.name for p in found.parts}
    assert "CUDA" in names and "holes between blocks" not in names
    assert found.host_memory == 2 * (500 + 12000 + 12000)
    assert found.memory == sum(p.bytes for p in found.parts if not p.host and p.phase in ("always", "learning"))
    assert micro_batch(sft(micro_batch_tokens=None, batch_size=9999), SMALL, Texts(4, 5), "cuda").tokens == 16384 // 9 * 9


def test_sharded_weights_are_divided_and_a_whole_copy_draws() -> None:
    found = parts(sft(runtime={"processes": 2, "distributed": "fsdp2"}))
    assert (found["weights"], found["whole weights, to draw with"], found["optimiser states"], found["gradients"]) == (2000, 4000, 4000, 2000)
    assert "gradients of all processes" not in found


def test_disk_holds_the_checkpoints_kept_one_in_the_making_dumps_and_the_policy() -> None:
    config = rl(steps=10, dump={"every": 5}, checkpoint={"keep": 3})
    assert saved_bytes(config, SMALL) == 12000
    assert disk(config, SMALL) == (3 + 1 + 2) * 12000 + 4000
    assert MIB == 1024 * 1024
