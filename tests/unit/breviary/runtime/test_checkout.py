"""The checkout among other packages: what an editable install exposes, and how a conflict of names is explained."""

import importlib
import subprocess
import sys
import zipfile

import pytest
from tiny_runs import tiny_run

import breviary
from breviary.runtime.checkout import PACKAGES, ROOT, foreign_packages, require_checkout


@pytest.fixture
def other(tmp_path, monkeypatch):
    """other(file): makes an empty Python file in a folder that is first on the path; ours count as not imported."""

    def make(file):
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        for name in PACKAGES[1:]:  # importing them again would make second classes
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.syspath_prepend(tmp_path)
        importlib.invalidate_caches()
        return tmp_path

    return make


def test_an_editable_install_adds_the_checkout_to_the_path_and_copies_no_package(tmp_path):
    """Built from the files that pip reads, without the packages: `packages = []` finds none in the checkout either."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "breviary").mkdir()
    (tmp_path / "breviary" / "__init__.py").write_text("")
    build = "from setuptools import build_meta; build_meta.build_editable('wheel')"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True)
    [wheel] = (tmp_path / "wheel").glob("breviary-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        [path] = [name for name in archive.namelist() if ".dist-info/" not in name]
        assert path.endswith(".pth") and archive.read(path).decode().split() == [str(tmp_path)]


def test_here_all_packages_are_the_checkout_s():
    assert foreign_packages() == []
    require_checkout()


@pytest.mark.parametrize("file", ["data/__init__.py", "data.py"])
def test_a_package_of_another_project_is_named_with_its_place(other, file, capsys):
    folder = other(file)
    [message] = foreign_packages()
    assert message == (
        f"package 'data': Breviary needs {ROOT}/data, but Python finds {folder}/{file.removesuffix('/__init__.py')} "
        f"first; one process cannot import both: rename that one, or call Breviary from a script in another folder "
        f"than {folder}"
    )
    with pytest.raises(SystemExit) as exit:
        require_checkout()
    assert exit.value.code == 2 and capsys.readouterr().err == f"error: {message}\n"


def test_an_installed_package_is_named_with_its_distribution(other, tmp_path, monkeypatch):
    site = tmp_path / "lib" / "site-packages"
    other("lib/site-packages/comet/__init__.py")
    (site / "comet_score-2.0.dist-info").mkdir()
    facts = {"METADATA": "Metadata-Version: 2.1\nName: comet-score\nVersion: 2.0\n", "top_level.txt": "comet\n"}
    for file, text in facts.items():
        (site / "comet_score-2.0.dist-info" / file).write_text(text)
    monkeypatch.syspath_prepend(site)
    assert foreign_packages() == [
        f"package 'comet': Breviary needs {ROOT}/comet, but Python finds {site}/comet first (installed by comet-score)"
        "; one process cannot import both: use an environment without it, or, where nothing here imports it, set "
        f"PYTHONPATH={ROOT}"
    ]


def test_a_folder_of_data_files_is_no_conflict(other):
    """Many projects have a folder `data` without code, and Python prefers a package to it."""
    other("data/train.jsonl")
    assert foreign_packages() == []


def test_a_package_in_an_environment_inside_the_checkout_is_foreign(other, monkeypatch):
    """As .venv is."""
    folder = other("home/.venv/site-packages/ram/__init__.py")
    (folder / "home" / "ram").mkdir()
    monkeypatch.setattr("breviary.runtime.checkout.ROOT", folder / "home")
    monkeypatch.syspath_prepend(folder / "home" / ".venv" / "site-packages")
    [message] = foreign_packages(["ram"])
    assert message.startswith(f"package 'ram': Breviary needs {folder}/home/ram, but Python finds ")


def test_a_package_that_is_found_nowhere(monkeypatch, tmp_path):
    (tmp_path / "comi_of_nobody").mkdir()
    monkeypatch.setattr("breviary.runtime.checkout.ROOT", tmp_path)
    monkeypatch.setattr(sys, "path", [])
    assert foreign_packages(["comi_of_nobody"]) == [
        f"package 'comi_of_nobody': Python does not find {tmp_path}/comi_of_nobody; run: pip install -e {tmp_path}"
    ]


def test_load_reader_needs_its_own_method_and_data_alone(tmp_path, other):
    run = tiny_run(tmp_path / "run", "compressor=mean_pool")
    other("comet/__init__.py")
    assert breviary.load_reader(run).answer(["The sky is blue."], ["What colour is the sky?"])
    folder = other("data/__init__.py")
    with pytest.raises(
        ImportError, match=f"^package 'data': Breviary needs {ROOT}/data, but Python finds {folder}/data"
    ):
        breviary.load_reader(run)
