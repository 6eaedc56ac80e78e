"""train.py and eval.py from the command line on two processes: training, resuming, checkpoints, evaluation."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fault_cases import run_signalled_training
from processes import ENVIRONMENT, ROOT, TIME_LIMIT, run_script
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader

from breviary.backbones.tiny import tiny_tokenizer
from breviary.runs.checkpoints import OPTIMIZER_SHARDS, checkpoints, read_metadata, read_weights, shard_file
from breviary.runtime import distributed
from breviary.runtime.files import hash_tensors
from breviary.training.saving import MASTERS
from data.invented_facts import InventedFacts
from data.prompts import Prompt
from data.tokenised import tokenise_split

ENGINES = ("ddp", "zero2", "zero3", "fsdp")
EVALUATED = ("ddp", "fsdp")
STEPS = 4
# Small weights are sharded, too.
SHARD_ALL = {
    "zero3": "engine.deepspeed.zero_optimization.stage3_param_persistence_threshold=0",
    "fsdp": "engine.fsdp.smallest=1000",
}
TIMING = ("seconds", "tokens_per_s", "peak_memory_bytes", "effective_ratio")
TRAIN = [
    "backbone.layers=2",
    "compressor.encoder_layers=1",
    "compressor.learned_weights=merge",
    "decoder.lora_rank=2",
    f"train.steps={STEPS}",
    "train.eval_every=2",
    "train.eval_examples=5",
    "train.batch_size=2",
    "train.log_every=1",
    "eval_batch_size=2",
    "dataset.train_size=24",
    "dataset.test_size=7",
    "generation.max_new_tokens=3",
]


class Home:
    """Folder of these tests' runs, and methods that start train.py and eval.py."""

    def __init__(self, ranks, folder: Path):
        self.ranks, self.folder = ranks, folder
        self.paths = [f"paths.outputs={folder}/runs", f"paths.cache={folder}/cache"]

    def train(self, world, name, *overrides, launcher=""):
        """Trains on ranks of the fork server; returns the run folder."""
        self.ranks(world, run_script, "train.py", (f"name={name}", *TRAIN, *self.paths, *overrides), launcher)
        return self.run(name)

    def run(self, name):
        [run] = (self.folder / "runs" / name).glob("*_*")
        return run

    def evaluate(self, world, run, *overrides):
        """Evaluates a run; the results are written to its folder."""
        self.ranks(world, run_script, "eval.py", (f"run={run}", *self.paths, *overrides))


@pytest.fixture(scope="session")
def home(ranks, tmp_path_factory):
    return Home(ranks, tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def run(home, relay):
    """run(engine): folder of a training on two processes; each engine uses another launcher."""

    def train_once(engine):
        if (home.folder / "runs" / engine).exists():
            return home.run(engine)
        if engine == "ddp":  # the rank as an argument, as from the deepspeed launcher
            return home.train(2, engine, "engine=ddp", launcher="deepspeed")
        if engine in SHARD_ALL:
            return home.train(2, engine, f"engine={engine}", SHARD_ALL[engine])
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        with relay("train.py") as (script, environment):
            command(*torchrun, script, f"engine={engine}", f"name={engine}", *TRAIN, *home.paths, **environment)
        return home.run(engine)

    return train_once


def command(*arguments, **environment):
    """Runs a command in the checkout; on failure or timeout, kills its process group."""
    process = subprocess.Popen(
        arguments,
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT, **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=TIME_LIMIT)
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output[-4000:]


def metrics(run):
    """The rows of metrics.jsonl without values that depend on the process: times, memory, ratio so far."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMING} for row in rows]


def assert_same_rows(actual, expected, tolerance):
    assert [row.keys() for row in actual] == [row.keys() for row in expected] and expected
    for one, other in zip(actual, expected):
        assert one == pytest.approx(other, rel=tolerance), (one, other)


@pytest.mark.parametrize("engine", ENGINES)
def test_training_and_validation_finish(run, engine):
    rows = metrics(run(engine))
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, STEPS + 1))
    assert [row["step"] for row in rows if "eval_nll" in row] == [2, STEPS]
    assert all(row["examples"] == 2 * 2 * row["step"] for row in rows)  # of both processes
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert (run(engine) / "finished").exists()


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_all_engines_have_the_same_metrics(run, engine):
    """With AdamW and clipping. Adam's first steps are signs of gradients; rounding may flip those near 0."""
    assert_same_rows(metrics(run(engine)), metrics(run("ddp")), 1e-4)


@pytest.mark.parametrize("engine", ("ddp", "zero3", "fsdp"))
def test_resumed_training_equals_uninterrupted_training(home, run, engine):
    """For zero2 see test_pipeline_runs."""
    killed = home.folder / "runs" / f"{engine}_killed" / "a_run"
    shutil.copytree(run(engine), killed)
    (killed / "finished").unlink()
    shutil.rmtree(killed / "checkpoints" / f"checkpoint-{STEPS}")
    resumed = home.train(2, f"{engine}_killed", f"engine={engine}", f"resume={killed}")
    assert_same_rows(metrics(resumed), metrics(run(engine)), 1e-6)
    weights, expected = (
        read_weights(folder / "checkpoints" / f"checkpoint-{STEPS}") for folder in (resumed, run(engine))
    )
    assert weights.keys() == expected.keys()
    assert all(torch.allclose(weights[name], expected[name], rtol=1e-5, atol=1e-7) for name in expected)


def test_a_signal_to_one_rank_saves_the_run_which_resumes(home, run):
    """Equal to the run that was not interrupted; step 3 has no validation."""
    words = ["name=signalled", *TRAIN, *home.paths, "engine=ddp"]
    output = home.ranks(2, run_signalled_training, words)
    folder = home.run("signalled")
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-2", "checkpoint-3"]
    assert not (folder / "finished").exists()
    assert "SIGUSR1: saved checkpoint-3; this resumes the run:" in output and f"resume={folder}" in output
    assert output.index("a checkpoint takes ") < output.index("step 1/4")
    assert "global batch: 2 processes x 2 examples x 1 accumulation = 4; 4 steps" in output
    resumed = home.train(2, "signalled", "engine=ddp", "resume=auto")
    assert resumed == folder and (folder / "finished").exists()
    assert_same_rows(metrics(resumed), metrics(run("ddp")), 1e-6)


@pytest.mark.parametrize("engine", ("zero2", "zero3", "fsdp"))
def test_checkpoints_store_each_trained_weight_once(run, engine):
    """Distributed over the files of both processes; the optimizer's files hold none, nor any frozen weight."""
    folder = run(engine) / "checkpoints" / f"checkpoint-{STEPS}"
    trained, shards = read_weights(folder), [load_file(shard_file(folder, number)) for number in range(2)]
    own = [name for name in trained if name.startswith("decoder.")]
    assert own and all("lora_" in name for name in own)
    assert trained.keys() == shards[0].keys() | shards[1].keys() and not shards[0].keys() & shards[1].keys()
    sizes = [sum(weight.numel() for weight in shard.values()) for shard in shards]
    assert max(sizes) < 0.7 * sum(sizes)
    assert read_metadata(folder)["sha256"] == hash_tensors(trained)
    if engine == "fsdp":
        stored = FileSystemReader(folder / OPTIMIZER_SHARDS).read_metadata().state_dict_metadata
        assert all(key.startswith(("state.", "param_groups.")) for key in stored)
        assert sum("exp_avg_sq" in key for key in stored) == len(trained)
        return
    states = [torch.load(file, weights_only=False) for file in sorted(folder.glob("global_step*/*.pt"))]
    assert len([state for state in states if state.get("module") == {}]) == {"zero2": 1, "zero3": 2}[engine]
    kept = [state["optimizer_state_dict"] for state in states if "optimizer_state_dict" in state]
    assert len(kept) == 2
    assert all(state.get(name, []) == [] for state in kept for name in MASTERS)


def test_resuming_on_one_process_is_rejected(home, run):
    """Also where the global batch is equal. No weight is loaded."""
    with pytest.raises(AssertionError, match=r"is of 2 process\(es\) and 4 .* here are 1 process\(es\) and 4 examples"):
        home.train(None, "ddp_alone", "engine=single", "train.accumulation=2", f"resume={run('ddp')}")


def test_evaluation_on_two_processes_equals_one(home, run):
    """Predictions and metrics, of whole and sharded checkpoints, and of an evaluation that was interrupted half-way."""
    folders = {}
    for world in (1, 2):
        copies = [home.folder / f"on_{world}" / engine for engine in EVALUATED]
        for engine, copy in zip(EVALUATED, copies):
            shutil.copytree(run(engine), copy)
        home.evaluate(None if world == 1 else 2, copies[0], f"compare=[{copies[1]}]", "baselines=[no_context]")
        files = copies[0].parent.glob("*/eval/*/*/results.json")  # ENGINE/eval/HASH/READER
        folders[world] = {(file.parents[3].name, file.parent.name): file.parent for file in files}
    expected = {("ddp", "no_context"), *((engine, "comi") for engine in EVALUATED)}
    assert folders[1].keys() == folders[2].keys() == expected
    for name in folders[1]:
        assert_same_results(folders[2][name], folders[1][name])

    victim = folders[2]["ddp", "comi"]
    rows = (victim / "predictions.jsonl").read_text().splitlines(keepends=True)
    (victim / "results.json").unlink()
    (victim / "predictions.jsonl").unlink()
    (victim / "predictions.rank1.jsonl").write_text("".join(rows[:2]))
    home.evaluate(2, victim.parents[2], "baselines=[]")
    assert_same_results(victim, folders[1]["ddp", "comi"])


def assert_same_results(actual, expected):
    """Equality except for times, memory and paths; numbers to 1e-5, because a resumed evaluation has other batches."""
    tables = []
    for folder in (actual, expected):
        rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
        tables.append([{k: v for k, v in row.items() if k != "times"} for row in rows])
    assert len(tables[0]) == len(tables[1]) == 7
    for row, other in zip(*tables):
        assert row.pop("nll") == pytest.approx(other.pop("nll"), rel=1e-5)
        assert row == other
    results = [json.loads((folder / "results.json").read_text()) for folder in (actual, expected)]
    assert results[0]["n"] == results[1]["n"] == 7
    for name, value in results[1]["metrics"].items():
        assert results[0]["metrics"][name] == pytest.approx(value, rel=1e-5)
    for key in ("effective_ratio", "memory_slots", "memory_bytes", "requested_ratio", "truncated"):
        assert results[0][key] == results[1][key]


def train_and_resume(arguments: list[str], home: Path) -> None:
    """train.py, and again in this process from a copy of the run without its last checkpoint.

    DeepSpeed keeps the process group, so it stays.
    """
    distributed.end_process_group = lambda: None
    run_script("train.py", arguments)
    [run] = home.glob("*_*")
    copy = home.parent / "bare_killed" / run.name
    shutil.copytree(run, copy)
    (copy / "finished").unlink()
    shutil.rmtree(copy / "checkpoints" / "checkpoint-3")
    run_script("train.py", [*arguments, f"resume={copy}"])


def test_deepspeed_in_bfloat16_without_a_launcher(home):
    """One process: the loss decreases, and the adapters' float32 masters are saved and resumed to the last bit."""
    overrides = [
        "name=bare",
        *TRAIN,
        *home.paths,
        "engine=zero2",
        "backbone.dtype=bfloat16",
        "train.steps=3",
        "dataset.train_size=2",
        "train.eval_examples=1",
        "train.schedule=constant",
        "train.warmup=0",
    ]
    home.ranks(None, train_and_resume, overrides, home.folder / "runs" / "bare")
    folder, resumed = home.run("bare"), home.run("bare_killed")
    losses = [row["loss"] for row in metrics(folder) if "loss" in row]
    assert len(losses) == 3 and all(map(math.isfinite, losses)) and losses[2] < losses[1] < losses[0], losses
    weights = read_weights(folder / "checkpoints" / "checkpoint-3")
    adapters = {name: value for name, value in weights.items() if "lora_B" in name}
    assert adapters and all(value.norm() > 0 for value in adapters.values())
    # Masters, not their bfloat16 copies: some values are not representable in bfloat16.
    assert any((value != value.bfloat16().float()).any() for value in adapters.values())
    again = read_weights(resumed / "checkpoints" / "checkpoint-3")
    assert metrics(resumed) == metrics(folder)
    assert all(torch.equal(again[name], weights[name]) for name in weights)


def tokenise_into_cache(folder: Path) -> None:
    """Tokenises a split into a cache folder that another process uses too; writes what it then reads."""
    data = tokenise_split(
        InventedFacts(train_size=300).examples("train"), tiny_tokenizer(), Prompt(), 30, str(folder / "cache")
    )
    (folder / os.environ["RANK"]).write_text(f"{sum(data.lengths)} {data[299]['context']} {data.data_hash}")


def test_processes_can_cache_the_same_split_concurrently(ranks, tmp_path):
    ranks(2, tokenise_into_cache, tmp_path)
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text() != ""
    assert len([path for path in (tmp_path / "cache").glob("tokenised-*") if path.is_dir()]) == 1
