"""The floor plan, enforced: who imports whom, how long things may get, and that everything public says what it is."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
METHODS = ("ram", "comi", "comet")
OURS = ("breviary", *METHODS, "data")
ENTRIES = ("train.py", "eval.py", "scripts")
# What a file of each room may import of ours, apart from its own room.
ALLOWED = {"breviary": (), **dict.fromkeys(METHODS, ("breviary",)), "data": ("breviary.contract", "breviary.runtime")}
FUNCTION_LINES, FILE_LINES = 60, 400


def files(*rooms):
    found = []
    for room in rooms:
        path = ROOT / room
        found += [path] if path.is_file() else sorted(path.rglob("*.py"))
    return found


def name_of(file):
    return str(file.relative_to(ROOT))


def imports(file):
    """Dotted names that a file imports, wherever in it: modules, and names taken out of them."""
    assert all(node.level == 0 for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)), (
        f"{name_of(file)}: relative import"
    )
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name, packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


CHECKED = files(*OURS)
LENGTHS = files(*OURS, *ENTRIES)


def test_there_is_something_to_check():
    assert {"breviary/contract.py", "comi/model.py", "data/collate.py"} <= {name_of(file) for file in CHECKED}
    assert {"train.py", "eval.py", "scripts/get_backbone.py"} <= {name_of(file) for file in LENGTHS}


@pytest.mark.parametrize("file", CHECKED, ids=name_of)
def test_imports_go_one_way(file):
    room = file.relative_to(ROOT).parts[0]
    ours = [name for name in imports(file) if within(name, (*OURS, "train", "eval", "scripts", "tests"))]
    wrong = [name for name in ours if not within(name, (room, *ALLOWED[room]))]
    assert not wrong


@pytest.mark.parametrize("file", [file for file in CHECKED if file.parent == ROOT / "breviary"], ids=name_of)
def test_no_method_is_named_in_the_shared_part(file):
    """Hydra's _target_ is the registry: no `if method == ...`, no import by a method's name as text."""
    texts = [
        node.value
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert not [text for text in texts if text in METHODS and name_of(file) != "breviary/runtime/checkout.py"]
    assert not [text for text in texts if any(text.startswith(f"{method}.") for method in (*METHODS, "data"))]


def test_third_party_imports_are_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [d for extra in project["optional-dependencies"].values() for d in extra]
    declared = {re.match(r"[A-Za-z0-9_.-]+", d)[0].lower().replace("-", "_") for d in wanted} | {
        "hydra",
        "yaml",
    }  # hydra-core, PyYAML
    used = {name.split(".")[0] for file in LENGTHS for name in imports(file)}
    foreign = used - set(sys.stdlib_module_names) - set(OURS) - {"train", "eval", "scripts"}
    assert not foreign - declared


@pytest.mark.parametrize("file", LENGTHS, ids=name_of)
def test_files_and_functions_stay_short(file):
    text = file.read_text()
    lines = len(text.splitlines())
    assert lines <= FILE_LINES, f"{lines} lines"
    lengths = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    assert not {name: length for name, length in lengths.items() if length > FUNCTION_LINES}


def without_docstring(node, prefix=""):
    """Public classes, their methods, and functions that say nothing."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and not child.name.startswith("_"):
            if not ast.get_docstring(child):
                yield f"{prefix}{child.name}"
            if isinstance(child, ast.ClassDef):
                yield from without_docstring(child, f"{prefix}{child.name}.")


@pytest.mark.parametrize("file", CHECKED, ids=name_of)
def test_everything_public_says_what_it_is(file):
    tree = ast.parse(file.read_text())
    assert ast.get_docstring(tree), "the module itself"
    assert not list(without_docstring(tree))


def test_nothing_of_ours_is_hidden_by_git():
    """`data/` is a usual line of ignore files; here it is code."""
    paths = [name_of(file) for file in LENGTHS]
    paths += ["data/new_format.py", "data/new_set.jsonl", "configs/dataset/new.yaml", "results/new.json"]
    done = subprocess.run(["git", "check-ignore", *paths], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    assert done.stdout.splitlines() == []


def test_nothing_is_installed_under_our_names():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"] == []
