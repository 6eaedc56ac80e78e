"""Engines: DeepSpeed's requirements, and the Trainer's arguments from our configuration."""

from __future__ import annotations

import contextlib
import os
import socket
import warnings
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch.distributed.fsdp import FSDPModule
from transformers import TrainingArguments

from breviary.backbones.sharding import gathered
from breviary.config.checks import SCHEDULES, optimizer_name
from breviary.training.fsdp import gathered_root
from breviary.training.log import PROJECT, keep_trackio_local, tracker_of
from breviary.training.saving import KEPT_CHECKPOINTS


def gathered_parameters(reader: torch.nn.Module) -> contextlib.AbstractContextManager:
    """Context manager: a reader can be used outside the engine under ZeRO-3 and FSDP. Entered and left by all ranks.

    They gather weights when the module that owns them is called. This gathers the weights of modules that are never
    called (scalars, or learned tokens that a method uses directly).
    """
    if isinstance(reader, FSDPModule):
        return gathered_root(reader)
    uncalled = [m for m in reader.modules() if m is reader or type(m).forward is torch.nn.Module.forward]
    return gathered([p for module in uncalled for p in module.parameters(recurse=False)])


def declare_process() -> None:
    """Sets the variables of a process group of one where no launcher has set them: python train.py engine=fsdp."""
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def prepare_deepspeed(device: torch.device) -> None:
    """Prepares the first use of DeepSpeed: sets the variables of a process group, and avoids compilation on the CPU."""
    declare_process()  # for one process DeepSpeed would search MPI
    # DeepSpeed uses deprecated names of collectives, about which torch warns at every step.
    warnings.filterwarnings("ignore", r"`torch.distributed.\w+_tensor` is deprecated", FutureWarning)
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        import deepspeed

        # DeepSpeed would build its shared-memory collectives with g++ at first use; gloo needs no compiler. The
        # attribute is replaced, not modified: reading it makes DeepSpeed test the compiler for all its extensions.
        deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}


def training_arguments(
    cfg: DictConfig, folder: Path, half_deepspeed: bool, device: torch.device, validate: bool
) -> TrainingArguments:
    """The Trainer's arguments for the `train` and `engine` sections of the configuration.

    half_deepspeed  DeepSpeed trains in bfloat16 with float32 masters
    validate        evaluate at intervals and keep the best checkpoint
    """
    t = cfg.train
    interval = t.eval_every or t.steps
    deepspeed = OmegaConf.to_container(cfg.engine.deepspeed, resolve=True) if cfg.engine.deepspeed else None
    tracker, mode = tracker_of(t.tracker, t.wandb)
    os.environ["WANDB_MODE"] = mode
    os.environ.setdefault("WANDB_PROJECT", PROJECT)
    if tracker == "trackio":
        keep_trackio_local(folder)
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        max_steps=t.steps,
        per_device_train_batch_size=t.batch_size,
        gradient_accumulation_steps=t.accumulation,
        optim=optimizer_name(t.optimizer, cfg.engine.kind, device),
        learning_rate=t.learning_rate,
        lr_scheduler_type=SCHEDULES[t.schedule],
        warmup_steps=round(t.warmup * t.steps),
        weight_decay=t.weight_decay,
        max_grad_norm=t.max_grad_norm,
        seed=cfg.seed,
        data_seed=cfg.seed,
        logging_steps=t.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        dataloader_num_workers=t.workers,
        eval_strategy="steps" if validate else "no",
        eval_steps=interval,
        save_strategy="steps",
        save_steps=interval,
        save_total_limit=KEPT_CHECKPOINTS,
        metric_for_best_model="eval_nll" if validate else None,
        greater_is_better=False if validate else None,
        remove_unused_columns=False,
        label_names=[],
        report_to=[] if tracker == "none" else [tracker],
        run_name=folder.name,
        project=PROJECT,
        trackio_static_space_id=False,
        use_cpu=device.type == "cpu",
        bf16=half_deepspeed,
        deepspeed=deepspeed,
        ddp_find_unused_parameters=False,
        ddp_backend=None,
        dataloader_pin_memory=device.type == "cuda",
    )
    # One GPU per process: with more visible GPUs, the Trainer would wrap the reader in nn.DataParallel.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
