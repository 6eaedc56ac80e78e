"""The line that training prints: where it stands, how fast, how long still."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import TrainerCallback, TrainingArguments

from breviary.runtime.device import peak_memory_bytes
from breviary.runtime.distributed import sum_scalars_over_ranks


class ProgressLine:
    """Counts tokens and time since the start, or since the step that a run was resumed at."""

    def __init__(self, total: int, first: int):
        self.total, self.first = total, first
        self.start = time.perf_counter()
        self.tokens = self.slots = 0.0

    def add(self, tokens: float, slots: float) -> None:
        """One optimizer step's context tokens and memory slots."""
        self.tokens, self.slots = self.tokens + tokens, self.slots + slots

    def measures(self) -> dict[str, float | None]:
        """Seconds, context tokens a second, peak memory in bytes, effective ratio so far."""
        seconds = time.perf_counter() - self.start
        return {
            "seconds": round(seconds, 2),
            "tokens_per_s": round(self.tokens / max(seconds, 1e-9), 1),
            "peak_memory_bytes": peak_memory_bytes(),
            "effective_ratio": round(self.tokens / self.slots, 3) if self.slots else None,
        }

    def text(self, row: dict[str, Any]) -> str:
        """The line for a row of metrics."""
        step = row["step"]
        if "eval_nll" in row:
            scores = "  ".join(f"{k[5:]} {v:.3f}" for k, v in row.items() if k.startswith("eval_"))
            return f"  validation at step {step}: {scores}"
        parts = [f"step {step}/{self.total}"]
        known = {"loss": "loss {:.4f}", "grad_norm": "grad {:.2f}", "learning_rate": "lr {:.1e}"}
        parts += [form.format(row[key]) for key, form in known.items() if key in row]
        own = ("step", "examples", "seconds", "tokens_per_s", "peak_memory_bytes", "effective_ratio", *known)
        parts += [f"{key} {value:.4f}" for key, value in row.items() if key not in own]
        parts.append(f"{row['tokens_per_s']:.0f} tok/s")
        parts.append(f"{row['peak_memory_bytes'] / 2**30:.1f} GiB")
        if row["effective_ratio"]:
            parts.append(f"{row['effective_ratio']:.2f}x")
        left = (self.total - step) * row["seconds"] / max(step - self.first, 1)
        return "  ".join(parts) + f"  ETA {int(left) // 60}:{int(left) % 60:02d}"


class StepStatistics(Protocol):
    """What the log reads from the Trainer."""

    step_statistics: dict[str, torch.Tensor]  # sums over the micro-batches of the last optimizer step, this rank
    examples_per_step: int


class RunLog(TrainerCallback):
    """One line to the terminal and one to metrics.jsonl per logging step."""

    def __init__(self, folder: Path):
        self.file = folder / "metrics.jsonl"
        self.trainer: StepStatistics | None = None
        self.line: ProgressLine | None = None
        self.read: dict[str, float | torch.Tensor] = {"context_tokens": 0, "slots": 0}  # since the last line, this rank

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock; drops lines that a killed run wrote after the checkpoint it resumes from."""
        self.line = ProgressLine(state.max_steps, state.global_step)
        if state.is_world_process_zero and self.file.exists():
            kept = [row for row in self.file.read_text().splitlines() if json.loads(row)["step"] <= state.global_step]
            self.file.write_text("".join(row + "\n" for row in kept))

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Counts tokens."""
        self.read = {name: value + self.trainer.step_statistics[name] for name, value in self.read.items()}

    def on_log(self, args: TrainingArguments, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        """Writes both lines, on rank 0."""
        if "train_runtime" in logs:
            return
        parts = sum_scalars_over_ranks(self.trainer.step_statistics | self.read)  # every rank logs
        self.line.add(parts.pop("context_tokens"), parts.pop("slots"))
        self.read = dict.fromkeys(self.read, 0)
        if not state.is_world_process_zero:
            return
        if set(parts) == {"answer"}:
            del parts["answer"]  # it is the loss
        row = {
            "step": state.global_step,
            "examples": state.global_step * self.trainer.examples_per_step,
            **{k: v for k, v in logs.items() if k != "epoch"},
            **parts,
        }
        row |= self.line.measures()
        with open(self.file, "a") as stream:
            stream.write(json.dumps(row) + "\n")
        print(self.line.text(row), flush=True)
