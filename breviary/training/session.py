"""A training session: checks everything that needs no weights, opens the run folder, builds the Trainer, trains."""

from __future__ import annotations

import contextlib
import signal
import threading
from pathlib import Path
from typing import Any, NoReturn

import torch
from omegaconf import DictConfig, OmegaConf

from breviary.backbones.attention import check_training_attention
from breviary.backbones.pretrained import DTYPES, Backbone
from breviary.backbones.shape import BackboneShape
from breviary.backbones.sharding import cast_unpartitioned, full_size, partitioned_loading
from breviary.config.answer_limits import answer_notes
from breviary.config.budget_notes import budget_notes
from breviary.config.build import ReaderSpec, build_backbone, build_reader
from breviary.config.checks import check_config, check_process_count, check_training_dtype, read_splits
from breviary.config.context_lengths import ContextLimits
from breviary.config.errors import RunFailure, collect_errors, raise_problems
from breviary.config.keys import validate_keys
from breviary.config.text_pipeline import TextPipeline, tokenised_folder
from breviary.config.training_length import derive_accumulation, derive_steps, describe_batch, global_batch
from breviary.contract import Generation, Reader
from breviary.readers.chunked import ChunkedReader
from breviary.runs.checkpoints import (
    best_checkpoint,
    check_processes,
    check_start,
    checkpoint_to_resume,
    checkpoints,
    has_processes,
    last_checkpoint,
    load_trained,
    weights_hash,
)
from breviary.runs.folders import finish_run, finished_run, open_run, unlock_run
from breviary.runs.sweeps import announce_job, current_sweep, list_run
from breviary.runtime.device import resolve_device
from breviary.runtime.distributed import barrier, end_process_group, print_rank0, rank, start_process_group, world_size
from breviary.runtime.memory_errors import LOADING, TRAINING, OutOfMemory, memory_errors
from breviary.runtime.spelling import override
from breviary.training.cost.plan import RunCost, split_lengths
from breviary.training.engines import declare_process, prepare_deepspeed, training_arguments
from breviary.training.fsdp import shard_reader
from breviary.training.interruption import Interruption, TrainingInterrupted, resume_command
from breviary.training.log import RunLog, tracked_run, tracker_of
from breviary.training.notes import batch_notes, overlap_notes
from breviary.training.packing import Packing, pack_notes
from breviary.training.pipeline import PipelineGroup, describe_pipelines, init_pipeline_group
from breviary.training.saving import KEPT_CHECKPOINTS, describe_checkpoint
from breviary.training.step_end import StepEnd
from breviary.training.teacher import load_teacher, teacher_problems
from breviary.training.trainer import ReaderTrainer, Validation


class TrainingSession:
    """One training run, from a composed configuration to a finished run folder.

    text  prompts, tokenising, collating and scoring (data.text_pipeline.TEXT)
    Raises: ConfigError with every problem, before any weight is loaded.
    """

    def __init__(self, cfg: DictConfig, text: TextPipeline):
        self.cfg, problems = validate_keys(cfg)
        train, self.interruption = self.cfg.train, Interruption()
        problems += derive_accumulation(train, world_size(), self.cfg.engine.ranks)
        self.text, self.backbone, self.spec = text, build_backbone(self.cfg), ReaderSpec.of(self.cfg)
        self.pipeline = PipelineGroup()
        self.is_finished = False  # set by `open`: a sweep goes on, and an earlier call has finished this run
        problems += check_config(self.cfg, self.spec, self.backbone, world_size())
        problems += check_training_dtype(self.backbone.dtype)
        problems += check_training_attention(self.backbone.attn_implementation, self.backbone.device)
        problems += check_start(self.cfg.init_from, self.cfg.resume, self.backbone)
        problems += teacher_problems(self.cfg, self.backbone)
        if self.cfg.resume not in ("never", "auto"):
            checkpoint = collect_errors([], checkpoint_to_resume, self.cfg.resume)  # reported by check_start
            problems += self._check_resumed(self.cfg.resume, checkpoint) if checkpoint else []
        self.splits = self._tokenise(problems)
        limits = ContextLimits(self.spec, self.backbone, self.cfg.generation.max_new_tokens)
        raise_problems(limits.check(self.splits))
        self.packing = None if train.pack_tokens is None else Packing(train.pack_tokens, self.spec.compressor)
        items, seed = self.splits["train"], self.cfg.seed
        self.rows = self.packing.count(items, seed) if self.packing else len(items)  # of a pass over the train split
        packs = self.packing.count(items, seed, train.epochs) if self.packing and train.epochs else None
        derive_steps(train, len(items), self.global_batch, packs)
        readers = world_size() // self.cfg.engine.ranks  # processes with batches of their own
        raise_problems(check_process_count(self.rows, readers, "the size of the train split"))
        self.cost = self._estimate()
        raise_problems(self.cost.problems())

    @property
    def validates(self) -> bool:
        """Whether there are validations during training."""
        return self.cfg.train.eval_examples > 0

    @property
    def global_batch(self) -> int:
        """Examples of an optimizer step over all processes."""
        return global_batch(self.cfg.train, world_size(), self.cfg.engine.ranks)

    def _check_resumed(self, run: str | Path, checkpoint: Path) -> list[str]:
        """Checks processes and global batch against those of the checkpoint from which the run resumes."""
        return check_processes(run, checkpoint, world_size(), self.global_batch)

    def inputs(self) -> dict[str, str | None]:
        """Hashes of what the run is trained from, keys of runs.folders.INPUT_NAMES."""
        encoder, start = self.spec.settings.get("encoder"), self.cfg.init_from
        return {
            **{split: items.data_hash for split, items in self.splits.items()},
            "tokens": self.splits["train"].tokens_hash,
            "backbone": self.backbone.fingerprint["sha256"],
            "encoder": Backbone(encoder).fingerprint["sha256"] if encoder else None,
            "init_from": weights_hash(best_checkpoint(start)) if start else None,
        }

    def _tokenise(self, problems: list[str]) -> dict[str, Any]:
        """The train and validation splits as tokens, cached under a hash of their content."""
        cfg = self.cfg
        prompt = collect_errors(problems, self.text.prompt, cfg.prompt)
        splits = ["train", "validation"] if self.validates else ["train"]
        examples = read_splits(cfg.dataset, splits, problems, self.text.store, tokenised_folder(cfg))
        raise_problems(problems)
        if self.validates:
            examples["validation"] = examples["validation"][: cfg.train.eval_examples]
        tokenizer, cache, limits = self.backbone.tokenizer(), tokenised_folder(cfg), cfg.limits
        return {
            split: self.text.tokenise(rows, tokenizer, prompt, limits.max_context_tokens, cache, limits.truncation)
            for split, rows in examples.items()
        }

    def _estimate(self) -> RunCost:
        """Memory and FLOPs of the run on the device of this process."""
        shape, device = BackboneShape.from_config(self.backbone.config), resolve_device(self.backbone.device)
        collate = self.text.collator(self.backbone.tokenizer())
        lengths = split_lengths(self.spec, self.splits["train"], collate, self.cfg.train)
        return RunCost.of(self.cfg, shape, device, lengths, world_size())

    def open(self) -> tuple[Path, Path | None]:
        """Joins the process group; the run folder, and the checkpoint to resume from, or None.

        In a sweep with resume=auto the folder may be of a finished run, which is not trained again (`is_finished`).
        """
        device, engine = resolve_device(self.backbone.device), self.cfg.engine
        if engine.kind == "zero":
            prepare_deepspeed(device)
        elif engine.kind == "fsdp":
            declare_process()
        start_process_group(device, engine.timeout, always=engine.kind == "fsdp")
        sweep, inputs = current_sweep(), self.inputs()
        if sweep is not None:
            announce_job(sweep)
        done = finished_run(self.cfg, inputs) if sweep is not None and self.cfg.resume == "auto" else None
        folder, checkpoint = (done, None) if done else open_run(self.cfg, inputs)
        if sweep is not None:
            list_run(sweep, folder)
        if done:
            self.is_finished = True
            return folder, None
        print_rank0(f"run {folder}" + (f", resumes from {checkpoint.name}" if checkpoint else ""))
        if checkpoint:
            raise_problems(self._check_resumed(folder, checkpoint))
            if not has_processes(checkpoint):
                print_rank0(
                    f"{checkpoint.name} does not state its processes and global batch; they must be those of this run"
                )
        elif self.cfg.resume == "auto" and sweep is None:
            print_rank0(
                f"resume=auto: no unfinished run of this configuration and data in {folder.parent} has a checkpoint; "
                "this run is new"
            )
        elif sweep is None:
            print_rank0("if it is killed, the same command with resume=auto continues it from its newest checkpoint")
        self._print_data()
        return folder, checkpoint

    def _print_data(self) -> None:
        """Prints a line about each split and the global batch, and notes about what makes the training useless."""
        cfg, train = self.cfg, self.splits["train"]
        print_rank0(self.cost.line())
        for split, items in self.splits.items():
            lines = [items.report(), *budget_notes(items, self.spec.settings)]
            if split == "train":
                lines += batch_notes(self.rows, self.global_batch, cfg.train)
                lines += pack_notes(items, cfg.train.pack_tokens)
            else:
                lines += answer_notes(items, cfg, self.spec.objective.is_autoencoder)
                lines += overlap_notes(train.examples, items.examples)
            for line in lines:
                print_rank0(f"{split}: {line}")
        print_rank0(f"examples and tokens are read from {tokenised_folder(cfg)}")
        print_rank0(describe_batch(cfg.train, world_size(), cfg.engine.ranks, self.rows))

    @memory_errors("loading weights", LOADING)
    def build(self, folder: Path) -> ReaderTrainer:
        """Loads weights and builds the Trainer, which logs and saves into `folder`."""
        cfg, tokenizer = self.cfg, self.backbone.tokenizer()
        reader = self.build_reader()
        if cfg.engine.ranks > 1:
            assert isinstance(reader, ChunkedReader), type(reader)  # config.checks
            self.pipeline = init_pipeline_group(cfg.engine.ranks, cfg.engine.timeout)
            reader.join_pipeline(self.pipeline, cfg.engine.schedule)
            print_rank0(describe_pipelines(world_size(), cfg.engine.ranks))
        validation, device = None, resolve_device(self.backbone.device)
        if self.validates:
            generation = Generation(**cfg.generation)
            validation = Validation(self.splits["validation"], self.text.scores, generation, cfg.eval_batch_size)
        trained = sum(full_size(p) for p in reader.parameters() if p.requires_grad)
        total = sum(full_size(p) for p in reader.parameters())
        print_rank0(
            f"{cfg.reader} on {self.backbone.fingerprint['name']}: {trained / 1e6:.2f} M trained of "
            f"{total / 1e6:.1f} M weights, {device}, {world_size()} process(es)"
        )
        is_fsdp = cfg.engine.kind == "fsdp"
        is_sharded = is_fsdp or cfg.engine.kind == "zero"
        print_rank0(describe_checkpoint(reader, cfg.train.optimizer, is_sharded, KEPT_CHECKPOINTS, is_fsdp))
        half_deepspeed = cfg.engine.kind == "zero" and self.backbone.dtype == "bfloat16"
        return ReaderTrainer(
            reader,
            training_arguments(cfg, folder, half_deepspeed, device, self.validates),
            self.splits["train"],
            self.text.collator(tokenizer),
            validation,
            self.backbone.fingerprint,
            cfg.train.length_grouped,
            RunLog(folder),
            cfg.engine.ranks,
            StepEnd(cfg.train.save_every, self.interruption, skips=cfg.train.not_finite == "skip"),
            self.packing,
        )

    def build_reader(self) -> Any:
        """The reader, with the weights of `init_from`, and a distillation's teacher beside them.

        ZeRO-3 loads pretrained weights in shards. FSDP loads them into the host's memory and moves shards to the GPU.
        """
        cfg, engine, device = self.cfg, self.cfg.engine, resolve_device(self.backbone.device)
        deepspeed = OmegaConf.to_container(engine.deepspeed, resolve=True) if engine.deepspeed else None
        host = torch.device("cpu") if engine.kind == "fsdp" else None
        with partitioned_loading(deepspeed):
            reader = build_reader(cfg, self.backbone, self.backbone.tokenizer(), host)
        if cfg.init_from:
            self._initialise(reader)
        load_teacher(cfg, reader)
        cast_unpartitioned(reader, DTYPES[self.backbone.dtype])
        if engine.kind == "fsdp":
            shard_reader(reader, engine.fsdp, DTYPES[self.backbone.dtype], device)
        return reader

    def _initialise(self, reader: Reader) -> None:
        """Loads the best weights of run `init_from`; the reader may have weights that it did not train."""
        fresh = load_trained(best_checkpoint(self.cfg.init_from), reader, self.backbone.fingerprint, is_start=True)
        if fresh:
            print_rank0(
                f"init_from: {len(fresh)} weights are not in that run and start as initialised, e.g. {fresh[0]}"
            )

    def run(self, trainer: ReaderTrainer, folder: Path, checkpoint: Path | None) -> None:
        """Trains, from `checkpoint` where one is given, and marks the run as finished.

        Raises: RunFailure after a loss, gradient or validation that is not finite; TrainingInterrupted after a signal.
        """
        try:
            watchdog = self.pipeline.watchdog or contextlib.nullcontext()
            tracker, mode = tracker_of(self.cfg.train.tracker, self.cfg.train.wandb)
            memory = memory_errors("training, outside of the batches", f"{TRAINING}, or train.optimizer=adamw_8bit")
            with tracked_run(tracker, mode, folder), watchdog, self.interruption, memory:
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            step_end = trainer.step_end
            if step_end.failure:
                raise RunFailure(step_end.failure)
            if rank() == 0 and not step_end.signal:
                finish_run(folder)
            if step_end.signal or self.interruption.received:
                self._end_interrupted(folder, step_end.signal)
        except OutOfMemory as error:
            if not checkpoints(folder):
                raise
            go_on = (
                f"{override('resume', str(folder))} goes on from {checkpoints(folder)[-1].name}, also with such changes"
            )
            raise OutOfMemory(f"{error}; {go_on}") from error
        finally:
            unlock_run(folder)
            print_rank0(f"run {folder}")

    def _end_interrupted(self, folder: Path, number: int) -> NoReturn:
        """Ends the process; prints the command that resumes the run. number: of the signal; 0 = the run is complete."""
        if number:
            print_rank0(f"{signal.Signals(number).name}: saved {last_checkpoint(folder).name}; this resumes the run:")
            print_rank0("  " + (resume_command(folder) or override("resume", str(folder))))
        if world_size() > 1 and threading.current_thread() is threading.main_thread():
            # torchrun sends SIGTERM to the other ranks once one has ended with 130; they are about to end with it, too.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            barrier()
        end_process_group()
        raise TrainingInterrupted(number or self.interruption.received)
