"""JSON that others wrote, and JSON files of runs: one error that names what is wrong."""

from __future__ import annotations

import json

import pytest

from breviary.runtime.files import parse_json, read_object


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
