"""The environment of a run: commit, package versions and hardware, stored as environment.json in the run folder."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from breviary.runtime.checkout import ROOT
from breviary.runtime.files import read_object, write_json

ENVIRONMENT = "environment.json"

PACKAGES = ("torch", "transformers", "peft", "deepspeed")


def git_state(root: Path) -> tuple[str | None, bool | None]:
    """(commit, dirty) of the checkout at `root`. Untracked files that git does not ignore count as changes.

    (None, None) where `root` is not the top of a git checkout, e.g. an unpacked archive inside another project.
    """
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root.resolve():
        return None, None
    status = _git(root, "status", "--porcelain")
    return _git(root, "rev-parse", "--verify", "HEAD"), None if status is None else bool(status)


def commit_time(root: Path, commit: str) -> int | None:
    """When `commit` was made, in seconds since 1970; None where the history of the checkout at `root` lacks it."""
    seconds = _git(root, "show", "--no-patch", "--format=%ct", f"{commit}^{{commit}}")
    return None if seconds is None else int(seconds)


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints about the checkout at `root`; None where it fails or is not installed."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=30)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def environment() -> dict[str, Any]:
    """The environment of this process.

    {"commit", "dirty", "versions": {package: version, None = not installed}, "hardware": {"cpu", "cores", "threads",
    "memory_bytes", "gpus"}}
    """
    commit, dirty = git_state(ROOT)
    return {
        "commit": commit,
        "dirty": dirty,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "hardware": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }


def read_commit(folder: str | Path) -> str | None:
    """The commit at which a run began; None where it is not known."""
    file = Path(folder) / ENVIRONMENT
    return read_object(file).get("commit") if file.is_file() else None


def write_environment(folder: str | Path) -> dict[str, Any]:
    """Writes `environment.json` into `folder`; returns its content."""
    content = environment()
    write_json(Path(folder) / ENVIRONMENT, content)
    return content
