"""After each optimizer step: saves at intervals, and ends the training on a signal or on a value that is not finite."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import TrainerCallback, TrainingArguments

from breviary.config.training_length import save_interval
from breviary.runs.checkpoints import checkpoints
from breviary.runtime.distributed import gather_rows, max_over_ranks, print_rank0, rank, sum_scalars_over_ranks
from breviary.runtime.files import write_json
from breviary.runtime.spelling import override
from breviary.training.interruption import Interruption

NAMED = 16  # examples that a message names
NOT_FINITE = "not_finite.json"  # in the run folder: all of them


class StepValues(Protocol):
    """What the callback uses of the Trainer, each of this rank's last optimizer step."""

    args: Any
    state: Any
    step_examples: list[list[str]]  # ids, by micro-batch

    def step_values(self) -> torch.Tensor:
        """Loss of each micro-batch and the gradient norm, (N,)."""

    def finish_saving(self, wait: bool = True) -> None:
        """See ReaderTrainer."""


class StepEnd(TrainerCallback):
    """Callback of the Trainer, which decides the same on every rank.

    save_every    train.save_every: steps, or minutes as text, which rank 0 measures from the last checkpoint on
    interruption  records the signals that this rank receives; a signal to one rank ends the training of all
    skips         train.not_finite=skip: a gradient norm that is not finite does not end the training

    failure  message about a value that is not finite; None = there was none. Nothing is saved after it
    signal   number of the signal that ended the training before its last step or validation; 0 = none
    skipped  steps without an update, since this process started

    Costs one collective and one host sync an optimizer step: what follows must be known before the next step.
    """

    def __init__(self, save_every: int | str = 0, interruption: Interruption | None = None, skips: bool = False):
        self.steps, self.seconds = save_interval(save_every)
        self.interruption = interruption or Interruption()
        self.trainer: StepValues  # set by the Trainer
        self.saved = time.monotonic()
        self.failure: str | None = None
        self.signal = self.skipped = 0
        self.skips = skips

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock."""
        self.saved = time.monotonic()

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock anew."""
        self.saved = time.monotonic()

    def on_train_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Waits for a checkpoint that is still being written."""
        self.trainer.finish_saving()

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Sets what the Trainer does next: save, stop. Comes after the Trainer's own callback, which sets intervals."""
        late = rank() == 0 and 0 < self.seconds <= time.monotonic() - self.saved
        values = self.trainer.step_values()
        flags = values.new_tensor([float(self.interruption.received), float(late)])
        not_finite, received, is_due = max_over_ranks(torch.cat([(~values.isfinite()).any()[None].to(flags), flags]))
        if not_finite:
            self._fail_step(values.tolist())
            control.should_log = control.should_evaluate = control.should_save = False
            control.should_training_stop = True
        elif received and (state.global_step < state.max_steps or control.should_evaluate):
            self.signal = int(received)
            control.should_evaluate = False
            control.should_save = control.should_training_stop = True
        elif is_due or (self.steps and state.global_step % self.steps == 0):
            control.should_save = True

    def skips_step(self, norm: Any, step: int) -> bool:
        """Whether a step has no update, because its gradient norm is not finite; equal on all ranks, as the norm is.

        Costs a host sync a step where `skips` is set. A loss that is not finite ends the training all the same.
        """
        if not self.skips or bool(torch.as_tensor(norm).isfinite()):
            return False
        self.skipped += 1
        print_rank0(
            f"step {step}: the gradient norm is {float(norm):g}; no update in this step ({self.skipped} so far)"
        )
        return True

    def stop_validation(self, control: Any) -> bool:
        """Whether a rank has received a signal during the validation, which then ends the training. A collective."""
        received = torch.tensor([float(self.interruption.received)], device=self.trainer.args.device)
        self.signal = int(max_over_ranks(received)[0])
        if self.signal:
            control.should_evaluate, control.should_training_stop = False, True
        return bool(self.signal)

    def _fail_step(self, values: list[float]) -> None:
        """Names the examples of the micro-batches whose loss is not finite; of all where only the gradient is not."""
        *losses, norm = values
        loss = sum_scalars_over_ranks({"loss": sum(losses)})["loss"]
        batches = gather_rows([(math.isfinite(one), ids) for one, ids in zip(losses, self.trainer.step_examples)])
        failed = [ids for is_finite, ids in batches if not is_finite] or [ids for _, ids in batches]
        step = self.trainer.state.global_step
        self._fail(
            f"step {step}: the loss is {loss:g} and the gradient norm {norm:g}",
            [example for ids in failed for example in ids],
            step - 1,
        )

    def fail_batch(self, what: str, examples: list[str]) -> None:
        """Sets `failure` for a value within a batch, which this rank of a pipeline found and others may not know."""
        step = self.trainer.state.global_step
        self._fail(f"step {step + 1}: {what}", examples, step, is_own=True)

    def fail_validation(self, examples: list[str], control: Any) -> None:
        """Ends the training after a validation in which the NLL of `examples` is not finite."""
        step = self.trainer.state.global_step
        self._fail(f"validation after step {step}: the NLL is not finite", examples, step)
        control.should_evaluate, control.should_training_stop = False, True

    def _fail(self, what: str, examples: list[str], step: int, is_own: bool = False) -> None:
        """Sets `failure`: what is not finite, and the ids of the examples from which that was computed.

        step    after which the weights were those with which it was computed
        is_own  this rank writes the ids, whichever it is; else rank 0 does, to which all ranks have sent theirs
        """
        folder, ids = Path(self.trainer.args.output_dir).parent, list(dict.fromkeys(examples))
        more = f" and {len(ids) - NAMED} more, listed in {NOT_FINITE}" if len(ids) > NAMED else ""
        found = checkpoints(folder)
        again = override("train.learning_rate", float(f"{self.trainer.args.learning_rate / 10:.3g}"))
        if not found:
            last = "there is no checkpoint"
        elif found[-1].name == f"checkpoint-{step}":
            last = f"the last checkpoint, {found[-1].name}, has the weights that gave this value"
        else:
            last = f"the last checkpoint is {found[-1].name}"
            again = f"{override('init_from', str(folder))} {again}"
        if is_own or rank() == 0:
            write_json(folder / NOT_FINITE, {"what": what, "examples": ids})
        self.failure = (
            f"{what}, with the examples {', '.join(ids[:NAMED])}{more}. The run is not finished, later weights are not "
            f"saved; {last}. Look at the examples, or change the training, e.g. {again}"
        )
