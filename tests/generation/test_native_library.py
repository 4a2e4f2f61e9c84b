from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

import tacit
from tacit.config import TinyConfig
from tacit.core.policy import Policy
from tacit.core.tiny import char_tokenizer, tiny_model
from tacit.generation import native_library
from tacit.generation.decoders import choose, usable_threads
from tacit.generation.native_library import Unavailable, library
from tacit.generation.transformers_decoder import TransformersDecoder

SANITIZERS = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -O1 -g"


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """No library loaded, and a cache of its own."""
    monkeypatch.setenv("TACIT_CACHE", str(tmp_path / "cache"))
    library.cache_clear()
    yield tmp_path / "cache"
    library.cache_clear()


@pytest.fixture(scope="module")
def policy() -> Policy:
    tokenizer = char_tokenizer("0123456789")
    return Policy(tiny_model(TinyConfig(hidden=32, layers=1, heads=2, mlp=64), tokenizer, seed=0), tokenizer)


def fake_compiler(folder: Path, body: str) -> str:
    path = folder / "cxx"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def falls_back(policy: Policy) -> str:
    """The sentence with which the generic decoder is chosen."""
    decoder, sentence = choose(policy)
    assert isinstance(decoder, TransformersDecoder)
    assert len(decoder.prefill([[3, 4]]).logits) == 1
    assert sentence.startswith("LlamaForCausalLM decodes by its own forward pass, which is slower: ") and "\n" not in sentence
    return sentence


def test_no_compiler(policy, fresh, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(fresh))
    assert "there is no C++ compiler" in falls_back(policy)


def test_a_compiler_that_fails_or_does_not_run(policy, fresh, tmp_path, monkeypatch):
    body = 'case "$1" in --version) echo 1;; *) echo "decoder.cpp:1: error: cannot do that" >&2; exit 1;; esac'
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, body))
    assert "failed: decoder.cpp:1: error: cannot do that" in falls_back(policy)
    assert [path.suffix for path in fresh.iterdir()] == [".lock"]  # nothing half made
    library.cache_clear()
    (tmp_path / "cxx").write_text("#!/nowhere/sh\n")
    assert "does not run" in falls_back(policy)


def test_a_compiler_that_never_ends(policy, fresh, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, 'case "$1" in --version) echo 1;; *) exec sleep 60;; esac'))
    monkeypatch.setattr(native_library, "COMPILE_SECONDS", 0.5)
    assert "took more than 0.5 s" in falls_back(policy)


def test_a_cache_that_cannot_be_written(policy, fresh, native_compiler):
    fresh.write_text("a file where the folder should be")
    assert "set TACIT_CACHE to a folder of yours" in falls_back(policy)


def test_a_damaged_library(policy, fresh, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, 'case "$1" in --version) echo 1;; *) for last; do :; done; echo broken > "$last";; esac'))
    assert "remove it to have it compiled again" in falls_back(policy)


@pytest.fixture
def native_compiler():
    try:
        return native_library.find_compiler()
    except Unavailable as error:
        pytest.skip(str(error))


def test_the_key_changes_with_what_it_is_made_from(native_compiler, tmp_path, monkeypatch):
    keys = {native_library.key(native_compiler, flags) for flags in ([], ["-O1"])}
    keys.add(native_library.key(fake_compiler(tmp_path, "echo another"), []))
    monkeypatch.setattr(native_library, "_processor", lambda: "another")
    keys.add(native_library.key(native_compiler, []))
    monkeypatch.setattr(native_library, "SOURCES", tmp_path)
    keys.add(native_library.key(native_compiler, []))
    assert len(keys) == 5


def run(code: str, **environment: str) -> subprocess.Popen[str]:
    variables = os.environ | {"PYTHONPATH": str(Path(tacit.__file__).parents[1])} | environment
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables)


def test_processes_that_start_together_compile_once(native_compiler, tmp_path):
    """The others wait. -O0 keeps the test short."""
    code = "from tacit.generation.native_library import library; print(library().tacit_draw)"
    started = [run(code, TACIT_CACHE=str(tmp_path), TACIT_NATIVE_FLAGS="-O0") for _ in range(3)]
    outputs = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], outputs
    assert "".join(errors for _, errors in outputs).count("tacit: compiling the native decoder with") == 1
    assert len(list(tmp_path.glob("*.so"))) == 1
    again = run(code, TACIT_CACHE=str(tmp_path), TACIT_NATIVE_FLAGS="-O0")
    assert "compiling" not in again.communicate(timeout=60)[1]


def test_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    alone = usable_threads()
    assert alone == len(os.sched_getaffinity(0))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert usable_threads() == max(1, alone // 2)
    for asked, expected in (("3", 3), ("4,2", 4), ("many", 1)):
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
        assert usable_threads() == expected


def test_which_decoder_is_chosen(policy, native):
    assert choose(policy, 1)[1] == "LlamaForCausalLM decodes natively in fp32, 1 thread"
    assert choose(policy, 3)[1] == "LlamaForCausalLM decodes natively in fp32, 3 threads"
    policy.base_model.config.hidden_act = "gelu"
    try:
        assert choose(policy)[1] == "LlamaForCausalLM decodes by its own forward pass: its activation is gelu, not silu"
    finally:
        policy.base_model.config.hidden_act = "silu"


def suite(**environment: str) -> subprocess.CompletedProcess[str]:
    """The tests of the decoder, slow ones too, with a library of its own. Those with a deadline are left to the library that users get."""
    path = Path(__file__).with_name("test_native_decoder.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "slow or not slow", "-k", "not ctrl_c", str(path)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment)


@pytest.mark.slow
@pytest.mark.parametrize("processor", ["x86-64", "haswell", "skylake-avx512"])
def test_the_suite_passes_on_older_processors(native_compiler, tmp_path, processor):
    """Vectors of 4, 8 and 16 floats, and bf16 without its instructions."""
    needs = {"haswell": {"avx2", "fma"}, "skylake-avx512": {"avx512f", "avx512vl", "avx512bw", "avx512dq"}}.get(processor, set[str]())
    info = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not info.exists() or not needs <= set(info.read_text().split()):
        pytest.skip(f"this processor does not run code for {processor}")
    done = suite(TACIT_CACHE=str(tmp_path), TACIT_NATIVE_FLAGS=f"-march={processor}")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout


@pytest.mark.slow
def test_the_suite_passes_with_sanitizers(native_compiler, tmp_path):
    """Reads and writes out of bounds, use after free and undefined behaviour end the process."""
    found = [
        subprocess.run([native_compiler, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    if not all(Path(path).is_absolute() for path in found):
        pytest.skip(f"{native_compiler} brings no sanitizers")
    settings = {"LD_PRELOAD": " ".join(found), "ASAN_OPTIONS": "detect_leaks=0", "TACIT_CACHE": str(tmp_path), "TACIT_NATIVE_FLAGS": SANITIZERS}
    done = suite(**settings)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout
