"""scripts/bench/data_loading.py at toy size, without processes of its own."""

import json

from data.store import measure
from scripts.bench import data_loading


def test_a_row_for_each_file_with_seconds_and_memory_of_each_phase(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure, "BATCHES", 2)
    monkeypatch.setattr(data_loading, "measure_in_process", lambda *args: data_loading.measure_here(*map(str, args)))
    monkeypatch.setattr(data_loading, "measure_start", lambda folder: {"seconds": 1.0, "cpu_seconds": 1.0})
    file = tmp_path / "data_loading.json"
    options = ["--megabytes", "0.01", "0.02", "--words", "50", "--starts", "1", "--output", str(file)]
    data_loading.main(options)
    content = json.loads(file.read_text())
    assert len(content["files"]) == 2 and len(content["starts"]) == 1
    first, second = content["files"]
    assert 20 < first["lines"] < second["lines"] and 0 < first["tokens"] < second["tokens"] < 30_000
    for row in content["files"]:
        assert row["disk_mb"] > 0 and all(row[phase]["cpu_seconds"] >= 0 for phase in data_loading.PHASES)
    assert "lines a CPU second tokenised" in capsys.readouterr().out
