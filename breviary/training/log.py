"""Training log: one printed line and one row of metrics.jsonl per logging step."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import TrainerCallback, TrainingArguments

from breviary.runtime.device import peak_memory_bytes
from breviary.runtime.distributed import print_rank0, rank, sum_scalars_over_ranks, world_size
from breviary.runtime.files import append_text, write_text

PARTIAL_ROW = "partial_row.json"  # in a checkpoint


class Progress:
    """Tokens and time since the start, or since the step at which the run was resumed.

    total  optimizer steps of the run
    first  step at which this process started
    """

    def __init__(self, total: int, first: int):
        self.total, self.first = total, first
        self.start = time.perf_counter()
        self.tokens = self.slots = 0.0

    def add(self, tokens: float, slots: float) -> None:
        """One optimizer step's context tokens and memory slots."""
        self.tokens, self.slots = self.tokens + tokens, self.slots + slots

    def statistics(self) -> dict[str, float | None]:
        """Elapsed seconds, context tokens per second, peak memory in bytes, effective ratio so far."""
        seconds = time.perf_counter() - self.start
        return {
            "seconds": round(seconds, 2),
            "tokens_per_s": round(self.tokens / max(seconds, 1e-9), 1),
            "peak_memory_bytes": peak_memory_bytes(),
            "effective_ratio": round(self.tokens / self.slots, 3) if self.slots else None,
        }

    def format_line(self, row: dict[str, Any]) -> str:
        """The printed line for a row of metrics.jsonl."""
        step = row["step"]
        if "eval_nll" in row:
            scores = "  ".join(f"{k[5:]} {v:.3f}" for k, v in row.items() if k.startswith("eval_"))
            return f"  validation at step {step}: {scores}"
        parts = [f"step {step}/{self.total}"]
        formats = {"loss": "loss {:.4f}", "grad_norm": "grad {:.2f}", "learning_rate": "lr {:.1e}"}
        parts += [form.format(row[key]) for key, form in formats.items() if key in row]
        formatted = ("step", "examples", "seconds", "tokens_per_s", "peak_memory_bytes", "effective_ratio", *formats)
        parts += [f"{key} {value:.4f}" for key, value in row.items() if key not in formatted]
        parts.append(f"{row['tokens_per_s']:.0f} tok/s")
        parts.append(f"{row['peak_memory_bytes'] / 2**30:.1f} GiB")
        if row["effective_ratio"]:
            parts.append(f"{row['effective_ratio']:.2f}x")
        remaining = (self.total - step) * row["seconds"] / max(step - self.first, 1)
        return "  ".join(parts) + f"  ETA {int(remaining) // 60}:{int(remaining) % 60:02d}"


class StepStatistics(Protocol):
    """The attributes of the Trainer that the log uses."""

    step_statistics: dict[str, torch.Tensor]  # of this rank, summed over the micro-batches of the last optimizer step
    examples_per_step: int
    step_end: Any  # counts skipped steps, see training/step_end.py
    _tr_loss: torch.Tensor  # the Trainer's own: this rank's losses since the last row
    _globalstep_last_logged: int


class RunLog(TrainerCallback):
    """Callback of the Trainer that writes one line to the terminal and one row to metrics.jsonl per logging step.

    Loss and parts of a training row are means over the optimizer steps since the previous training row; grad_norm and
    learning_rate are those of its last step. A validation row holds the scores, the step, and time and memory so far.
    """

    def __init__(self, folder: Path):
        self.file = folder / "metrics.jsonl"
        self.trainer: StepStatistics  # set by the Trainer
        self.progress: Progress  # from the start of training on
        self.totals: dict[str, float | torch.Tensor] = {}  # of this rank since the last training row
        self.steps = 0  # since the last training row
        self.resumed: dict[str, Any] = {}  # `partial_row` of the checkpoint from which the run resumes

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock; removes rows that an interrupted run wrote after the checkpoint from which it resumes."""
        self.progress = Progress(state.max_steps, state.global_step)
        if state.is_world_process_zero and self.file.exists():
            # Without its end, the last line is one that was being written when the machine stopped.
            lines = [(line, json.loads(line)) for line in self.file.read_text().split("\n")[:-1]]
            # eval_on_start: the last validation was interrupted and is repeated.
            last = {"loss": state.global_step, "eval_nll": state.global_step - args.eval_on_start}
            write_text(
                self.file,
                "".join(
                    line + "\n"
                    for line, row in lines
                    if all(row["step"] <= last[key] for key in last.keys() & row.keys())
                ),
            )
        self._continue_row()

    def partial_row(self) -> dict[str, Any]:
        """Steps since the last training row, their loss and terms summed over the ranks. A collective.

        Stored in a checkpoint, so that the next row of a resumed run is that of an uninterrupted one.
        """
        if not self.steps:
            return {}
        loss = sum_scalars_over_ranks({"loss": self.trainer._tr_loss / world_size()})
        return {"steps": self.steps, **loss, "terms": sum_scalars_over_ranks(self.totals)}

    def read_partial_row(self, file: Path) -> None:
        """Reads what a checkpoint stored; those of earlier versions stored nothing."""
        self.resumed = json.loads(file.read_text()) if file.is_file() else {}

    def _continue_row(self) -> None:
        """Adds what the checkpoint stored to the next row, except tokens: throughput is that of this process."""
        if not self.resumed:
            return
        self.steps = self.resumed["steps"]
        self.trainer._tr_loss += self.resumed["loss"]  # of which the Trainer takes the mean over the ranks
        self.trainer._globalstep_last_logged -= self.steps
        terms = {name: value * (rank() == 0) for name, value in self.resumed["terms"].items()}
        self.totals = {**terms, "context_tokens": 0.0, "slots": 0.0}

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Adds the step's losses, tokens and slots."""
        for name, value in self.trainer.step_statistics.items():
            self.totals[name] = self.totals.get(name, 0) + value
        self.steps += 1

    def on_log(self, args: TrainingArguments, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        """Writes the row and prints the line, on rank 0."""
        if "train_runtime" in logs:
            return
        is_training = "loss" in logs
        parts = self._mean_parts() if is_training else {}  # on every rank: a collective
        if not state.is_world_process_zero:
            return
        row = {
            "step": state.global_step,
            "examples": state.global_step * self.trainer.examples_per_step,
            **{k: v for k, v in logs.items() if k != "epoch"},
            **parts,
        }
        statistics = self.progress.statistics()
        if is_training and self.trainer.step_end.skipped:
            row["skipped_steps"] = self.trainer.step_end.skipped
        row |= statistics if is_training else {key: statistics[key] for key in ("seconds", "peak_memory_bytes")}
        append_text(self.file, json.dumps(row) + "\n")
        print_rank0(self.progress.format_line(row))

    def _mean_parts(self) -> dict[str, float]:
        """Each part of the loss, a mean over the steps since the last call; adds their tokens and slots to `progress`.

        The answer alone is left out: it equals the loss.
        """
        totals, steps = sum_scalars_over_ranks(self.totals), self.steps
        self.totals, self.steps = {}, 0
        self.progress.add(totals.pop("context_tokens"), totals.pop("slots"))
        return {} if set(totals) == {"answer"} else {name: total / steps for name, total in totals.items()}


PROJECT = "breviary"  # in Trackio, and in wandb without WANDB_PROJECT


def tracker_of(tracker: str, wandb: str) -> tuple[str, str]:
    """(tracker, mode) of train.tracker and train.wandb: none | wandb | trackio; disabled | offline | online.

    train.wandb alone switches wandb on, as before there was train.tracker.
    """
    if tracker == "trackio":
        return tracker, "offline"
    if tracker == "wandb" or wandb != "disabled":
        return "wandb", "online" if wandb == "online" else "offline"
    return "none", "disabled"


@contextlib.contextmanager
def tracked_run(tracker: str, mode: str, folder: Path) -> Iterator[None]:
    """On rank 0, a run of wandb with its files in `folder`, or of Trackio, to which the Trainer's callback then logs.

    tracker, mode  as of `tracker_of`
    Trackio's run is begun by the callback, see `keep_trackio_local`, and ended here where training broke off.
    """
    if tracker == "none" or rank() != 0:
        yield
    elif tracker == "wandb":
        import wandb

        settings: dict[str, Any] = {"name": folder.name, "dir": str(folder), "mode": mode}
        with wandb.init(project=os.environ.get("WANDB_PROJECT", PROJECT), **settings):
            yield
    else:
        import trackio

        try:
            yield
        finally:
            if trackio.context_vars.current_run.get() is not None:
                trackio.finish()


def keep_trackio_local(folder: Path) -> None:
    """Sets Trackio's folder to FOLDER/trackio, without a Space or server; called before each run."""
    directory = folder.absolute() / "trackio"
    os.environ["TRACKIO_DIR"] = str(directory)
    # Trackio reads the variable when it is imported; a sweep trains several runs in one process.
    modules: dict[str, Any] = dict(sys.modules)
    for name, module in modules.items():
        if name.partition(".")[0] == "trackio" and hasattr(module, "TRACKIO_DIR"):
            module.TRACKIO_DIR = directory
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_BUCKET_ID"):
        os.environ.pop(name, None)
