"""results.json states how answers were scored and what the intervals resample."""

import json

from breviary.evaluation.results import PREDICTIONS, RESULTS
from data.metrics import METRICS_VERSION
from tests.tiny import evaluate_tiny

SMALL = ["backbone.layers=2", "backbone.width=32", "backbone.heads=2", "backbone.kv_heads=1"]
BASELINE = ["compressor=full_context", "reader=full_context", "baselines=[]", "generation.max_new_tokens=1"]
CONTEXTS = ["The town of Velm has a fountain.", "托拉桥是红色的。", "The tower is high."]
ANSWERS = ["A", "红色", "high"]


def test_results_state_rules_contexts_and_clusters(tmp_path):
    rows = [
        {"id": f"{place}-{i}", "context": CONTEXTS[place], "question": f"What is {i}?", "answers": [ANSWERS[place]]}
        for i in range(4)
        for place in range(3)
    ]
    file = tmp_path / "t.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [*SMALL, *BASELINE, "dataset=jsonl", f"dataset.test={file}", f"paths.outputs={tmp_path}/outputs"]
    [results] = evaluate_tiny([*words, f"paths.cache={tmp_path}/cache"])
    assert results["metrics_version"] == METRICS_VERSION
    assert results["normalisation"] == {"articles": 4, "characters": 4, "squad": 4}
    intervals = results["intervals"]
    assert (intervals["resampled"], intervals["clusters"], intervals["contexts"]) == ("contexts", 3, 3)
    assert {"em", "em_contains"} <= set(intervals["wilson"])
    # An untrained reader answers nothing: 0 of 12, but on 3 contexts only.
    assert results["metrics"]["em"]["value"] == 0 and results["metrics"]["em"]["high"] > 0.5
    [folder] = [path.parent for path in tmp_path.rglob(RESULTS)]
    predictions = [json.loads(line) for line in (folder / PREDICTIONS).read_text().splitlines()]
    ids = [row["context_id"] for row in predictions]
    assert len(set(ids)) == 3 and ids == ids[:3] * 4 and all(len(one) == 16 for one in ids)
