"""The sizes study on drawn text, models of one layer and a few steps: every table, row and the figure are there."""

import json

import pytest
from hydra import compose, initialize_config_dir
from study_calls import called

from scripts import study_sizes as study
from scripts.study_parts import read_csv, read_parquet
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
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    assert called(study, folder, *SMALL) == 0
    return folder / "out"


def test_every_pair_of_sizes(done):
    rows, table = read_parquet(done / "per_doc.parquet"), read_csv(done / "sizes.csv")
    assert len(rows) == 2 * 2 * 8 and len(table) == 4
    assert {(row["encoder"], row["decoder"], row["rate"]) for row in table} == {
        (encoder, decoder, 4) for encoder in ("small", "large") for decoder in ("small", "large")
    }
    weights = {(row["encoder"], row["decoder"]): row["weights"] for row in table}
    assert weights["small", "small"] < weights["small", "large"] < weights["large", "large"]
    assert weights["small", "small"] < weights["large", "small"] < weights["large", "large"]
    for row in table:
        own = [r["accuracy"] for r in rows if all(r[key] == row[key] for key in ("encoder", "decoder", "rate"))]
        assert row["n"] == len(own) == 8 and row["accuracy"] == pytest.approx(sum(own) / 8, rel=1e-4)
        assert row["accuracy_lo"] <= row["accuracy"] <= row["accuracy_hi"]
        # 16 tokens of the text's own tokenizer; fewer of the larger vocabulary, whatever the decoder's.
        assert row["slots"] == 4 if row["encoder"] == "small" else 0 < row["slots"] < 4
        assert row["first_token_ms"] > 0 and row["decode_ms"] > 0 and row["first_token_of_whole"] > 0


def test_what_a_larger_side_gives_is_paired_over_documents(done):
    rows = read_parquet(done / "per_doc.parquet")

    def mean(encoder: str, decoder: str) -> float:
        own = [r["accuracy"] for r in rows if (r["encoder"], r["decoder"], r["rate"]) == (encoder, decoder, 4)]
        return sum(own) / len(own)

    found = {
        row["what"]: row["value"]
        for row in read_csv(done / "swaps.csv")
        if (row["rate"], row["metric"], row["other"]) == (4, "accuracy", "large")
    }
    assert found == pytest.approx(
        {
            "encoder": mean("large", "small") - mean("small", "small"),
            "decoder": mean("small", "large") - mean("small", "small"),
            "decoder minus encoder": mean("small", "large") - mean("large", "small"),
        },
        abs=1e-5,
    )


def test_tables_again_are_the_same(done):
    before = (done / "sizes.csv").read_text()
    assert called(study, done.parent, *SMALL, "tables=true") == 0
    assert (done / "sizes.csv").read_text() == before
    assert (done / "pareto.png").read_bytes().startswith(b"\x89PNG")
    stored = json.loads((done / "sizes.json").read_text())
    assert stored["config"]["tokens"] == 16 and "paths" not in stored["config"] and stored["documents"] == 8


def test_the_configuration_is_sound():
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        assert study.problems_of(compose("study/sizes", ["paths.cache=/nowhere", "paths.data=/nowhere"])) == []


@pytest.mark.parametrize(
    "words, sentence",
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
def test_what_is_wrong_is_told_before_anything_is_trained(monkeypatch, tmp_path, capsys, words, sentence):
    monkeypatch.setattr(study, "trained_model", None)
    assert called(study, tmp_path, *SMALL, *words) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and sentence in printed, printed
    assert not (tmp_path / "out").exists()
