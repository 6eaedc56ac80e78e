"""The sizes study on random text with small models and few steps: rows, tables, the figure, error messages."""

import json

import pytest
from hydra import compose, initialize_config_dir
from study_calls import call_study

from breviary.studies.markdown import rows_where
from breviary.studies.sizes.study import STUDY
from breviary.studies.tables import read_table
from scripts.studies import sizes as script
from tests.tiny import CONFIGS

SMALL = [
    "tokens=16",
    "vocabulary=280",
    "held_out=0.5",
    "train_documents=24",
    "test_documents=4",
    "rates=[4]",
    "seeds=[0]",
    "resamples=40",
    "eval_batch_size=32",
    "sizes={small: {layers: 1, width: 16, heads: 2}, large: {layers: 2, width: 32, heads: 2, learning_rate: 1e-3}}",
    "+sizes.large.vocabulary=320",
    "model.steps=3",
    "model.batch_size=4",
    "timed={tokens: 24, documents: 2, written: 3, rounds: 2}",
    *(
        f"~domains.{name}"
        for name in ("stories", "meetings", "contracts", "reports", "encyclopaedia", "papers", "code")
    ),
    "+domains.drawn={_target_: data.text_sources.DrawnWords, size: 12, words: 120}",
    "+domains.sums={_target_: data.text_sources.Arithmetic, size: 12, lines: 12}",
    "autoencoder=['compressor=mean_pool','compressor.alignment=linear_lsa','train.steps=3','train.batch_size=4',"
    "'train.log_every=1']",
]


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    assert call_study(script, folder, *SMALL) == 0
    return folder / "out"


def test_every_pair_of_sizes(output):
    rows, table = read_table(output / "per_doc.parquet"), read_table(output / "sizes.csv")
    assert len(rows) == 2 * 2 * 8 and len(table) == 4
    assert set(table[["encoder", "decoder", "rate"]].itertuples(index=False, name=None)) == {
        (encoder, decoder, 4) for encoder in ("small", "large") for decoder in ("small", "large")
    }
    weights = table.set_index(["encoder", "decoder"])["weights"]
    assert weights["small", "small"] < weights["small", "large"] < weights["large", "large"]
    assert weights["small", "small"] < weights["large", "small"] < weights["large", "large"]
    for row in table.to_dict("records"):
        own = rows_where(rows, **{key: row[key] for key in ("encoder", "decoder", "rate")})["accuracy"]
        assert row["n"] == len(own) == 8 and row["accuracy"] == pytest.approx(own.mean(), rel=1e-4)
        assert row["accuracy_lo"] <= row["accuracy"] <= row["accuracy_hi"]
        # 16 tokens of the study's tokenizer, fewer of the larger vocabulary; the decoder's does not matter.
        assert row["slots"] == 4 if row["encoder"] == "small" else 0 < row["slots"] < 4
        assert row["first_token_ms"] > 0 and row["decode_ms"] > 0 and row["first_token_of_whole"] > 0


def test_effects_of_a_larger_side_are_paired_over_documents(output):
    rows = read_table(output / "per_doc.parquet")

    def mean(encoder: str, decoder: str) -> float:
        return rows_where(rows, encoder=encoder, decoder=decoder, rate=4)["accuracy"].mean()

    effects = rows_where(read_table(output / "swaps.csv"), rate=4, metric="accuracy", other="large")
    assert effects.set_index("what")["value"].to_dict() == pytest.approx(
        {
            "encoder": mean("large", "small") - mean("small", "small"),
            "decoder": mean("small", "large") - mean("small", "small"),
            "decoder minus encoder": mean("small", "large") - mean("large", "small"),
        },
        abs=1e-5,
    )


def test_tables_true_reproduces_the_tables(output):
    before = (output / "sizes.csv").read_text()
    assert call_study(script, output.parent, *SMALL, "tables=true") == 0
    assert (output / "sizes.csv").read_text() == before
    assert (output / "pareto.png").read_bytes().startswith(b"\x89PNG")
    stored = json.loads((output / "sizes.json").read_text())
    assert stored["config"]["tokens"] == 16 and "paths" not in stored["config"] and stored["documents"] == 8


def test_the_configuration_is_valid():
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        assert STUDY.problems(compose("study/sizes", ["paths.cache=/nowhere", "paths.data=/nowhere"])) == []


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["~sizes.large"], "at least two"),
        (["+sizes.large.depth=3"], "allowed are layers, width, heads, learning_rate, vocabulary"),
        (["sizes.large.width=15"], "multiple of 2 * heads"),
        (["sizes.large.vocabulary=100"], "sizes.large.vocabulary=100: must be a whole number of at least 258"),
        (["rates=[17]"], "shorter than one group"),
        (["timed.rounds=0"], "at least 1"),
        (["timed.tokens=3"], "at least 4"),
        (["timed.tokens=5000"], "only"),
        (["test_documents=5000"], "only"),
        (["size=5"], "nearest"),
    ],
)
def test_wrong_settings_are_reported_before_training(monkeypatch, tmp_path, capsys, overrides, message):
    monkeypatch.setattr("breviary.studies.sizes.study.train_language_model", None)
    assert call_study(script, tmp_path, *SMALL, *overrides) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and message in printed, printed
    assert not (tmp_path / "out").exists()
