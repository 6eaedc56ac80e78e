"""A loss that is not finite on one rank ends all ranks, with the ids of its examples written down."""

import json

import pytest
from fault_cases import run_not_finite_training

from breviary.runs.checkpoints import checkpoints
from breviary.training.step_end import NOT_FINITE

COMI = ["compressor=comi", "compressor.encoder_layers=1", "train.batch_size=2"]
COMET = ["compressor=comet", "compressor.chunk_size=16", "compressor.stride=4", "compressor.queue_budget=8"]
COMMON = [
    *("name=broken", "backbone.layers=2", "backbone.width=32", "train.steps=4", "train.save_every=1", "train.warmup=0"),
    *("train.eval_examples=0", "dataset.facts=4", "dataset.train_size=24", "engine.timeout=60"),
]
# DDP takes the same way as ZeRO, from loss and norm on.
ENGINES = {
    "zero2": ["engine=zero2", *COMI],
    "pipeline": ["engine=pipeline", "engine.ranks=2", *COMET, "train.batch_size=2"],
}


@pytest.mark.parametrize("engine", ENGINES)
def test_every_rank_stops_and_the_examples_are_written_down(failing_ranks, tmp_path, engine):
    paths = [f"paths.outputs={tmp_path}/runs", f"paths.cache={tmp_path}/cache"]
    words = [*COMMON, *ENGINES[engine], *paths]
    output = failing_ranks(2, None, run_not_finite_training, words, tmp_path / "ids.json")
    [run] = (tmp_path / "runs" / "broken").glob("*_*")
    written, broken = json.loads((run / NOT_FINITE).read_text()), json.loads((tmp_path / "ids.json").read_text())
    assert written["examples"] == broken and len(broken) == 2
    what = "rank 1 computed non-finite values in step 3" if engine == "pipeline" else "the loss is nan"
    assert written["what"].startswith(f"step 3: {what}")
    assert any(
        f"step 3: {what}" in text and f"with the examples {', '.join(broken)}" in text for text in output.values()
    )
    assert [path.name for path in checkpoints(run)] == ["checkpoint-1", "checkpoint-2"]
