"""The input-entropy study on random text with small models and few steps: rows, tables, figures, error messages."""

import json
import re

import pytest
from hydra import compose, initialize_config_dir
from study_calls import call_study

from breviary.studies.data_gap.study import STUDY as DATA_GAP
from breviary.studies.input_entropy.study import STUDY as INPUT_ENTROPY
from breviary.studies.input_entropy.tables import correlations
from breviary.studies.markdown import rows_where
from breviary.studies.tables import read_table
from scripts.studies import input_entropy as script
from tests.tiny import CONFIGS

SMALL = [
    "tokens=16",
    "vocabulary=280",
    "held_out=0.5",
    "train_documents=24",
    "test_documents=6",
    "rates=[4]",
    "decoders=[full]",
    "seeds=[0]",
    "ladder.documents=2",
    "ladder.repeats=[2]",
    "ladder.windows=[0]",
    "ladder.shares=[1]",
    "resamples=40",
    "reference=null",
    "model.layers=2",
    "model.width=16",
    "model.heads=2",
    "model.steps=3",
    "model.batch_size=4",
    "eval_batch_size=32",
    *(
        f"~domains.{name}"
        for name in ("stories", "meetings", "contracts", "reports", "encyclopaedia", "papers", "code")
    ),
    "+domains.drawn={_target_: data.text_sources.DrawnWords, size: 12, words: 120}",
    "models.prose=[drawn]",
    "+domains.sums={_target_: data.text_sources.Arithmetic, size: 12, lines: 12}",
    "models.formal=[sums]",
    "autoencoder=['compressor=mean_pool','compressor.encoder_layers=1','train.steps=3','train.batch_size=4',"
    "'train.log_every=1']",
]


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    assert call_study(script, folder, *SMALL) == 0
    return folder / "out"


def test_one_row_per_document_and_setting(output):
    rows = read_table(output / "per_doc.parquet")
    assert set(rows["pair"]) == {"prose>formal", "formal>prose"}
    assert len(rows) == 2 * (2 * 6 + 2 * 2 * 3) and not rows.duplicated(["doc_id", "pair"]).any()
    assert set(rows["transform"]) == {"as_is", "repeat2", "shuffle0", "random1"}
    assert (rows["n"] == 16).all() and (rows["nll_enc"] > 0).all() and rows["accuracy"].between(0, 1).all()
    assert rows["gain"].to_numpy() == pytest.approx((rows["ce_unconditional"] - rows["ce"]).to_numpy())
    # The encoder of one pair is the decoder of the other.
    one, other = (rows_where(rows, pair=pair).reset_index() for pair in ("prose>formal", "formal>prose"))
    assert one["nll_enc"].equals(other["nll_dec"]) and one["doc_id"].equals(other["doc_id"])
    assert not one["nll_enc"].equals(one["nll_dec"])


def test_tables_and_figures(output):
    corr = read_table(output / "corr.csv")
    assert set(corr["group"]) == {"pooled", "within domains", "ladder", "drawn", "sums"}
    pooled = rows_where(corr, group="pooled").dropna(subset="rho")
    assert len(pooled) and (pooled["rho_lo"] <= pooled["rho_hi"]).all() and (pooled["p_holm"] >= pooled["p"]).all()
    assert (pooled["n"] == 12).all()
    assert len(read_table(output / "regression.csv")) == 2 * 7
    [mean] = rows_where(read_table(output / "means.csv"), pair="prose>formal", group="pooled").to_dict("records")
    assert mean["n"] == 12 and mean["accuracy_lo"] <= mean["accuracy"] <= mean["accuracy_hi"]
    for name in ("scatter", "correlations", "ladder", "loss"):
        assert (output / f"{name}.png").read_bytes().startswith(b"\x89PNG") and len(read_table(output / f"{name}.csv"))
    stored = json.loads((output / "input_entropy.json").read_text())
    assert stored["config"]["tokens"] == 16 and "paths" not in stored["config"] and stored["environment"]["versions"]


def test_tables_true_reproduces_the_tables(output):
    before = (output / "corr.csv").read_text()
    assert call_study(script, output.parent, *SMALL, "tables=true") == 0
    assert (output / "corr.csv").read_text() == before


def test_tables_true_without_measurements_is_an_error(tmp_path, capsys):
    assert call_study(script, tmp_path, *SMALL, "tables=true") == 2
    assert "per_doc.parquet does not exist; run the study once without tables=true" in capsys.readouterr().err


def test_one_model_on_both_sides_is_refused(output):
    rows = read_table(output / "per_doc.parquet")
    with pytest.raises(ValueError, match="which are one model"):
        correlations(rows.assign(nll_dec=rows["nll_enc"]), 10, 0.1)


@pytest.mark.parametrize("config", ["input_entropy", "data_gap", "data_gap_small", "data_gap_smoke"])
def test_the_configurations_are_valid_and_commented(config):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose(f"study/{config}", ["paths.cache=/nowhere", "paths.data=/nowhere"])
    problems = (INPUT_ENTROPY if config == "input_entropy" else DATA_GAP).problems(cfg)
    assert all("no such folder" in problem for problem in problems)  # SmolLM2 may be missing
    text = (CONFIGS / "study" / f"{config}.yaml").read_text()
    keys = [line for line in text.split("\nhydra:")[0].splitlines() if re.match(r"\w+: *[^\s#]", line)]
    assert len(keys) > 5
    if not config.endswith(("_smoke", "_small")):  # those override keys that data_gap explains
        assert not [line for line in keys if not re.search(r"\S +# \S", line)]


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["pairs=[[prose,prose]]"], "the same training"),
        (["models.formal=[drawn]"], "the same training"),
        (["rates=[17]"], "shorter than one group"),
        (["pairs=[[prose,code]]"], "two names of models"),
        (["models.prose=[tales]"], "names of domains"),
        (["decoders=[all]"], "allowed are lora"),
        (["vocabulary=5"], "at least 258"),
        (["model.width=15"], "multiple of 2 * heads"),
        (["test_documents=5000"], "only"),
        (["+domains.more={_target_: data.text_sources.Contexts, files: [absent.jsonl]}"], "not a file"),
        (["+domains.more={_target_: data.text_sources.PythonCode, packages: [no_such]}"], "no package 'no_such'"),
        (["token=5"], "nearest"),
    ],
)
def test_wrong_settings_are_reported_before_training(monkeypatch, tmp_path, capsys, overrides, message):
    monkeypatch.setattr("breviary.studies.input_entropy.study.train_language_model", None)
    assert call_study(script, tmp_path, *SMALL, *overrides) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and message in printed, printed
    assert not (tmp_path / "out").exists()
