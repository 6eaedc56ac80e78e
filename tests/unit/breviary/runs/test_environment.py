"""environment.json: commit, versions and hardware."""

import json
import subprocess

from breviary.runs.environment import commit_time, environment, git_state, write_environment
from breviary.runtime.checkout import ROOT


def test_git_state_is_commit_and_dirty_flag(tmp_path):
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "-q")
    assert git_state(tmp_path) == (None, False)  # no commit yet
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-q", "-m", "first")
    head = git("rev-parse", "HEAD")
    assert git_state(tmp_path) == (head, False)
    assert commit_time(tmp_path, head) > 10**9 and commit_time(tmp_path, "0" * 40) is None
    (tmp_path / "new").write_text("untracked")
    assert git_state(tmp_path) == (head, True)
    (tmp_path / "inner").mkdir()
    assert git_state(tmp_path / "inner") == (None, None)  # e.g. an archive unpacked inside another project


def test_environment_has_versions_and_hardware(tmp_path):
    content = write_environment(tmp_path)
    assert json.loads((tmp_path / "environment.json").read_text()) == content == environment()
    assert set(content) == {"commit", "dirty", "versions", "hardware"}
    assert set(content["versions"]) == {"python", "torch", "transformers", "peft", "deepspeed"}
    assert set(content["hardware"]) == {"cpu", "cores", "threads", "memory_bytes", "gpus"}
    assert (
        content["hardware"]["cpu"] and content["hardware"]["cores"] >= 1 and content["hardware"]["memory_bytes"] > 2**28
    )
    assert (content["commit"], content["dirty"]) == git_state(ROOT)
