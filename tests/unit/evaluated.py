"""Evaluated readers on disk, for tests of reports: results.json from predictions, as an evaluation writes them."""

import json
from pathlib import Path

from breviary.evaluation.results import PREDICTIONS, summarise, write_results
from breviary.runtime.files import write_text

CONDITIONS = {
    "backbone": {"_target_": "breviary.backbones.tiny.TinyBackbone"},
    "compressor": {"_target_": "pkg.Comi", "ratio": 4},
    "dataset": {"_target_": "data.jsonl.Jsonl", "test": "nq/test.jsonl"},
    "split": "test",
    "prompt": {"template": "\nQuestion: {question}", "chat": True},
    "generation": {"stop": ["\n"], "max_new_tokens": 16, "temperature": 0.0},
    "limits": {"max_context_tokens": None, "truncation": "middle"},
}

STARTED = {"commit": "0123abcd", "dirty": False, "versions": {"torch": "2"}, "hardware": {"cpu": "x", "cores": 2}}


def prediction(number, f1, tokens=100, position=None, **more):
    """One row of predictions.jsonl; every question has a context of its own."""
    place = {} if position is None else {"gold_position": position}
    return (
        {
            "id": f"q{number}",
            "context_id": f"c{number}",
            "question": f"Who is {number}?",
            "prediction": "x",
            "references": ["y"],
            "nll": 2.0 - f1,
            "answer_tokens": 2,
            "context_tokens": tokens,
            "memory_slots": 25,
            "memory_bytes": 1000,
            "document_bytes": None,
            "context_reused": False,
            "times": {"read_ms": 100.0, "compress_ms": 1.0, "prefill_ms": 20.0, "decode_ms": 30.0},
            "scores": {"em": float(f1 == 1), "em_contains": 0.0, "f1": f1, "rouge_l": f1},
            "truncated": False,
        }
        | place
        | more
    )


def write_reader(folder, reader, rows, ratio=4.0, **more):
    """Writes predictions and results of one untrained reader; `more` is stored in the results. Returns the folder."""
    folder = Path(folder)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write_text(folder / PREDICTIONS, text)
    extra = {
        "data_hash": "d" * 64,
        "peak_memory_bytes": 1,
        "run": str(folder),
        "config": None,
        "backbone": "tiny",
        "conditions": CONDITIONS,
        "metrics_version": 2,
        **STARTED,
    }
    write_results(folder, reader, summarise(rows, ratio, resamples=50), extra | more)
    return folder
