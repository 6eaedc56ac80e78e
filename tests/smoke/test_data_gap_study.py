"""The data-gap study's smoke form, smaller still: every cell, table and figure; what makes no sense is refused."""

import shutil

import pytest
from study_calls import called

from scripts import study_data_gap as study
from scripts.study_parts import read_csv, read_parquet, write_parquet

SMALL = [
    "tokens=12",
    "vocabulary=280",
    "model_documents=20",
    "train_documents=12",
    "test_documents=4",
    "probe_documents=4",
    "shares=[0,5]",
    "seeds=[0]",
    "model.layers=1",
    "model.width=16",
    "model.heads=2",
    "model.steps=2",
    "model.batch_size=4",
    "prose.drawn.size=12",
    "prose.drawn.words=60",
    "formal.arithmetic.size=12",
    "formal.arithmetic.lines=12",
    "resamples=20",
    "autoencoder=['compressor=mean_pool','compressor.encoder_layers=1','decoder.train=full','train.steps=1',"
    "'train.batch_size=2']",
    "~mitigations.longer",
    "~mitigations.lora",
    "~mitigations.deeper_lsa",
    "mitigations.bigger_decoder.model.layers=2",
]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    assert called(study, folder, *SMALL) == 0
    return folder / "out"


def test_every_cell_and_document_has_a_row(done):
    rows = read_parquet(done / "gap_per_doc.parquet")
    cells = {(row["encoder"], row["decoder"], row["mitigation"]) for row in rows}
    assert cells == {
        ("D1", "D1", "none"),
        ("D1", "D6", "none"),
        ("D6", "D1", "none"),
        ("D6", "D6", "none"),
        ("D1", "random", "none"),
        ("D1", "D6", "bigger_decoder"),
    }
    assert len(rows) == len(cells) * 8 and {row["part"] for row in rows} == {"prose", "formal"}


def test_tables(done):
    cells = {
        (row["encoder"], row["decoder"], row["part"]): row
        for row in read_csv(done / "gap.csv")
        if row["mitigation"] == "none"
    }
    matched, pair = cells["D6", "D6", "all"], cells["D1", "D6", "all"]
    assert pair["delta_gain"] == pytest.approx(matched["gain"] - pair["gain"], abs=1e-4) and matched["delta_gain"] == 0
    assert matched["kl"] == pytest.approx(0, abs=1e-5) and pair["kl"] > 0
    assert pair["mix_distance"] == pytest.approx(5 / 6, abs=1e-4)
    assert cells["D1", "random", "all"]["mix_distance"] is None and cells["D1", "random", "all"]["kl"] > 0
    assert cells["D1", "D6", "all"]["gain"] == pytest.approx(
        (cells["D1", "D6", "prose"]["gain"] + cells["D1", "D6", "formal"]["gain"]) / 2, abs=1e-4
    )
    asymmetry = {
        row["what"]: row["value"]
        for row in read_csv(done / "asymmetry.csv")
        if (row["part"], row["metric"]) == ("all", "gain")
    }
    assert asymmetry["difference"] == pytest.approx(
        asymmetry["decoder swapped"] - asymmetry["encoder swapped"], abs=1e-4
    )
    assert len(read_csv(done / "gap_regression.csv")) == 3 * 4 * 4 and len(read_csv(done / "mitigation.csv")) == 3 * 4
    assert all((done / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in ("heatmap", "swaps", "gaps"))


def test_without_mitigations_there_is_no_table_of_them(done, tmp_path):
    rows = [row for row in read_parquet(done / "gap_per_doc.parquet") if row["mitigation"] == "none"]
    write_parquet(tmp_path / "out" / "gap_per_doc.parquet", rows)
    shutil.copy(done / "model_gaps.csv", tmp_path / "out")
    assert called(study, tmp_path, *SMALL, "~mitigations.bigger_decoder", "tables=true") == 0
    assert (tmp_path / "out" / "swaps.png").is_file() and not (tmp_path / "out" / "mitigation.csv").exists()


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["shares=[0,0,5]"], "no gap to measure"),
        (["mitigated=[5,5]"], "nothing to mend"),
        (["cells=some"], "allowed are grid, cross"),
        (["tokens=3"], "shorter than one group"),
        (["model_documents=90000"], "only"),
        (["+mitigations.other={steps: 5}"], "allowed are words and model"),
    ],
)
def test_what_is_wrong_is_told(monkeypatch, tmp_path, capsys, words, sentence):
    monkeypatch.setattr(study, "trained_model", None)
    assert called(study, tmp_path, *SMALL, *words) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and sentence in printed, printed
