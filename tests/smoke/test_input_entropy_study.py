"""The input-entropy study on drawn text, models of one layer and a few steps: every table, figure and row is there."""

import json
import re

import pytest
from hydra import compose, initialize_config_dir
from study_calls import called

from scripts import study_data_gap
from scripts import study_input_entropy as study
from scripts.study_correlations import correlations
from scripts.study_parts import read_csv, read_parquet
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
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    assert called(study, folder, *SMALL) == 0
    return folder / "out"


def test_a_row_a_document_and_setting(done):
    rows = read_parquet(done / "per_doc.parquet")
    assert {row["pair"] for row in rows} == {"prose>formal", "formal>prose"}
    assert len(rows) == 2 * (2 * 6 + 2 * 2 * 3) and len({(row["doc_id"], row["pair"]) for row in rows}) == len(rows)
    assert {row["transform"] for row in rows} == {"as_is", "repeat2", "shuffle0", "random1"}
    assert all(row["n"] == 16 and row["nll_enc"] > 0 and 0 <= row["accuracy"] <= 1 for row in rows)
    assert all(row["gain"] == pytest.approx(row["ce_unconditional"] - row["ce"]) for row in rows)
    # What is the encoder in one pair is the decoder in the other.
    there, back = ([row for row in rows if row["pair"] == pair] for pair in ("prose>formal", "formal>prose"))
    assert [row["nll_enc"] for row in there] == [row["nll_dec"] for row in back]
    assert [row["nll_enc"] for row in there] != [row["nll_dec"] for row in there]


def test_tables_and_figures(done):
    corr = read_csv(done / "corr.csv")
    assert {row["group"] for row in corr} == {"pooled", "within domains", "ladder", "drawn", "sums"}
    pooled = [row for row in corr if row["group"] == "pooled" and row["rho"] is not None]
    assert pooled and all(row["rho_lo"] <= row["rho_hi"] and row["p_holm"] >= row["p"] for row in pooled)
    assert all(row["n"] == 12 for row in pooled)
    assert len(read_csv(done / "regression.csv")) == 2 * 7
    [all_of_it] = [
        row for row in read_csv(done / "means.csv") if (row["pair"], row["group"]) == ("prose>formal", "pooled")
    ]
    assert all_of_it["n"] == 12 and all_of_it["accuracy_lo"] <= all_of_it["accuracy"] <= all_of_it["accuracy_hi"]
    for name in ("scatter", "correlations", "ladder", "loss"):
        assert (done / f"{name}.png").read_bytes().startswith(b"\x89PNG") and read_csv(done / f"{name}.csv")
    stored = json.loads((done / "input_entropy.json").read_text())
    assert stored["config"]["tokens"] == 16 and "paths" not in stored["config"] and stored["environment"]["versions"]


def test_tables_again_are_the_same(done):
    before = (done / "corr.csv").read_text()
    assert called(study, done.parent, *SMALL, "tables=true") == 0
    assert (done / "corr.csv").read_text() == before


def test_one_model_on_both_sides_gives_no_contrast(done):
    rows = [row | {"nll_dec": row["nll_enc"]} for row in read_parquet(done / "per_doc.parquet")]
    with pytest.raises(ValueError, match="which are one model"):
        correlations(rows, 10, 0.1)


@pytest.mark.parametrize("config", ["input_entropy", "data_gap", "data_gap_small", "data_gap_smoke"])
def test_the_configurations_are_sound_and_explained(config, tmp_path):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose(f"study/{config}", ["paths.cache=/nowhere", "paths.data=/nowhere"])
    problems = (study if config == "input_entropy" else study_data_gap).problems_of(cfg)
    assert all("no such folder" in problem for problem in problems)  # SmolLM2 need not be here
    text = (CONFIGS / "study" / f"{config}.yaml").read_text()
    keys = [line for line in text.split("\nhydra:")[0].splitlines() if re.match(r"\w+: *[^\s#]", line)]
    assert (
        len(keys) > 5
        and config.endswith(("_smoke", "_small"))
        or not [line for line in keys if not re.search(r"\S +# \S", line)]
    )


@pytest.mark.parametrize(
    "words, sentence",
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
def test_what_is_wrong_is_told_before_anything_is_trained(monkeypatch, tmp_path, capsys, words, sentence):
    monkeypatch.setattr(study, "trained_model", None)
    assert called(study, tmp_path, *SMALL, *words) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and sentence in printed, printed
    assert not (tmp_path / "out").exists()
