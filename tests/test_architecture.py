"""The house keeps its shape: who may import whom, what an import may cost, and what no file of the repository may hold."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"

# Arrows point down: a room may import itself and the floors below it.
FLOORS = [
    {"mistakes"},
    {"recipe", "sections"},
    {"retrieval_config"},
    {"config"},
    {"core"},
    {"generation", "rewards", "tasks", "clients"},
    {"rl", "sft", "steering", "recommend", "retrieval", "routing"},
    {"report"},
    {"learners", "lengths", "forecast", "completion"},
    {"job", "processes"},
    {"evaluation", "doctor", "checkup", "export", "replay"},
    {"studies", "serving"},
    {"cli"},
    {"__main__"},
    {"integrations"},  # thin shells around other libraries: import anything, are imported by nothing
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
PURE = {"tacit.rl.advantages", "tacit.rl.losses", "tacit.rl.aggregation", "tacit.rl.kl"}  # formulas that any room of their floor may call
ALLOWED = {"recommend": PURE | {"tacit.rl.trainer"}}

HEAVY = ("typer", "rich", "plotly", "sentence_transformers", "faiss")  # what importing core and rl must do without
OTHER_NAMES = {
    "yaml": "pyyaml",
    "bs4": "beautifulsoup4",
    "markdown_it": "markdown_it_py",
    "sklearn": "scikit_learn",
    "faiss": "faiss_cpu",
}  # distributions that are not called after their module

LONGEST_FILE = 400  # lines; a longer one has a second reason to exist
MACHINE_PATHS = re.compile(r"(?<![\w.~-])/(?:home|root|work|opt|mnt|Users)/|file:/{2}|[A-Z]:\\\\")
UNFINISHED = re.compile(r"\b(?:TOD[O]|FIXM[E]|XX[X])\b")
DATA_ENDINGS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gz", ".parquet", ".arrow", ".npy", ".npz"}


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def tracked() -> list[Path]:
    """Files of the repository, also those not committed yet. Without git (an unpacked sdist) there is nothing to ask."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.splitlines() if (ROOT / name).is_file()]


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, module) for every import anywhere in a file; `from a import b` counts as a.b, since b may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write imports from the root, not relative ones"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def room_of(module: str) -> str:
    return module.split(".")[1]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


def violations(importer: str, imported: list[tuple[int, str]]) -> list[str]:
    """One sentence for each import that points up or sideways."""
    if importer == "tacit.__init__":
        return []  # the shop window; what it may cost is tested below
    room, found = room_of(importer), []
    assert room in FLOOR, f"{importer}: no floor for the room {room!r} yet; give it one in {Path(__file__).name}"
    for line, target in imported:
        if target in ("tacit", "tacit.__version__") or not target.startswith("tacit."):
            continue
        other = room_of(target)
        below = other == room or FLOOR.get(other, len(FLOORS)) < FLOOR[room]  # unknown: taken from the shop window, above all
        lent = FLOOR.get(other) == FLOOR[room] and any(target == m or target.startswith(m + ".") for m in ALLOWED.get(room, PURE))
        if not (below or lent):
            found.append(f"{importer}:{line} imports {target}: from {room} up or sideways to {other}")
    return found


@pytest.mark.parametrize(
    ("importer", "imported", "wrong"),
    [
        ("tacit.core.policy", "tacit.config.ModelConfig", False),
        ("tacit.core.policy", "tacit.rl.trainer", True),
        ("tacit.tasks.sorting", "tacit.rewards.base", True),
        ("tacit.sft.wmss", "tacit.rl.losses.gspo", False),
        ("tacit.sft.wmss", "tacit.rl.trainer.Trainer", True),
        ("tacit.recommend.lasar", "tacit.rl.trainer.Trainer", False),
        ("tacit.rl.trainer", "tacit.generation.sampler.Sampler", False),
        ("tacit.rl.trainer", "tacit.report.page", True),
        ("tacit.cli", "tacit.integrations.verl", True),
        ("tacit.core.policy", "tacit.Policy", True),
        ("tacit.report.page", "torch.nn", False),
    ],
)
def test_the_arrow_test_sees_a_wrong_arrow(importer: str, imported: str, wrong: bool) -> None:
    assert bool(violations(importer, [(1, imported)])) is wrong


def test_imports_point_down() -> None:
    found = [v for path in modules() for v in violations(name_of(path), list(imports(ast.parse(path.read_text()))))]
    assert not found, "\n".join(found)


def test_every_import_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    known = {re.split(r"[\[<>=~! ]", d)[0].lower().replace("-", "_") for d in declared} | {"tacit"} | set(sys.stdlib_module_names)
    found = []
    for path in modules():
        for line, module in imports(ast.parse(path.read_text())):
            top = module.split(".")[0]
            if OTHER_NAMES.get(top, top) not in known:
                found.append(f"{name_of(path)}:{line} imports {top}, which pyproject.toml does not name")
    assert not found, "\n".join(found)


def python(code: str) -> None:
    """Runs `code` in a fresh interpreter; fails with what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_core_and_rl_import_without_the_heavy_and_rarely_used() -> None:
    wanted = [name_of(p) for p in modules() if name_of(p).split(".")[1] in ("core", "rl") and p.name != "__init__.py"]
    assert len(wanted) > 20
    python(f"import sys, importlib\nfor m in {HEAVY}: sys.modules[m] = None\nfor m in {wanted}: importlib.import_module(m)")


def test_a_recipe_is_read_without_torch() -> None:
    python("import tacit.config, sys\nloaded = {'torch', 'transformers', 'numpy'} & set(sys.modules)\nassert not loaded, loaded")


def test_files_are_short() -> None:
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in modules()}
    too_long = {str(path): lines for path, lines in lengths.items() if lines > LONGEST_FILE}
    assert not too_long, f"more than {LONGEST_FILE} lines: {too_long}"


def test_no_file_names_a_machine_or_leaves_work_for_later() -> None:
    found = []
    for path in tracked():
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if MACHINE_PATHS.search(line) or UNFINISHED.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}")
    assert not found, "\n".join(found)


def test_the_repository_holds_no_data_and_no_weights() -> None:
    found = [str(path.relative_to(ROOT)) for path in tracked() if path.suffix in DATA_ENDINGS or path.stat().st_size > 2**20]
    assert not found, f"data or weights, or more than 1 MiB: {found}"
