"""docs/ say what the committed tables say; autoencoder_study.md has no measured number of its own."""

import re

import pytest

from scripts import study_numbers as numbers
from scripts.study_correlations import SETTING
from scripts.study_parts import read_csv, read_parquet


def test_every_number_is_the_tables():
    text = numbers.DOCUMENT.read_text(encoding="utf-8")
    assert numbers.with_numbers(text, numbers.numbers(numbers.TABLES)) == text, "run python scripts/study_numbers.py"
    before, _, rest = text.partition(numbers.BEGIN)
    prose = re.sub(
        r"`[^`]*`|\d{4}\.\d{5}|\([^)]*\.(png|csv|json|md|parquet|yaml)\)", "", before + rest.partition(numbers.END)[2]
    )
    assert re.findall(r"\d*\.\d+|\d+ ?%", prose) == []


def test_the_guidelines_sizes_are_the_tables():
    text = numbers.GUIDELINES.read_text(encoding="utf-8")
    assert numbers.with_numbers(text, numbers.size_numbers(numbers.TABLES)) == text, (
        "run python scripts/study_numbers.py"
    )


@pytest.mark.parametrize("name", ["DOCUMENT", "GUIDELINES"])
def test_check_tells_of_a_number_that_was_changed(tmp_path, monkeypatch, capsys, name):
    for each in ("DOCUMENT", "GUIDELINES"):
        copy = tmp_path / f"{each}.md"
        copy.write_text(getattr(numbers, each).read_text(encoding="utf-8"), encoding="utf-8")
        monkeypatch.setattr(numbers, each, copy)
    numbers.main(["--check"])
    changed = tmp_path / f"{name}.md"
    before, mark, rest = changed.read_text(encoding="utf-8").partition(numbers.BEGIN)
    changed.write_text(before + mark + rest.replace("| ", "|  ", 1), encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        numbers.main(["--check"])
    assert ended.value.code == 1 and f"{name}.md is not what the tables say" in capsys.readouterr().err
    numbers.main([])
    numbers.main(["--check"])


def test_figures_and_tables_are_made_of_the_rows_a_document_and_setting():
    rows = read_parquet(numbers.TABLES / "per_doc.parquet")
    plain = [row for row in rows if row["transform"] == "as_is"]
    for mean in read_csv(numbers.TABLES / "means.csv"):
        own = [
            row
            for row in plain
            if all(row[key] == mean[key] for key in SETTING) and mean["group"] in (numbers.POOLED, row["domain"])
        ]
        assert len(own) == mean["n"]
        assert sum(row["accuracy"] for row in own) / len(own) == pytest.approx(mean["accuracy"], rel=1e-4)
    assert len({row["doc_id"] for row in plain}) >= 1000 and len({row["domain"] for row in plain}) >= 7
    points = read_csv(numbers.TABLES / "scatter.csv")
    assert len(points) == 2 * len([row for row in plain if row["seed"] == rows[0]["seed"]])  # drawn of the first seed
    for name in ("scatter", "correlations", "ladder", "loss", "gap_small/heatmap", "gap_small/swaps", "gap_small/gaps"):
        assert (numbers.TABLES / f"{name}.png").is_file() and read_csv(numbers.TABLES / f"{name}.csv")
