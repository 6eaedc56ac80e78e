"""Kills trainings and evaluations at random moments; compares what they leave with what an uninterrupted one leaves."""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from breviary.evaluation.bench.processes import (
    folders_in,
    kill_all,
    launcher,
    read_losses,
    read_predictions,
    run_to_end,
    started_process,
)
from breviary.runs.checkpoints import checkpoints
from breviary.runs.sealing import damage, is_complete

TINY = ("backbone=tiny", "backbone.width=32", "backbone.dtype=float32", "generation.max_new_tokens=2")
DATA = ("dataset.facts=2", "dataset.train_size=64", "dataset.validation_size=4", "dataset.test_size=40")
STEPS = ("train.batch_size=2", "train.log_every=1", "train.save_every=2", "train.eval_every=8", "train.eval_examples=2")
TRAINING = ("reader=crash", "dataset=invented_facts", *TINY, *DATA, *STEPS)
COMI, COMET = ["compressor=comi", "compressor.join=depth"], ["compressor=comet", "compressor.chunk_size=8"]
# Name: processes, overrides.
MODES: dict[str, tuple[int, list[str]]] = {
    "one": (1, COMI),
    "ddp": (2, [*COMI, "engine=ddp"]),
    "zero2": (2, [*COMI, "engine=zero2"]),
    "pipeline": (2, [*COMET, "engine=pipeline", "engine.ranks=2"]),
}
MOST_STEPS = 6  # from a start to its kill, about
POLL = 0.0005  # seconds between looks at the files


@dataclass
class Kills:
    """What the killed processes left.

    in_checkpoint  kills that left an incomplete checkpoint
    resumed        starts that went on from a checkpoint
    problems       sentences; empty = nothing was lost
    """

    kills: int = 0
    in_checkpoint: int = 0
    resumed: int = 0
    finished: int = 0
    largest_difference: float = 0.0
    problems: list[str] = field(default_factory=list)


def crash_training(mode: str, home: Path, kills: int, steps: int, rng: random.Random) -> Kills:
    """Kills a training `kills` times, restarts it with resume=auto, compares its losses with an uninterrupted one's.

    Every second kill waits for a checkpoint that is being written. A training that ends before is compared, and the
    next one starts.
    """
    processes, overrides = MODES[mode]
    words = [*TRAINING, *overrides, f"train.steps={steps}", f"paths.outputs={home}"]
    command = [*launcher(processes), "train.py", *words, "resume=auto"]
    reference = run_to_end([*command, f"name=reference_{mode}"], home / f"reference_{mode}")
    found, name = Kills(), f"crash_{mode}"
    while found.kills < kills:
        newest, number = _newest(home / name), found.kills
        with started_process([*command, f"name={name}"], home / f"{name}.log") as (process, log):
            was_killed = _kill_training(process, log, home / name, rng, number % 2 == 1)
        text = log.read_text(errors="replace")
        found.resumed += "resumes from" in text
        if newest and f"resumes from {newest}" not in text and "no step" not in text:
            found.problems.append(f"after kill {number}: {newest} was there, the next start did not resume from it")
        if was_killed:
            found.kills += 1
            found.in_checkpoint += _look_at_checkpoints(home / name, found)
        elif process.returncode:
            found.problems.append(f"start after kill {number} ended with {process.returncode}: {text[-500:]}")
            return found
        else:
            _compare(read_losses(reference), read_losses(folders_in(home / name)[-1]), found)
    folder = run_to_end([*command, f"name={name}"], home / name)
    _compare(read_losses(reference), read_losses(folder), found)
    if not found.resumed:
        found.problems.append("no start resumed from a checkpoint: nothing was measured")
    return found


def crash_evaluation(home: Path, kills: int, rng: random.Random) -> Kills:
    """Kills an evaluation `kills` times while it answers; compares its predictions with an uninterrupted one's."""
    run = run_to_end(
        [*launcher(1), "train.py", *TRAINING, *COMI, "train.steps=4", f"paths.outputs={home}", "name=evaluated"],
        home / "evaluated",
    )
    whole = Path(shutil.copytree(run, home / "uninterrupted" / run.name))
    words = ["dataset.test_size=400", "eval_batch_size=1", "baselines=[]"]
    expected = read_predictions(run_to_end([*launcher(1), "eval.py", f"run={whole}", *words], whole / "eval"))
    command = [*launcher(1), "eval.py", f"run={run}", *words]
    found, seen = Kills(), 0
    while found.kills < kills:
        with started_process(command, home / "evaluation.log") as (process, log):
            target = seen + rng.randint(1, max(1, 2 * (len(expected) - seen) // (kills - found.kills + 1)))
            while process.poll() is None and len(read_predictions(run / "eval")) < target:
                time.sleep(POLL)
            time.sleep(rng.random() * 0.01)
            kill_all(process)
        found.kills += 1
        rows = read_predictions(run / "eval")
        if len(rows) < seen:
            found.problems.append(f"kill {found.kills}: {seen} predictions before, {len(rows)} now")
        seen = len(rows)
        if seen >= len(expected):
            break
    rows = read_predictions(run_to_end(command, run / "eval"))
    ids = [row["id"] for row in rows]
    if len(ids) != len(set(ids)):
        found.problems.append(f"{len(ids) - len(set(ids))} predictions are there twice")
    compared = ("id", "prediction", "nll")
    if [[row.get(key) for key in compared] for row in rows] != [[row.get(key) for key in compared] for row in expected]:
        found.problems.append("predictions differ from the uninterrupted evaluation's")
    found.finished = 1
    return found


# ---- a kill ----


def _kill_training(process: subprocess.Popen, log: Path, home: Path, rng: random.Random, in_checkpoint: bool) -> bool:
    """Kills at a random moment after the first step of this start; False where the training ended before."""
    target = rng.randint(1, MOST_STEPS)
    while process.poll() is None and log.read_bytes().count(b"\nstep ") < target:
        time.sleep(POLL)
    while in_checkpoint and process.poll() is None:
        if any(not is_complete(path) for path in home.glob("*_*/checkpoints/checkpoint-*")):
            break
        time.sleep(POLL)
    time.sleep(rng.random() * (0.02 if in_checkpoint else 0.2))
    if process.poll() is not None:
        return False
    kill_all(process)
    return True


# ---- what is left ----


def _newest(home: Path) -> str | None:
    """Name of the newest complete checkpoint of the unfinished run."""
    unfinished = [folder for folder in home.glob("*_*") if not (folder / "finished").exists()]
    found = [path.name for folder in unfinished for path in checkpoints(folder)]
    return found[-1] if found else None


def _look_at_checkpoints(home: Path, found: Kills) -> bool:
    """Whether the kill left an incomplete checkpoint. Adds a problem for each complete one that is damaged."""
    paths = list(home.glob("*_*/checkpoints/checkpoint-*"))
    for path in paths:
        if is_complete(path) and (reason := damage(path)):
            found.problems.append(f"kill {found.kills}: {reason}")
    return any(not is_complete(path) for path in paths)


def _compare(expected: dict[int, float], losses: dict[int, float], found: Kills) -> None:
    found.finished += 1
    if losses.keys() != expected.keys():
        found.problems.append(f"steps {sorted(expected.keys() ^ losses.keys())[:10]} are not in both series of losses")
        return
    difference = max(abs(losses[step] - expected[step]) for step in expected)
    found.largest_difference = max(found.largest_difference, difference)
