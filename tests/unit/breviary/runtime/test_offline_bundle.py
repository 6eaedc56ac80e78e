"""The offline bundle: splitting, joining by the installer, missing and damaged parts. No network."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from breviary.runtime.offline_bundle import MB, make_bundle

ROOT = Path(__file__).resolve().parents[4]
PART_MB = 0.001  # 1,000 bytes


@pytest.fixture
def inputs(tmp_path):
    """A wheel, a backbone file and a data folder; backbone and data are larger than a part."""
    wheel = tmp_path / "in" / "wheels" / "breviary_probe-1.0-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        info = "breviary_probe-1.0.dist-info"
        archive.writestr("breviary_probe.py", "answer = 42\n")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: breviary-probe\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    backbone = tmp_path / "in" / "model.gguf"
    backbone.write_bytes(os.urandom(2500))
    data = tmp_path / "in" / "nq"
    (data / "deep").mkdir(parents=True)
    (data / "deep" / "test.jsonl").write_bytes(os.urandom(3000))
    (data / "readme.txt").write_text("small")
    (data / ".cache").mkdir()
    (data / ".cache" / "left.out").write_text("hidden")
    return {"wheels": [wheel.parent], "backbone": backbone, "data": [data]}


@pytest.fixture
def bundle(tmp_path, inputs):
    make_bundle(tmp_path / "bundle", **inputs, part_size_mb=PART_MB)
    return tmp_path / "bundle"


@pytest.fixture
def checkout(tmp_path):
    """A fake checkout on the offline machine, whose get_backbone.py records its arguments."""
    script = tmp_path / "checkout" / "scripts" / "get_backbone.py"
    script.parent.mkdir(parents=True)
    script.write_text(
        "import json, os, sys\njson.dump([sys.argv[1:], os.environ['HF_HUB_OFFLINE']], open('called', 'w'))\n"
    )
    return tmp_path / "checkout"


def install(bundle: Path, checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the bundle's install.sh from the checkout; wheels are installed into a separate folder."""
    settings = {
        "PYTHON": sys.executable,
        "BREVIARY_CACHE": str(checkout / "cache"),
        "PIP_NO_INDEX": "1",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_TARGET": str(checkout / "site"),
        **environment,
    }
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("BREVIARY_", "PIP_"))}
    return subprocess.run(
        ["bash", str(bundle / "install.sh")],
        cwd=checkout,
        env={**inherited, **settings},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_manifest_lists_every_file_with_its_parts_and_hashes(bundle, inputs):
    manifest = json.loads((bundle / "manifest.json").read_text())
    files = {file["path"]: file for file in manifest["files"]}
    assert set(files) == {
        "wheels/breviary_probe-1.0-py3-none-any.whl",
        "backbone/model.gguf",
        "data/nq/readme.txt",
        "data/nq/deep/test.jsonl",
    }
    assert [part["bytes"] for part in files["backbone/model.gguf"]["parts"]] == [1000, 1000, 500]
    assert [part["path"] for part in files["data/nq/readme.txt"]["parts"]] == ["data/nq/readme.txt"]
    assert files["backbone/model.gguf"]["sha256"] == hashlib.sha256(inputs["backbone"].read_bytes()).hexdigest()
    for file in manifest["files"]:
        blocks = [(bundle / part["path"]).read_bytes() for part in file["parts"]]
        assert [hashlib.sha256(block).hexdigest() for block in blocks] == [part["sha256"] for part in file["parts"]]
        assert hashlib.sha256(b"".join(blocks)).hexdigest() == file["sha256"]
        assert max(map(len, blocks)) <= PART_MB * MB


def test_installer_joins_parts_installs_wheels_and_copies_data(bundle, checkout, inputs):
    done = install(bundle, checkout)
    assert done.returncode == 0, done.stderr
    assert (bundle / "backbone" / "model.gguf").read_bytes() == inputs["backbone"].read_bytes()
    placed = checkout / "cache" / "data" / "nq"
    assert (placed / "deep" / "test.jsonl").read_bytes() == (inputs["data"][0] / "deep" / "test.jsonl").read_bytes()
    assert not (placed / ".cache").exists()
    assert (checkout / "site" / "breviary_probe.py").is_file()
    arguments, offline = json.loads((checkout / "called").read_text())
    assert arguments == ["--from", str(bundle / "backbone" / "model.gguf")] and offline == "1"

    shutil.rmtree(bundle / "parts")  # joined files no longer need their parts
    assert install(bundle, checkout).returncode == 0


def test_data_is_copied_to_breviary_data(bundle, checkout, tmp_path):
    assert install(bundle, checkout, BREVIARY_DATA=str(tmp_path / "own")).returncode == 0
    assert (tmp_path / "own" / "nq" / "readme.txt").read_text() == "small"


def test_parts_may_arrive_in_several_trips(bundle, checkout, tmp_path):
    late = [bundle / "parts" / "backbone" / "model.gguf.002-of-003", bundle / "data" / "nq" / "readme.txt"]
    for index, path in enumerate(late):
        path.rename(tmp_path / f"late{index}")
    done = install(bundle, checkout)
    assert done.returncode == 2
    assert "missing: parts/backbone/model.gguf.002-of-003 (1000 bytes)" in done.stderr
    assert "missing: data/nq/readme.txt (5 bytes)" in done.stderr
    assert "2 of 8 parts are missing and 0 damaged" in done.stderr
    assert not (checkout / "site").exists() and not (checkout / "cache").exists() and not (checkout / "called").exists()
    for index, path in enumerate(late):
        (tmp_path / f"late{index}").rename(path)
    assert install(bundle, checkout).returncode == 0


def test_a_damaged_part_is_reported_and_nothing_is_installed(bundle, checkout):
    part = bundle / "parts" / "data" / "nq" / "deep" / "test.jsonl.001-of-003"
    part.write_bytes(part.read_bytes()[:-1] + b"\0\0")
    done = install(bundle, checkout)
    assert done.returncode == 2
    assert "damaged: parts/data/nq/deep/test.jsonl.001-of-003" in done.stderr
    assert "0 of 8 parts are missing and 1 damaged" in done.stderr
    assert not (checkout / "site").exists()


def test_a_manifest_that_does_not_match_its_parts_is_rejected(bundle, checkout):
    manifest = json.loads((bundle / "manifest.json").read_text())
    next(file for file in manifest["files"] if file["kind"] == "backbone")["sha256"] = "0" * 64
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    done = install(bundle, checkout)
    assert done.returncode == 2 and "do not make up the file" in done.stderr
    assert list((bundle / "backbone").iterdir()) == []


def test_existing_data_is_never_overwritten(bundle, checkout):
    target = checkout / "cache" / "data" / "nq" / "readme.txt"
    target.parent.mkdir(parents=True)
    target.write_text("mine")
    done = install(bundle, checkout)
    assert done.returncode == 2 and f"{target} exists and differs from the file in the bundle" in done.stderr
    assert target.read_text() == "mine"


def test_installer_reports_a_missing_interpreter_checkout_or_manifest(bundle, checkout, tmp_path):
    done = install(bundle, checkout, PYTHON="/no/such/python")
    assert done.returncode == 2 and "PYTHON=/no/such/python: no such interpreter" in done.stderr
    done = install(bundle, checkout, BREVIARY_ROOT=str(tmp_path))
    assert done.returncode == 2 and f"BREVIARY_ROOT={tmp_path} is not a Breviary checkout" in done.stderr
    assert not (checkout / "site").exists()
    (bundle / "manifest.json").unlink()
    done = install(bundle, checkout)
    assert done.returncode == 2 and "manifest.json is missing" in done.stderr


def test_a_backbone_folder_is_rebuilt_under_its_name(tmp_path, checkout):
    folder = tmp_path / "smollm"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(os.urandom(1500))
    make_bundle(tmp_path / "bundle", backbone=folder, part_size_mb=PART_MB)
    assert install(tmp_path / "bundle", checkout).returncode == 0
    joined = tmp_path / "bundle" / "backbone" / "smollm"
    assert (joined / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert json.loads((checkout / "called").read_text())[0] == ["--from", str(joined)]


def test_errors_name_the_argument(tmp_path, inputs):
    source = tmp_path / "deepspeed-0.19.8.tar.gz"
    source.write_text("")
    empty = tmp_path / "empty"
    empty.mkdir()
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="nothing to pack"):
        make_bundle(out)
    with pytest.raises(ValueError, match="--part-size 0"):
        make_bundle(out, **inputs, part_size_mb=0)
    with pytest.raises(ValueError, match="pip wheel --no-deps -w DIR deepspeed-0.19.8.tar.gz"):
        make_bundle(out, wheels=[source])
    with pytest.raises(ValueError, match="--wheels .*absent.*no such file"):
        make_bundle(out, wheels=[tmp_path / "absent"])
    with pytest.raises(ValueError, match="an empty folder"):
        make_bundle(out, wheels=[empty])
    with pytest.raises(ValueError, match="--backbone .* needs config.json"):
        make_bundle(out, backbone=empty)
    with pytest.raises(ValueError, match="--backbone .*absent: allowed are"):
        make_bundle(out, backbone=tmp_path / "absent")
    with pytest.raises(ValueError, match="--data .*absent: no such file"):
        make_bundle(out, data=[tmp_path / "absent"])
    with pytest.raises(ValueError, match="given more than once: data/nq/deep/test.jsonl"):
        make_bundle(out, data=inputs["data"] * 2)
    with pytest.raises(ValueError, match="exists and is not an empty folder"):
        make_bundle(tmp_path, **inputs)
    assert not out.exists()


def test_command_line_exits_with_2_on_a_user_error(tmp_path):
    done = subprocess.run(
        [sys.executable, "scripts/offline_bundle.py", str(tmp_path / "out"), "--data", str(tmp_path / "absent")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: --data") and "Traceback" not in done.stderr


def test_git_ignores_generated_files_but_not_the_data_package(tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    shutil.copyfile(ROOT / ".gitignore", tmp_path / ".gitignore")
    hidden = [
        ".venv/x",
        "outputs/x",
        "build/x",
        "bundle/x",
        "multirun/x",
        "breviary.egg-info/x",
        ".cache/x",
        ".hypothesis/x",
        "data/__pycache__/x",
    ]
    shown = ["data/jsonl.py", "results/x.json", "configs/dataset/x.yaml", "tests/golden/x.txt", "scripts/bench/x.py"]
    answer = subprocess.run(["git", "check-ignore", *hidden, *shown], cwd=tmp_path, capture_output=True, text=True)
    assert answer.stdout.split() == hidden
