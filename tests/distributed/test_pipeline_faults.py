"""A pipeline rank that dies, hangs or computes non-finite values ends the whole run, and the error names it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from fault_cases import CHUNK, LAYER, STEP, TIMEOUT, run_broken, run_dying_training
from processes import run_script
from test_pipeline_runs import TRAIN

from breviary.runs.checkpoints import last_checkpoint, read_weights

# Kind of fault, direction, number of ranks. The victim computes chunk CHUNK. Rank 0 owns the store.
FAULTS = [
    ("die", "forward", 4),
    ("die", "backward", 2),
    ("stop", "backward", 2),
    ("hang", "forward", 2),
    ("nan", "forward", 2),
    ("nan", "backward", 2),
]
STORE = ("stop", "forward", 2)  # rank 0 stops, in another chunk
MESSAGES = {
    "die": "is gone, last seen",
    "stop": f"no heartbeat for {TIMEOUT:g} s",
    "hang": f"hangs: more than {TIMEOUT:g} s",
    "nan": "non-finite values",
}


@pytest.fixture(scope="module")
def outputs(failing_ranks):
    """{fault: future of {rank: output}}; three at a time, as the ranks wait most of the time."""

    def run_fault(fault):
        kind, direction, ranks = fault
        victim = 0 if fault == STORE else CHUNK % ranks
        return failing_ranks(ranks, victim, run_broken, ranks, victim, kind, direction)

    with ThreadPoolExecutor(3) as pool:
        futures = {fault: pool.submit(run_fault, fault) for fault in (*FAULTS, STORE)}
    return futures


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: "-".join(map(str, fault)))
def test_one_failed_rank_ends_all_ranks_and_is_named(outputs, fault):
    kind, direction, ranks = fault
    victim = CHUNK % ranks
    for rank, text in outputs[fault].result().items():
        if rank == victim and kind in ("die", "stop"):
            continue
        [*_, message] = [line for line in text.splitlines() if "rank" in line]
        assert f"rank {victim} " in message and MESSAGES[kind] in message, text
        assert f"in step {STEP}, {direction}, chunk {CHUNK}, layer {LAYER}" in message, text


def test_a_stopped_rank_0_stops_its_store(outputs):
    """Without a launcher, rank 0 owns the store, which then no longer responds."""
    output = outputs[STORE].result()[1]
    assert f"the store of rank 0 did not respond for {TIMEOUT:g} s" in output
    assert f"rank 0 was last seen in step {STEP}, forward, chunk 2, layer {LAYER}" in output


def test_a_run_resumes_from_its_checkpoint_after_a_rank_died(failing_ranks, ranks, tmp_path):
    """The rank dies in the backward pass of the step after the checkpoint."""
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
    output = failing_ranks(2, 1, run_dying_training, overrides)
    assert "rank 1 is gone, last seen in step " in output[0] and ", backward, chunk " in output[0]
    [folder] = (tmp_path / "runs" / "killed").glob("*_*")
    assert output[0].splitlines().count(f"run {folder}") == 2  # printed first and last
    saved = last_checkpoint(folder)
    assert saved.name == "checkpoint-2" and read_weights(saved)
    ranks(2, run_script, "train.py", [*overrides, "resume=auto"])
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
    assert last_checkpoint(folder).name == "checkpoint-3"
