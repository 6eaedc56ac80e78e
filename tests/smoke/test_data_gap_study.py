"""The data-gap study's smoke form with fewer documents and steps: cells, tables, figures, error messages."""

import math
import shutil

import pytest
from study_calls import call_study

from breviary.studies.markdown import rows_where
from breviary.studies.tables import read_table, write_table
from scripts.studies import data_gap as script

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
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    assert call_study(script, folder, *SMALL) == 0
    return folder / "out"


def test_every_cell_and_document_has_a_row(output):
    rows = read_table(output / "gap_per_doc.parquet")
    cells = set(rows[["encoder", "decoder", "mitigation"]].itertuples(index=False, name=None))
    assert cells == {
        ("D1", "D1", "none"),
        ("D1", "D6", "none"),
        ("D6", "D1", "none"),
        ("D6", "D6", "none"),
        ("D1", "random", "none"),
        ("D1", "D6", "bigger_decoder"),
    }
    assert len(rows) == len(cells) * 8 and set(rows["part"]) == {"prose", "formal"}


def test_tables(output):
    table = rows_where(read_table(output / "gap.csv"), mitigation="none")
    cells = table.set_index(["encoder", "decoder", "part"]).to_dict("index")
    matched, pair = cells["D6", "D6", "all"], cells["D1", "D6", "all"]
    assert pair["delta_gain"] == pytest.approx(matched["gain"] - pair["gain"], abs=1e-4) and matched["delta_gain"] == 0
    assert matched["kl"] == pytest.approx(0, abs=1e-5) and pair["kl"] > 0
    assert pair["mix_distance"] == pytest.approx(5 / 6, abs=1e-4)
    assert math.isnan(cells["D1", "random", "all"]["mix_distance"]) and cells["D1", "random", "all"]["kl"] > 0
    assert cells["D1", "D6", "all"]["gain"] == pytest.approx(
        (cells["D1", "D6", "prose"]["gain"] + cells["D1", "D6", "formal"]["gain"]) / 2, abs=1e-4
    )
    asymmetry = rows_where(read_table(output / "asymmetry.csv"), part="all", metric="gain").set_index("what")["value"]
    assert asymmetry["difference"] == pytest.approx(
        asymmetry["decoder swapped"] - asymmetry["encoder swapped"], abs=1e-4
    )
    assert len(read_table(output / "gap_regression.csv")) == 3 * 4 * 4
    assert len(read_table(output / "mitigation.csv")) == 3 * 4
    assert all((output / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in ("heatmap", "swaps", "gaps"))


def test_without_mitigations_no_mitigation_table_is_written(output, tmp_path):
    rows = rows_where(read_table(output / "gap_per_doc.parquet"), mitigation="none")
    write_table(tmp_path / "out" / "gap_per_doc.parquet", rows)
    shutil.copy(output / "model_gaps.csv", tmp_path / "out")
    assert call_study(script, tmp_path, *SMALL, "~mitigations.bigger_decoder", "tables=true") == 0
    assert (tmp_path / "out" / "swaps.png").is_file() and not (tmp_path / "out" / "mitigation.csv").exists()


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["shares=[0,0,5]"], "no gap to measure"),
        (["mitigated=[5,5]"], "no gap to mitigate"),
        (["cells=some"], "allowed are grid, cross"),
        (["tokens=3"], "shorter than one group"),
        (["model_documents=90000"], "only"),
        (["+mitigations.other={steps: 5}"], "allowed are words and model"),
    ],
)
def test_wrong_settings_are_reported_before_training(monkeypatch, tmp_path, capsys, overrides, message):
    monkeypatch.setattr("breviary.studies.data_gap.study.train_language_model", None)
    assert call_study(script, tmp_path, *SMALL, *overrides) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and message in printed, printed
