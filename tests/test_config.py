"""Recipes: what loads, and the sentence for everything that does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import tacit.config
from tacit.config import ConfigError, ModelConfig, RLConfig, SFTConfig, TaskConfig, TinyConfig, dump, load
from tacit.recipe import Dumper, Loader, Recipe

GOOD = """\
kind: rl
seed: 3
output: runs/sorting
model:
  tiny: {hidden: 64, layers: 2}
task:
  name: sorting
  options: {digits: [5, 9]}
algorithm:
  clip_low: 0.1
  kl:
    coefficient: 1e-3
optimiser:
  lr: 2e-4
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def recipe(text: str = GOOD, name: str = "r.yaml") -> str:
    Path(name).write_text(text)
    return name


def complaint(text: str = GOOD, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(recipe(text), overrides)
    return str(caught.value)


# --- what loads ---


def test_a_recipe_becomes_a_config_with_defaults() -> None:
    config = load(recipe())
    assert isinstance(config, RLConfig)
    assert (config.seed, config.output, config.algorithm.clip_low, config.algorithm.clip_high) == (3, "runs/sorting", 0.1, 0.2)
    assert config.model.tiny == TinyConfig(hidden=64, layers=2)
    assert config.task.options == {"digits": [5, 9]}


def test_exponents_are_numbers_with_and_without_a_point() -> None:
    config = load(recipe(GOOD.replace("2e-4", "1.5E-4")))
    assert config.optimiser.lr == 1.5e-4
    assert config.algorithm.kl.coefficient == 1e-3  # type: ignore[union-attr]


def test_the_kind_chooses_the_model() -> None:
    config = load(recipe("kind: sft\noutput: o\ntask: {name: sorting}\nmodel: {tiny: {}}\n"))
    assert isinstance(config, SFTConfig)
    assert config.optimiser.lr == 2e-3


def test_overrides_are_yaml_and_the_last_one_wins() -> None:
    config = load(recipe(), ["steps=7", "algorithm.clip_low=1e-2", "steps=8", "model.tiny.family=llama", "sampling.stop=[a, '=']", "init=x=y"])
    assert isinstance(config, RLConfig)
    assert (config.steps, config.algorithm.clip_low, config.sampling.stop, config.init) == (8, 0.01, ["a", "="], "x=y")
    assert config.model.tiny == TinyConfig(hidden=64, layers=2, family="llama")


def test_an_override_may_open_a_section_replace_one_and_reach_into_a_list() -> None:
    text = GOOD + "components:\n  - name: pipo\n    options: {window: 4}\n"
    config = load(recipe(text), ["sampling.prompts=4", "model={path: some/model}", "components.0.options.window=8", "optimiser.max_grad_norm="])
    assert isinstance(config, RLConfig)
    assert (config.sampling.prompts, config.model.path, config.model.tiny) == (4, "some/model", None)
    assert (config.components[0].options, config.optimiser.max_grad_norm) == ({"window": 8}, None)


def test_anchors_and_merged_sections_work() -> None:
    text = GOOD.replace("options: {digits: [5, 9]}", "options: {train: &t {low: 1, high: 2}, test: {<<: *t, high: 3}}")
    assert load(recipe(text)).task.options == {"train": {"low": 1, "high": 2}, "test": {"low": 1, "high": 3}}


def test_dump_is_read_back_as_an_equal_config() -> None:
    config = load(recipe(), ["model.lora={rank: 8, target: [q_proj, v_proj]}"])
    assert load(recipe(dump(config), "again.yaml")) == config
    assert dump(config).startswith("kind: rl\n")


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.text() | st.booleans() | st.none() | st.integers() | st.floats(allow_nan=False),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
        max_leaves=6,
    )
)
def test_whatever_stands_in_options_survives_dump_and_load(value: object) -> None:
    config = RLConfig(output="o", task=TaskConfig(name="t", options={"x": value}), model=ModelConfig(tiny=TinyConfig()))
    assert Recipe(Path("r"), yaml.load(dump(config), Loader)).validate(RLConfig) == config


@pytest.mark.parametrize("word", ["1e-4", "yes", "on", "010", "1:30", "2026-01-01", "null", "~", "true", "=", "<<", "\x85", "a\u2028b"])
def test_text_that_looks_like_something_else_is_quoted(word: str) -> None:
    assert yaml.load(yaml.dump({"word": word}, Dumper=Dumper), Loader) == {"word": word}


@pytest.mark.parametrize(
    ("text", "value"), [("1e3", 1000.0), ("yes", "yes"), ("010", "010"), ("0x1F", 31), ("2026-01-01", "2026-01-01"), ("-.5", -0.5), ("1:30", "1:30")]
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    found = yaml.load(text, Loader)
    assert (found, type(found)) == (value, type(value))


def test_neither_config_nor_its_errors_load_torch() -> None:
    code = "import sys; from tacit.config import load, dump; assert not {'torch', 'numpy', 'typer', 'rich'} & set(sys.modules)"
    source = str(Path(tacit.config.__file__).parents[1])
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": source})


# --- what does not: (change to the good recipe, overrides, the sentence) ---

LINES = GOOD.splitlines()


def line(start: str) -> int:
    return next(n for n, text in enumerate(LINES, 1) if text.strip().startswith(start))


WRONG_FILES = {
    "misspelt section": (("algorithm:", "algoritm:"), f"r.yaml:{line('algorithm')}: unknown key 'algoritm'; did you mean 'algorithm'?"),
    "misspelt inner key": (
        ("clip_low", "clip_lo"),
        f"r.yaml:{line('clip_low')}: unknown key 'algorithm.clip_lo'; did you mean 'algorithm.clip_low'?",
    ),
    "American spelling": (("optimiser:", "optimizer:"), f"r.yaml:{line('optimiser')}: unknown key 'optimizer'; did you mean 'optimiser'?"),
    "key in the wrong section": (
        ("clip_low: 0.1", "lr: 0.1"),
        f"r.yaml:{line('clip_low')}: unknown key 'algorithm.lr'; did you mean 'algorithm.critic.lr' or 'optimiser.lr'?",
    ),
    "top-level key inside": (("clip_low: 0.1", "steps: 5"), f"r.yaml:{line('clip_low')}: unknown key 'algorithm.steps'; did you mean 'steps'?"),
    "ambiguous elsewhere": (
        ("clip_low: 0.1", "prompts: 5"),
        f"r.yaml:{line('clip_low')}: unknown key 'algorithm.prompts'; did you mean 'evaluation.prompts' or 'sampling.prompts'?",
    ),
    "dotted key in the file": (
        ("seed: 3", "optimiser.lr: 1"),
        f"r.yaml:{line('seed')}: unknown key 'optimiser.lr'; write it in nested sections, optimiser: lr",
    ),
    "no near name": (
        ("clip_low", "zzz"),
        f"r.yaml:{line('clip_low')}: unknown key 'algorithm.zzz'; the keys here are advantage, critic, length_penalty, ",
    ),
    "text for a number": (("2e-4", "fast"), f"r.yaml:{line('lr')}: 'optimiser.lr' must be a number, not 'fast'"),
    "quoted number": (("2e-4", "'2e-4'"), f"r.yaml:{line('lr')}: 'optimiser.lr' must be a number, not '2e-4'"),
    "fraction for a count": (("seed: 3", "seed: 3.5"), f"r.yaml:{line('seed')}: 'seed' must be a whole number, not 3.5"),
    "truth for a count": (("seed: 3", "seed: true"), f"r.yaml:{line('seed')}: 'seed' must be a whole number, not true"),
    "below the bound": (("layers: 2", "layers: 0"), f"r.yaml:{line('tiny')}: 'model.tiny.layers' must be at least 1, not 0"),
    "on the open bound": (("2e-4", "0"), f"r.yaml:{line('lr')}: 'optimiser.lr' must be more than 0, not 0"),
    "above the bound": (
        ("tiny: {hidden: 64, layers: 2}", "lora: {dropout: 1.0}\n  path: x"),
        f"r.yaml:{line('tiny')}: 'model.lora.dropout' must be less than 1, not 1.0",
    ),
    "infinite": (("2e-4", ".inf"), f"r.yaml:{line('lr')}: 'optimiser.lr' must be a finite number, not inf"),
    "not a choice": (
        ("clip_low: 0.1", "aggregation: token_mean"),
        f"r.yaml:{line('clip_low')}: 'algorithm.aggregation' must be token-mean, token-sum, seq-mean-token-mean, seq-mean-token-sum or "
        "seq-mean-token-sum-norm, not 'token_mean'; did you mean 'token-mean'?",
    ),
    "number for text": (("runs/sorting", "7"), f"r.yaml:{line('output')}: 'output' must be text, not 7; put it in quotes"),
    "word for a truth": (
        ("clip_low: 0.1", "filter: {drop_constant: yes}"),
        f"r.yaml:{line('clip_low')}: 'algorithm.filter.drop_constant' must be true or false, not 'yes'",
    ),
    "value for a section": (
        ("tiny: {hidden: 64, layers: 2}", "tiny: small"),
        f"r.yaml:{line('tiny')}: 'model.tiny' must be a section of 'key: value' lines, not 'small'",
    ),
    "empty section": (
        ("  clip_low: 0.1\n  kl:\n    coefficient: 1e-3\n", ""),
        f"r.yaml:{line('algorithm')}: 'algorithm' is empty; it must be a section",
    ),
    "section for text": (("runs/sorting", "{a: b}"), f"r.yaml:{line('output')}: 'output' must be text, not a section"),
    "value for a list": (("seed: 3", "components: pipo"), f"r.yaml:{line('seed')}: 'components' must be a list, not 'pipo'"),
    "too few values": (("lr: 2e-4", "betas: [0.9]"), f"r.yaml:{line('lr')}: 'optimiser.betas' must have 2 values, not 1"),
    "too many values": (("lr: 2e-4", "betas: [0.9, 0.9, 0.9]"), f"r.yaml:{line('lr')}: 'optimiser.betas' must have 2 values, not 3"),
    "neither branch of a union": (
        ("tiny: {hidden: 64, layers: 2}", "lora: {target: [q, 1]}\n  path: x"),
        f"r.yaml:{line('tiny')}: 'model.lora.target.1' must be text, not 1; put it in quotes",
    ),
    "missing at the top": (("output: runs/sorting\n", ""), "r.yaml: 'output' is missing: folder of the run, for example runs/sorting"),
    "missing inside": (("name: sorting", ""), f"r.yaml:{line('task')}: 'task.name' is missing: "),
    "missing in a list": (("seed: 3", "components: [{options: {}}]"), f"r.yaml:{line('seed')}: 'components.0.name' is missing: a registered name"),
    "two models": (
        ("tiny: {hidden: 64, layers: 2}", "tiny: {}\n  path: x"),
        f"r.yaml:{line('model')}: give either model.path or model.tiny, not both",
    ),
    "no model": (("  tiny: {hidden: 64, layers: 2}", "  path: null"), "r.yaml: name the policy: model.path, model.tiny or init"),
    "no kind": (("kind: rl\n", ""), "r.yaml: 'kind' is missing; write kind: rl or kind: sft or kind: wmss or kind: retrieval"),
    "wrong kind": (("kind: rl", "kind: rlhf"), "r.yaml:1: 'kind' must be rl, sft, wmss or retrieval, not 'rlhf'; did you mean 'rl'?"),
    "kind is a list": (("kind: rl", "kind: [rl]"), "r.yaml:1: 'kind' must be rl, sft, wmss or retrieval, not a list"),
    "given twice": (("seed: 3", "seed: 3\nseed: 4"), "r.yaml:3: 'seed' is given twice, first on line 2; keep one"),
    "inner key given twice": (
        ("clip_low: 0.1", "clip_low: 0.1\n  clip_low: 1"),
        f"r.yaml:{line('clip_low') + 1}: 'algorithm.clip_low' is given twice",
    ),
    "tab": (
        ("  clip_low", "\tclip_low"),
        f"r.yaml:{line('clip_low')}: this is not valid YAML: a tab stands where only spaces may; indent with spaces",
    ),
    "bracket left open": (
        ("{digits: [5, 9]}", "{digits: [5, 9}"),
        f"r.yaml:{line('options')}: this is not valid YAML: while parsing a flow sequence",
    ),
    "colon in text": (("runs/sorting", "a: b"), f"r.yaml:{line('output')}: this is not valid YAML: a second ': ' on one line"),
    "two documents": (("seed: 3", "---\nseed: 3"), "r.yaml:2: this is not valid YAML: expected a single document"),
    "code in a tag": (
        ("runs/sorting", "!!python/name:os.system"),
        f"r.yaml:{line('output')}: this is not valid YAML: could not determine a constructor",
    ),
    "undefined alias": (("runs/sorting", "*where"), f"r.yaml:{line('output')}: this is not valid YAML: found undefined alias 'where'"),
    "endless alias": (
        ("options: {digits: [5, 9]}", "options: &o {a: *o}"),
        f"r.yaml:{line('options')}: 'task.options.a' contains itself through an alias",
    ),
    "key that is a list": (("seed: 3", "[1]: 3"), "r.yaml:2: a key must be a plain name"),
    "control character": (("runs/sorting", "a\x01b"), "r.yaml: this is not valid YAML: unacceptable character #x0001"),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_a_wrong_file_gets_its_sentence(case: str) -> None:
    (old, new), sentence = WRONG_FILES[case]
    assert old in GOOD
    assert complaint(GOOD.replace(old, new, 1)).splitlines()[0].startswith(sentence)


WRONG_OVERRIDES = {
    "algoritm.clip_low=0.1": "unknown key 'algoritm'; did you mean 'algorithm'?",
    "algorithm.clip_lwo=0.1": "unknown key 'algorithm.clip_lwo'; did you mean 'algorithm.clip_low'?",
    "clip_low=0.1": "unknown key 'clip_low'; did you mean 'algorithm.clip_low'?",
    "steps=many": "'steps' must be a whole number, not 'many'",
    "steps=0": "'steps' must be at least 1, not 0",
    "steps": "write key=value, for example algorithm.clip_low=0.1",
    "=3": "write key=value, for example algorithm.clip_low=0.1",
    "sampling..prompts=3": "write key=value, for example algorithm.clip_low=0.1",
    "seed.x=3": "'seed' is 3, which has no keys inside",
    "task.options.digits.2=3": "'task.options.digits' is a list of 2, write a number from 0 to 1 instead of '2'",
    "task.options.digits.low=3": "'task.options.digits' is a list of 2, write a number from 0 to 1 instead of 'low'",
    "sampling.stop=[a": "this is not valid YAML: while parsing a flow sequence expected ',' or ']', but got '<stream end>'",
    "kind=ppo": "'kind' must be rl, sft, wmss or retrieval, not 'ppo'",
    "model={tiny: {hidden: wide}}": "'model.tiny.hidden' must be a whole number, not 'wide'",
}


@pytest.mark.parametrize("override", WRONG_OVERRIDES)
def test_a_wrong_override_is_named(override: str) -> None:
    assert complaint(GOOD, override) == f"override '{override}': {WRONG_OVERRIDES[override]}"


def test_an_override_repairs_what_the_file_has_wrong_and_takes_the_blame_for_what_it_sets() -> None:
    text = GOOD.replace("2e-4", "fast")
    assert load(recipe(text), ["optimiser.lr=0.1"]).optimiser.lr == 0.1
    assert complaint(text, "optimiser={lr: slow}").startswith("override 'optimiser={lr: slow}': 'optimiser.lr' must be a number, not 'slow'")


def test_a_contradiction_between_file_and_override_names_the_section() -> None:
    assert complaint(GOOD, "model.path=x") == f"r.yaml:{line('model')}: give either model.path or model.tiny, not both"


def test_an_override_for_another_kind_is_refused_with_the_keys_there_are() -> None:
    text = "kind: sft\noutput: o\ntask: {name: sorting}\nmodel: {tiny: {}}\n"
    assert complaint(text, "algorithm.clip_low=1").startswith(
        "override 'algorithm.clip_low=1': unknown key 'algorithm'; the keys here are seed, output"
    )


def test_several_mistakes_get_a_line_each_unknown_keys_first_and_not_too_many() -> None:
    message = complaint(GOOD, "steps=0", "seed=-1", "algoritm=1")
    assert [text.split(": ")[0] for text in message.splitlines()] == ["override 'algoritm=1'", "override 'seed=-1'", "override 'steps=0'"]
    many = complaint(GOOD, *[f"zz{n}=1" for n in range(8)]).splitlines()
    assert len(many) == 6
    assert many[-1] == "... and 3 more mistakes"


def test_a_missing_file_names_its_neighbour() -> None:
    recipe(name="sorting.yaml")
    with pytest.raises(ConfigError, match=r"^sortin\.yaml: there is no such file; did you mean sorting\.yaml\?$"):
        load("sortin.yaml")
    with pytest.raises(ConfigError, match=r"^elsewhere/x\.yaml: there is no such file$"):
        load("elsewhere/x.yaml")


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n"])
def test_an_empty_file_says_so(text: str) -> None:
    assert complaint(text) == "r.yaml: this recipe is empty; start it with kind, task, model and output"


@pytest.mark.parametrize(("text", "what"), [("- a\n- b\n", "a list"), ("just words\n", "'just words'"), ("3\n", "3")])
def test_a_file_that_is_not_a_mapping_says_what_it_is(text: str, what: str) -> None:
    assert complaint(text) == f"r.yaml: a recipe is made of 'key: value' lines, this is {what}"


def test_a_folder_and_a_binary_file_are_no_recipes() -> None:
    Path("d.yaml").mkdir()
    with pytest.raises(ConfigError, match=r"^d\.yaml: it cannot be read \(Is a directory\)$"):
        load("d.yaml")
    Path("b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"^b\.yaml: this is not a text file in UTF-8$"):
        load("b.yaml")
