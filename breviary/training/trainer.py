"""transformers.Trainer with a loss of several terms, a fixed data order and checkpoints of trained weights.

Differences from the plain Trainer:
  - A loss is a set of (sum, count) terms. Each is divided by its own count over the whole optimizer step, all
    micro-batches and all ranks, so accumulation and world size do not change the result.
  - The data order depends on (seed, step) only and is one long epoch, so that a resumed run gets the same batches.
  - Checkpoints hold trained weights only, with the backbone's name and hash.
  - Validation uses the evaluation loop of breviary.evaluation. The checkpoint of its step is written before it, and a
    run that was interrupted in a validation repeats that first when it is resumed.
  - A loss, gradient norm or validation NLL that is not finite ends the training without a checkpoint, as does a signal
    with one (breviary.training.step_end).
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils.data import Sampler
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from breviary.contract import Batch, Generation, Reader
from breviary.evaluation.loop import evaluate
from breviary.evaluation.results import summarise
from breviary.readers.chunked import ChunkedReader
from breviary.runs.checkpoints import delete_old_checkpoints, load_trained, write_processes
from breviary.runs.plain_reading import read_deepspeed_files
from breviary.runs.sealing import begin_checkpoint, replace_file, seal_checkpoint
from breviary.runtime.distributed import barrier, gather_rows, rank, sum_over_ranks, world_size
from breviary.runtime.files import named_errors, write_json
from breviary.runtime.memory_errors import TRAINING, memory_errors
from breviary.training.engines import gathered_parameters
from breviary.training.fsdp import OptimizerShards
from breviary.training.log import PARTIAL_ROW, RunLog
from breviary.training.packing import PackedItems, Packing, PackSampler, collate_packs
from breviary.training.sampling import RepeatBatches, StepSampler
from breviary.training.saving import check_optimizer_state, save_learned, store_weights_once
from breviary.training.step_end import StepEnd
from breviary.training.watchdog import NotFiniteFailure


@dataclass
class Validation:
    """Examples that are evaluated at intervals, and the settings of the evaluation.

    items   tokenised examples
    scores  (prediction, references) -> {metric: value}
    """

    items: Any
    scores: Callable[..., dict[str, float]]
    generation: Generation
    batch_size: int


class ReaderTrainer(Trainer):
    """Trains a Reader. `ranks` processes share each batch as a pipeline (`ChunkedReader.join_pipeline`).

    packing  of examples into packs, which then take their place (training/packing.py); None = no packs
    """

    optimizer: Any  # set by the Trainer
    control: Any

    def __init__(
        self,
        reader: Reader,
        args: TrainingArguments,
        items: Any,
        collate: Callable[[Sequence[Any]], Batch],
        validation: Validation | None,
        fingerprint: dict[str, str],
        grouped: bool,
        log: RunLog,
        ranks: int = 1,
        step_end: StepEnd | None = None,
        packing: Packing | None = None,
    ):
        if not any(parameter.requires_grad for parameter in reader.parameters()):
            raise ValueError(
                "nothing to train: neither the decoder nor the compressor has trained weights; set "
                "decoder.train, e.g. decoder.train=lora"
            )
        self.reader, self.validation, self.fingerprint, self.grouped = reader, validation, fingerprint, grouped
        self.ranks, self.run_log, self.step_end = ranks, log, step_end or StepEnd()
        self.packing = packing
        self.shards = OptimizerShards(reader) if isinstance(reader, FSDPModule) else None
        super().__init__(
            model=reader,
            args=args,
            data_collator=collate if packing is None else collate_packs(collate),
            train_dataset=items if packing is None else PackedItems(items),
            eval_dataset=validation.items if validation else None,
        )
        self.model_accepts_loss_kwargs = True  # counts cover the whole step: no division by micro-batches
        self.pop_callback(PrinterCallback)
        self.pop_callback(ProgressCallback)
        self.step_statistics: dict[str, torch.Tensor] = {}
        self.step_losses: list[torch.Tensor] = []  # of this rank, by micro-batch
        self.step_examples: list[list[str]] = []  # ids, likewise
        self.gradient_norm: torch.Tensor | float | None = None
        self.last_saved_step = -1
        log.trainer = self.step_end.trainer = self
        self.add_callback(log)
        self.add_callback(self.step_end)

    # -------------------------------------------------------------- data

    @property
    def examples_per_step(self) -> int:
        """Examples, or packs, of an optimizer step over all processes; the ranks of a pipeline share theirs."""
        per_process = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return per_process * (self.args.world_size // self.ranks)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        per_step, seed = self.examples_per_step, self.args.seed
        total, items = per_step * self.args.max_steps, self.train_dataset
        if isinstance(items, PackedItems):
            assert self.packing is not None, "packs without their size"
            sampler: Any = PackSampler(self.packing, items.items, total, seed)
        else:
            sampler = StepSampler(items.lengths, per_step, total, seed, self.grouped)
        return RepeatBatches(sampler, self.args.train_batch_size, self.ranks)

    def _get_collator_with_removed_columns(self, data_collator: Callable, description: str | None = None) -> Callable:
        return data_collator  # items are not model inputs, so no column is removed

    def _prepare_inputs(self, inputs: Batch) -> Batch:
        return inputs.to(self.args.device)

    def floating_point_ops(self, inputs: Batch) -> int:
        """0: not estimated, because a reader makes several model calls."""
        return 0

    # -------------------------------------------------------------- optimizer

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The Trainer's optimizer, with a group per weight decay and learning rate (`learning_rate_factors`)."""
        factors = self.reader.learning_rate_factors if isinstance(self.reader, ChunkedReader) else {}
        if self.optimizer is not None or not factors:
            return super().create_optimizer(model)
        decayed = set(self.get_decay_parameter_names(self.reader))
        groups: dict[tuple[bool, float], list[torch.nn.Parameter]] = {}
        for name, parameter in self.reader.named_parameters():
            if parameter.requires_grad:
                factor = next((f for prefix, f in factors.items() if name.startswith(prefix)), 1.0)
                groups.setdefault((name in decayed, factor), []).append(parameter)
        optimizer, settings = self.get_optimizer_cls_and_kwargs(self.args, self.reader)
        self.optimizer = optimizer(
            [
                {
                    "params": parameters,
                    "lr": settings["lr"] * factor,
                    "weight_decay": self.args.weight_decay if decays else 0.0,
                }
                for (decays, factor), parameters in groups.items()
            ],
            **settings,
        )
        return self.optimizer

    # -------------------------------------------------------------- loss

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """The micro-batches of one optimizer step, and each loss term's count over all of them on all ranks."""
        self.finish_saving(wait=False)
        if self.control.should_training_stop:  # by the validation before the first step
            return [], {}
        self.reader.begin_step(self.state.global_step, self.args.seed)
        with memory_errors("reading a batch", TRAINING, receives=self.args.dataloader_num_workers > 0):
            samples = list(itertools.islice(epoch_iterator, num_batches))
        counts: dict[str, torch.Tensor] = {}
        for batch in samples:
            for name, count in self.reader.counts(batch).items():
                counts[name] = counts.get(name, 0) + count.to(self.args.device, torch.float64)
        self.step_statistics, self.step_losses = {}, []
        self.step_examples = [[example.id for example in batch.examples] for batch in samples]
        return samples, {name: sum_over_ranks(count) for name, count in counts.items()}

    def compute_loss(
        self, model: torch.nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Sum over terms of (this micro-batch's sum) / (the step's count), times the world size.

        The factor compensates for DDP and DeepSpeed, which average gradients over ranks.
        """
        output = model(inputs)
        total = 0.0
        for name, (value, _) in output["terms"].items():
            # Count and sum are 0 where no row of the step has the term (no positive segment, for example).
            term = value / num_items_in_batch[name].clamp(min=1).to(value.dtype)
            self._accumulate(name, term)
            total = total + term
        self.step_losses.append(torch.as_tensor(total).detach())
        self._accumulate("slots", output["slots"])
        self._accumulate("context_tokens", output["context_tokens"])
        return total * self.args.world_size

    def training_step(self, model: torch.nn.Module, inputs: Batch, num_items_in_batch: Any = None) -> torch.Tensor:
        """As in the Trainer. Raises: OutOfMemory with the sizes of the batch, NotFiniteFailure with its examples."""
        try:
            with memory_errors("a training step", TRAINING, inputs):
                return super().training_step(model, inputs, num_items_in_batch)
        except NotFiniteFailure as error:
            self.step_end.fail_batch(str(error), [example.id for example in inputs.examples])
            raise NotFiniteFailure(self.step_end.failure) from error

    def _accumulate(self, name: str, value: torch.Tensor) -> None:
        self.step_statistics[name] = self.step_statistics.get(name, 0) + value.detach()

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        self.gradient_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if self.step_end.skips_step(self.gradient_norm, self.state.global_step + 1):
            for parameter in self.reader.parameters():
                parameter.grad = None  # without a gradient the optimizer changes neither the weight nor its state
            self.gradient_norm = 0.0
        return self.gradient_norm

    def step_values(self) -> torch.Tensor:
        """This rank's losses and gradient norm of the last optimizer step, (N,) float64, without a host sync."""
        norm = torch.as_tensor(0.0 if self.gradient_norm is None else self.gradient_norm)
        values = torch.stack([value.to(self.args.device, torch.float64) for value in (*self.step_losses, norm)])
        values[-1] = torch.where(values[-1] < 0, torch.nan, values[-1])  # DeepSpeed has -1 for a norm that is infinite
        return values

    # -------------------------------------------------------------- validation, checkpoints

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Scores and answer NLL on the validation examples, which are distributed over the ranks.

        {} after a signal, which ends the validation and the training.
        """
        v = self.validation
        assert v is not None, "evaluate() without validation examples"
        zero3 = self.is_deepspeed_enabled and self.accelerator.deepspeed_config["zero_optimization"]["stage"] == 3
        gathers = zero3 or self.shards is not None  # weights, when a module is called: ranks make equal calls
        rows: list[dict[str, Any]] = []
        with gathered_parameters(self.reader) if gathers else contextlib.nullcontext():
            for batch in evaluate(
                self.reader,
                v.items,
                self.data_collator,
                v.scores,
                v.generation,
                v.batch_size,
                rank=rank(),
                world_size=world_size(),
                equal_calls=gathers,
            ):
                rows += batch
                if self.step_end.interruption.received and not gathers:
                    break
        if not gathers and self.step_end.stop_validation(self.control):
            return {}
        rows = gather_rows(rows)
        failed = [row["id"] for row in rows if not math.isfinite(row["nll"])]
        if failed:
            self.step_end.fail_validation(failed, self.control)
            return {}
        summary = summarise(rows, None, resamples=100)
        metrics = {f"eval_{name}": value["value"] for name, value in summary["metrics"].items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        """As in the Trainer, which calls this at intervals; the step's checkpoint is written first.

        skip_scheduler  True in the call before the first step: see `_repeat_validation`
        """
        if self.control.should_save:
            self._save_checkpoint(self.model, trial)
        metrics = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
        if skip_scheduler:
            self._determine_best_metric(metrics, trial)
            self._update_checkpoint()
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """As in the Trainer; False for a validation that was not completed."""
        return bool(metrics) and super()._determine_best_metric(metrics, trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As in the Trainer; a checkpoint that was written before the validation gets the validation's result."""
        if self.last_saved_step == self.state.global_step:
            self._update_checkpoint()
            return
        if self.shards is not None:
            self.finish_saving()
        folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        most, self.args.save_total_limit = self.args.save_total_limit, None  # older ones stay until this is complete
        with named_errors(folder):
            if self.args.should_save:
                begin_checkpoint(folder)
            super()._save_checkpoint(model, trial)
        self.args.save_total_limit, self.last_saved_step = most, self.state.global_step
        if self.shards is None:
            barrier()  # each rank has written its random state
            self._complete_checkpoint()

    def _complete_checkpoint(self) -> None:
        """Lists the newest checkpoint's files, whose writes end on every rank by now, then deletes old checkpoints."""
        folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.last_saved_step}"
        with named_errors(folder):
            if self.shards is not None:
                self.shards.finish()
            if self.args.should_save:
                seal_checkpoint(folder)
        if self.args.should_save:
            best, most = self.state.best_model_checkpoint, self.args.save_total_limit
            delete_old_checkpoints(Path(self.args.output_dir), best, most)

    def finish_saving(self, wait: bool = True) -> None:
        """Deletes old checkpoints once the newest is complete, which FSDP writes while the training goes on.

        wait  until it is; False = only where it is already
        """
        if self.shards is not None and self.shards.pending is not None and (wait or self.shards.is_written):
            self._complete_checkpoint()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.shards is None:
            return super()._save_optimizer_and_scheduler(output_dir)
        self.shards.start(output_dir, self.optimizer.optimizer)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self.shards is None or checkpoint is None:
            return super()._load_optimizer_and_scheduler(checkpoint)
        self.shards.load(checkpoint, self.optimizer.optimizer)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        if self.shards is None:  # else its weights are where FSDP computes or offloads them
            super()._move_model_to_device(model, device)

    def _update_checkpoint(self) -> None:
        """Stores the state after a validation, with the best step so far, in the step's checkpoint."""
        home = Path(self.args.output_dir)
        best = home / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
        if best.is_dir():
            self.state.best_model_checkpoint = str(best)
        if self.args.should_save:
            folder = home / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            part = folder / f"{TRAINER_STATE_NAME}.part"
            with named_errors(part):
                self.state.save_to_json(str(part))
            replace_file(folder, TRAINER_STATE_NAME, part)

    def _repeat_validation(self) -> bool:
        """Whether the run was interrupted after this checkpoint was written and before its validation had ended."""
        step = self.state.global_step
        is_due = step % self.state.eval_steps == 0 or step >= self.state.max_steps  # else saved by train.save_every
        validated = any("eval_nll" in row and row["step"] == step for row in self.state.log_history)
        return self.validation is not None and is_due and not validated

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the learned weights (`save_learned`) and the checkpoint's small files. Called by every rank."""
        folder = output_dir or self.args.output_dir
        save_learned(folder, self.reader, self.fingerprint, self.is_deepspeed_enabled or self.shards is not None)
        partial = self.run_log.partial_row()
        if self.args.should_save:
            write_processes(folder, self.args.world_size, self.examples_per_step)
            write_json(Path(folder) / PARTIAL_ROW, partial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_trained(resume_from_checkpoint, self.reader, self.fingerprint)

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        """As in the Trainer. DeepSpeed's own files hold optimizer state only (those of early versions masters, too)."""
        if resume_from_checkpoint:
            self.args.eval_on_start = self._repeat_validation()
            self.last_saved_step = self.state.global_step
            self.run_log.read_partial_row(Path(resume_from_checkpoint) / PARTIAL_ROW)
            kind = "zero" if self.is_deepspeed_enabled else "plain" if self.shards is None else "fsdp"
            check_optimizer_state(resume_from_checkpoint, kind, self.args.world_size)
        if not self.is_deepspeed_enabled:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        engine = self.model_wrapped
        store_weights_once(engine)
        read_deepspeed_files(engine)
        if resume_from_checkpoint:
            engine.load_checkpoint(resume_from_checkpoint, load_module_strict=False)
            self._load_from_checkpoint(resume_from_checkpoint)  # weights and their float32 masters
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared
