"""Documents in docs/ hold the numbers of the committed tables; autoencoder_study.md has no other measured number."""

import re

import pytest

from breviary.studies.input_entropy.tables import POOLED, SETTING
from breviary.studies.markdown import BEGIN, END, replace_numbers, rows_where
from breviary.studies.tables import read_table
from scripts.studies import numbers as script


@pytest.mark.parametrize("document", script.DOCUMENTS, ids=lambda document: document.name)
def test_the_numbers_are_those_of_the_tables(document):
    text = document.read_text(encoding="utf-8")
    expected = replace_numbers(text, script.DOCUMENTS[document](script.TABLES))
    assert expected == text, "run python scripts/studies/numbers.py"


def test_the_study_has_no_number_outside_the_marks():
    text = next(document for document in script.DOCUMENTS if document.name == "autoencoder_study.md").read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    prose = re.sub(
        r"`[^`]*`|\d{4}\.\d{5}|\([^)]*\.(png|csv|json|md|parquet|yaml)\)", "", before + rest.partition(END)[2]
    )
    assert re.findall(r"\d*\.\d+|\d+ ?%", prose) == []


@pytest.mark.parametrize("name", [document.name for document in script.DOCUMENTS])
def test_check_reports_a_changed_number(tmp_path, monkeypatch, capsys, name):
    copies = {tmp_path / document.name: numbers for document, numbers in script.DOCUMENTS.items()}
    for document, copy in zip(script.DOCUMENTS, copies):
        copy.write_text(document.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(script, "DOCUMENTS", copies)
    script.main(["--check"])
    changed = tmp_path / name
    before, mark, rest = changed.read_text(encoding="utf-8").partition(BEGIN)
    changed.write_text(before + mark + rest.replace("| ", "|  ", 1), encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        script.main(["--check"])
    assert ended.value.code == 1 and f"{name} differs from the tables" in capsys.readouterr().err
    script.main([])
    script.main(["--check"])


def test_committed_tables_and_figures_match_the_rows_per_document():
    rows = read_table(script.TABLES / "per_doc.parquet")
    unchanged = rows_where(rows, transform="as_is")
    for mean in read_table(script.TABLES / "means.csv").to_dict("records"):
        own = rows_where(unchanged, **{key: mean[key] for key in SETTING})
        own = own if mean["group"] == POOLED else rows_where(own, domain=mean["group"])
        assert len(own) == mean["n"]
        assert own["accuracy"].mean() == pytest.approx(mean["accuracy"], rel=1e-4)
    assert unchanged["doc_id"].nunique() >= 1000 and unchanged["domain"].nunique() >= 7
    points = read_table(script.TABLES / "scatter.csv")
    assert len(points) == 2 * len(rows_where(unchanged, seed=rows["seed"].iloc[0]))  # the first seed is drawn
    for name in ("scatter", "correlations", "ladder", "loss", "gap_small/heatmap", "gap_small/swaps", "gap_small/gaps"):
        assert (script.TABLES / f"{name}.png").is_file() and len(read_table(script.TABLES / f"{name}.csv"))
