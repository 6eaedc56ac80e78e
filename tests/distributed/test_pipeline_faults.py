"""A rank of a pipeline that dies, hangs or makes numbers that are not finite ends the whole run, and is named."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from fault_cases import CHUNK, LAYER, STEP, TIMEOUT, run_broken, run_dying_training
from processes import run_script
from safetensors.torch import load_file
from test_pipeline_runs import TRAIN

from breviary.runs.checkpoints import last_checkpoint

# What goes wrong, in which direction, on how many ranks; the victim reads chunk CHUNK. Rank 0 keeps the store.
FAULTS = [
    ("die", "forward", 4),
    ("die", "backward", 2),
    ("stop", "backward", 2),
    ("hang", "forward", 2),
    ("nan", "forward", 2),
    ("nan", "backward", 2),
]
STORE = ("stop", "forward", 2)  # of rank 0, which reads another chunk
WORDS = {
    "die": "is gone, last seen",
    "stop": f"no sign of life for {TIMEOUT:g} s",
    "hang": f"hangs: for {TIMEOUT:g} s",
    "nan": "not finite",
}


@pytest.fixture(scope="module")
def outputs(ended):
    """{fault: what each rank that ended printed}: three at a time, as they wait more than they compute."""

    def broken(fault):
        kind, direction, ranks = fault
        victim = 0 if fault == STORE else CHUNK % ranks
        return ended(ranks, victim, run_broken, ranks, victim, kind, direction)

    with ThreadPoolExecutor(3) as pool:
        futures = {fault: pool.submit(broken, fault) for fault in (*FAULTS, STORE)}
    return futures


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: "-".join(map(str, fault)))
def test_one_rank_ends_all_and_is_named(outputs, fault):
    kind, direction, ranks = fault
    victim = CHUNK % ranks
    for rank, text in outputs[fault].result().items():
        if rank == victim and kind in ("die", "stop"):
            continue
        [*_, sentence] = [line for line in text.splitlines() if "rank" in line]
        assert f"rank {victim} " in sentence and WORDS[kind] in sentence, text
        assert f"in step {STEP}, {direction}, chunk {CHUNK}, layer {LAYER}" in sentence, text


def test_rank_0_that_stops_takes_its_store_along(outputs):
    """Where no launcher keeps the store, nobody answers any more."""
    output = outputs[STORE].result()[1]
    assert f"the store of rank 0 gave no answer for {TIMEOUT:g} s" in output
    assert f"rank 0 was last seen in step {STEP}, forward, chunk 2, layer {LAYER}" in output


def test_what_was_saved_stays_whole(ended, ranks, tmp_path):
    """A rank dies in the backward pass of the step after a checkpoint: the run ends, and the checkpoint is gone on from."""
    paths = [f"paths.outputs={tmp_path}/runs", f"paths.cache={tmp_path}/cache"]
    overrides = [
        "name=killed",
        *TRAIN,
        *paths,
        "engine=pipeline",
        "engine.timeout=60",
        "train.eval_every=1",
        "train.eval_examples=0",
    ]
    output = ended(2, 1, run_dying_training, overrides)
    assert "rank 1 is gone, last seen in step " in output[0] and ", backward, chunk " in output[0]
    [folder] = (tmp_path / "runs" / "killed").glob("*_*")
    assert output[0].splitlines().count(f"run {folder}") == 2  # printed first and last
    saved = last_checkpoint(folder)
    assert saved.name == "checkpoint-2" and load_file(saved / "trained.safetensors")
    ranks(2, run_script, "train.py", [*overrides, "resume=auto"])
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
    assert last_checkpoint(folder).name == "checkpoint-3"
