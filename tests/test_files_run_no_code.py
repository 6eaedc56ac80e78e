"""No file that is opened can run code: no unpickler, no eval in the sources; torch.load reads weights only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("breviary", "comet", "comi", "data", "ram", "scripts")
FORBIDDEN = {"eval", "exec", "compile", "__import__", "extractall", "os.system", "os.popen"}
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
# What a rank of a benchmark hands to the process that started it, through a temporary folder.
ALLOWED = {
    ("comet/bench/pipeline.py", "torch.load without weights_only=True"),
    ("breviary/runs/plain_reading.py", "pickle"),  # an unpickler that admits listed classes only
}


def called_name(node: ast.Call) -> str:
    """a.b.c of a call a.b.c(...); ?.c where it is a method of an expression."""
    parts, function = [], node.func
    while isinstance(function, ast.Attribute):
        parts.append(function.attr)
        function = function.value
    return ".".join([*([function.id] if isinstance(function, ast.Name) else ["?"]), *reversed(parts)])


def keywords(node: ast.Call) -> dict[str, object]:
    return {word.arg: getattr(word.value, "value", ...) for word in node.keywords if word.arg}


def dangers(source: str) -> set[str]:
    """The forbidden imports and calls of a Python source."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.partition(".")[0] in MODULES}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in MODULES:
            found.add(str(node.module))
        elif isinstance(node, ast.Call):
            name, given = called_name(node), keywords(node)
            if name in FORBIDDEN or name.endswith(".extractall"):
                found.add(name)
            if name == "torch.load" and given.get("weights_only") is not True:
                found.add("torch.load without weights_only=True")
            if given.get("allow_pickle") or given.get("trust_remote_code"):
                found.add(f"{name} with {'allow_pickle' if given.get('allow_pickle') else 'trust_remote_code'}")
            if name in ("yaml.load", "yaml.load_all") and "Safe" not in ast.unparse(node):
                found.add(f"{name} without a safe loader")
    return found


def test_the_sources_run_no_code_from_files():
    files = [ROOT / "train.py", ROOT / "eval.py", *(path for name in SOURCES for path in (ROOT / name).rglob("*.py"))]
    found = {
        (path.relative_to(ROOT).as_posix(), danger)
        for path in files
        for danger in dangers(path.read_text(encoding="utf-8"))
    }
    assert found == ALLOWED


@pytest.mark.parametrize(
    "source, danger",
    [
        ("import pickle", "pickle"),
        ("from joblib import load", "joblib"),
        ("torch.load(file)", "torch.load without weights_only=True"),
        ("torch.load(file, weights_only=False)", "torch.load without weights_only=True"),
        ("eval('1')", "eval"),
        ("tarfile.open(name).extractall(folder)", "extractall"),
        ("numpy.load(file, allow_pickle=True)", "numpy.load with allow_pickle"),
        ("Auto.from_pretrained(name, trust_remote_code=True)", "Auto.from_pretrained with trust_remote_code"),
        ("yaml.load(text, yaml.Loader)", "yaml.load without a safe loader"),
    ],
)
def test_each_danger_is_found(source, danger):
    assert any(danger in found for found in dangers(source)), dangers(source)


@pytest.mark.parametrize(
    "source", ["reader.eval()", "build(1).eval()", "torch.load(f, weights_only=True)", "yaml.load(t, yaml.SafeLoader)"]
)
def test_harmless_calls_are_none(source):
    assert not dangers(source)
