"""Variants of an evaluation that take another compressor over the same weights."""

from breviary.config.keys import validate_keys
from breviary.evaluation.resolve import compose_evaluation, table_rows
from breviary.evaluation.session import EvaluationSession, encoding_key
from breviary.readers import cache_selection
from data.text_pipeline import TEXT

WORDS = ["compressor=snapkv", "reader=snapkv", "backbone=tiny", "baselines=[]", "examples=3"]
ROWS = "variants=[{compressor: knorm}, {compressor: snapkv, compressor.question: unknown}, {compressor: bm25}]"


def test_a_variant_takes_another_compressor():
    problems = []
    rows = table_rows(compose_evaluation([*WORDS, ROWS]), problems)
    assert not problems
    assert [row.reader for row in rows] == ["snapkv", "knorm", "snapkv, question=unknown", "bm25"]
    assert rows[1].compressor.scorer._target_.endswith("Knorm") and rows[2].compressor.question == "unknown"
    table_rows(compose_evaluation([*WORDS, "variants=[{compressor: snapkw}]"]), problems)
    assert problems[0].startswith("variants: no compressor snapkw; the nearest right one is snapkv; there are: ")


def test_scorers_share_a_prefill_where_they_store_the_same():
    rows = table_rows(compose_evaluation([*WORDS, ROWS]), [])
    known, keys_only, tail, text = (encoding_key(row, None) for row in rows)
    assert known == keys_only and known not in (None, tail) and tail is not None and text not in (known, tail)


def test_one_prefill_serves_all_rows(tmp_path, monkeypatch):
    """Wherever a row with another one, here with the tail's queries, stands between them."""
    encoded = []
    encode = cache_selection.CacheSelection.encode

    def counted(self, context):
        encoded.append(len(context.ids))
        return encode(self, context)

    monkeypatch.setattr(cache_selection.CacheSelection, "encode", counted)
    rows = "variants=[{compressor.question: unknown}, {compressor.ratio: 8}, {compressor: kvzip}]"
    cfg = compose_evaluation([*WORDS, rows, f"paths.outputs={tmp_path}", "dataset.test_size=3"])
    results = EvaluationSession(TEXT).evaluate(cfg)
    assert [result["reader"] for result in results] == [
        "snapkv",
        "snapkv, question=unknown",
        "snapkv, ratio=8",
        "kvzip",
    ]
    assert sum(encoded) == 2 * results[0]["contexts_read"]


def test_another_compressor_than_an_experiment_s_drops_its_keys():
    """As on the command line of eval.py; tables evaluate such rows in their own process."""
    cfg = compose_evaluation(["experiment=comi_facts", "backbone=tiny", "compressor=full_context"])
    assert cfg.reader == "full_context" and "encoder_layers" not in cfg.compressor
    assert validate_keys(cfg)[1] == []
