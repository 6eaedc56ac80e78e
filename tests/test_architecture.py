"""The floor plan, enforced: import directions, no circles, lengths, docstrings."""

import ast
import functools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
METHODS = ("ram", "comi", "comet")
PACKAGES = ("breviary", *METHODS, "data")
ENTRIES = ("train.py", "eval.py", "scripts")
# Packages of breviary from the lowest to the highest; a package imports only those before it. Those of one line are
# side by side and do not import each other.
ORDER = (
    ("breviary.contract",),
    ("breviary.runtime",),
    ("breviary.backbones",),
    ("breviary.memory",),
    ("breviary.decoding",),
    ("breviary.objectives",),
    ("breviary.selection", "breviary.scorers"),
    ("breviary.readers",),
    ("breviary.config",),
    ("breviary.runs",),
    ("breviary.evaluation",),
    ("breviary.training",),
    ("breviary.report", "breviary.serving", "breviary.studies"),
)
# What a file outside breviary may import of ours, besides its own package.
ALLOWED = {**dict.fromkeys(METHODS, ("breviary",)), "data": ("breviary.contract", "breviary.runtime")}
FUNCTION_LINES, FILE_LINES, SCRIPT_LINES, ENTRY_LINES = 60, 400, 150, 120
FOLDER_FILES = 16


def files(*places):
    found = []
    for place in places:
        path = ROOT / place
        found += [path] if path.is_file() else sorted(path.rglob("*.py"))
    return found


def name_of(file):
    return str(file.relative_to(ROOT))


def module_of(file):
    return name_of(file)[:-3].replace("/", ".").removesuffix(".__init__")


@functools.cache
def tree_of(file):
    return ast.parse(file.read_text())


@functools.cache
def nodes_of(file):
    return tuple(ast.walk(tree_of(file)))


@functools.cache
def imports(file):
    """Dotted names that a file imports anywhere in it, under TYPE_CHECKING and inside functions too."""
    names = []
    for node in nodes_of(file):
        if isinstance(node, ast.Import):
            names += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(file)}: relative import"
            names += (f"{node.module}.{alias.name}" for alias in node.names)
    return tuple(names)


def within(name, packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


CHECKED = files(*PACKAGES)
ALL = files(*PACKAGES, *ENTRIES)
GRAPH = {module_of(file): set() for file in ALL}
for file in ALL:
    for name in imports(file):
        # `from package import module` and `from module import name`
        target = name if name in GRAPH else name.rpartition(".")[0]
        if target in GRAPH and target != module_of(file):
            GRAPH[module_of(file)].add(target)


def test_there_is_something_to_check():
    assert {"breviary/contract/reader.py", "comi/model.py", "data/collate.py"} <= {name_of(file) for file in CHECKED}
    assert {"train.py", "eval.py", "scripts/get_backbone.py"} <= {name_of(file) for file in ALL}
    assert "breviary.contract" in GRAPH["data.collate"] and "breviary.training.session" in GRAPH["train"]


def rank_of(module):
    """The position of a module's package in ORDER; None outside breviary's packages."""
    return next((i for i, packages in enumerate(ORDER) if within(module, packages)), None)


def test_every_module_of_breviary_is_in_a_package_of_the_order():
    assert [m for m in GRAPH if m.startswith("breviary.") and rank_of(m) is None] == []


@pytest.mark.parametrize("module", [m for m in GRAPH if m.startswith("breviary.")])
def test_packages_of_breviary_import_only_those_before_them(module):
    package = ".".join(module.split(".")[:2])
    later = [
        t for t in GRAPH[module] if not within(t, (package,)) and (rank_of(t) is None or rank_of(t) >= rank_of(module))
    ]
    assert later == []


@pytest.mark.parametrize("file", [file for file in CHECKED if not name_of(file).startswith("breviary/")], ids=name_of)
def test_methods_and_data_import_only_what_they_may(file):
    package = name_of(file).split("/")[0]
    ours = [name for name in imports(file) if within(name, (*PACKAGES, "train", "eval", "scripts", "tests"))]
    assert [name for name in ours if not within(name, (package, *ALLOWED[package]))] == []


@pytest.mark.parametrize("file", files(*ENTRIES), ids=name_of)
def test_no_script_is_imported(file):
    """Scripts are command lines. train.py may be imported: it is the function that studies and the demo call."""
    assert [name for name in imports(file) if within(name, ("scripts", "eval", "tests"))] == []
    assert file.name != "train.py" or "train" not in GRAPH["eval"]


def circles(graph):
    """Strongly connected components of more than one module (Tarjan)."""
    index, low, stack, found = {}, {}, [], []

    def visit(module):
        index[module] = low[module] = len(index)
        stack.append(module)
        for target in graph[module]:
            if target not in index:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in stack:
                low[module] = min(low[module], index[target])
        if low[module] == index[module]:
            component = stack[stack.index(module) :]
            del stack[-len(component) :]
            if len(component) > 1:
                found.append(sorted(component))

    for module in graph:
        if module not in index:
            visit(module)
    return found


def test_a_circle_is_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == [["b", "c"]]


def test_there_is_no_circle_of_imports():
    # `import breviary` loads the package lazily; its own import of serving.loading is no edge for importers of others.
    assert circles({module: targets - {"breviary"} for module, targets in GRAPH.items()}) == []


@pytest.mark.parametrize("file", [f for f in CHECKED if name_of(f).startswith("breviary/")], ids=name_of)
def test_no_method_is_named_in_the_shared_part(file):
    """Hydra's _target_ is the registry: no `if method == ...`, no import by a method's name as text."""
    texts = [node.value for node in nodes_of(file) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert not [text for text in texts if text in METHODS and name_of(file) != "breviary/runtime/checkout.py"]
    assert not [text for text in texts if any(re.fullmatch(rf"{m}\.\w[\w.]*", text) for m in (*METHODS, "data"))]


def test_third_party_imports_are_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [d for extra in project["optional-dependencies"].values() for d in extra]
    declared = {re.match(r"[A-Za-z0-9_.-]+", d)[0].lower().replace("-", "_") for d in wanted}
    declared |= {"hydra", "yaml"}  # hydra-core, PyYAML
    used = {name.split(".")[0] for file in ALL for name in imports(file)}
    foreign = used - set(sys.stdlib_module_names) - set(PACKAGES) - {"train", "eval", "scripts"}
    assert not foreign - declared


def line_limit(file):
    if name_of(file) in ("train.py", "eval.py"):
        return ENTRY_LINES
    return SCRIPT_LINES if name_of(file).startswith("scripts/") else FILE_LINES


@pytest.mark.parametrize("file", ALL, ids=name_of)
def test_files_and_functions_stay_short(file):
    lines = len(file.read_text().splitlines())
    assert lines <= line_limit(file), f"{lines} lines"
    lengths = {
        node.name: node.end_lineno - node.lineno + 1
        for node in nodes_of(file)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    assert not {name: length for name, length in lengths.items() if length > FUNCTION_LINES}


def test_folders_stay_small():
    counts = {}
    for file in ALL:
        counts[name_of(file.parent)] = counts.get(name_of(file.parent), 0) + 1
    del counts["scripts"]  # a flat list of command lines, see docs/scripts.md
    assert not {folder: count for folder, count in counts.items() if count > FOLDER_FILES}


def without_docstring(node, prefix=""):
    """Public classes, their methods, and functions without a docstring."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and not child.name.startswith("_"):
            if not ast.get_docstring(child):
                yield f"{prefix}{child.name}"
            if isinstance(child, ast.ClassDef):
                yield from without_docstring(child, f"{prefix}{child.name}.")


@pytest.mark.parametrize("file", CHECKED, ids=name_of)
def test_everything_public_has_a_docstring(file):
    """Every module, package, public class, method and function."""
    tree = tree_of(file)
    assert ast.get_docstring(tree), "the module itself"
    assert not list(without_docstring(tree))


def test_nothing_of_ours_is_hidden_by_git():
    """`data/` is a usual line of ignore files; here it is code."""
    paths = [name_of(file) for file in ALL]
    paths += ["data/new_format.py", "data/new_set.jsonl", "configs/dataset/new.yaml", "results/new.json"]
    done = subprocess.run(["git", "check-ignore", *paths], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    assert done.stdout.splitlines() == []


def test_an_install_copies_no_package_of_ours():
    """And adds the checkout to the path where it is editable, see test_checkout.py."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert setuptools == {"packages": [], "package-dir": {"": "."}}
