"""Files: JSON that others wrote or that is damaged gives one error; permissions follow the umask."""

from __future__ import annotations

import json
import os

import pytest
import torch

from breviary.runs.checkpoints import save_weights
from breviary.runtime.files import append_text, parse_json, read_object, write_json


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, b"[" * 100_000])
def test_json_that_is_nested_too_deeply_is_a_json_error(text):
    with pytest.raises(json.JSONDecodeError, match="nested too deeply"):
        parse_json(text)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "damaged, not JSON"),
        (b'{"global_batch', "damaged, not JSON"),
        (b"\xff\xfe", "damaged, not JSON"),
        (b"[1]", "damaged, it must be a JSON object"),
        (b'{"processes": 1}', "damaged, without global_batch"),
    ],
)
def test_a_damaged_file_of_a_run_is_named(tmp_path, content, message):
    file = tmp_path / "processes.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{file}: {message}"):
        read_object(file, "processes", "global_batch")


def test_a_file_with_all_keys_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1, "b": null}')
    assert read_object(tmp_path / "a.json", "a", "b") == {"a": 1, "b": None}


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_json(tmp_path / "a.json", {})
        append_text(tmp_path / "b.jsonl", "{}")
        weights = save_weights(tmp_path, {"w": torch.zeros(1)}, {"name": "tiny", "sha256": "0"})
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "a.json", tmp_path / "b.jsonl", weights)} == {mode}


def test_a_missing_file_and_a_value_of_another_type_are_named(tmp_path):
    file = tmp_path / "processes.json"
    with pytest.raises(ValueError, match="processes.json: this file is missing"):
        read_object(file)
    file.write_text('{"processes": 1, "global_batch": []}')
    with pytest.raises(ValueError, match=r"processes.json: damaged, global_batch is \[\]"):
        read_object(file, "processes", "global_batch", kind=int)
