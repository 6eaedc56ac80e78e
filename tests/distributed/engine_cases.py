"""Trainings that run on one process and on two, and the recorded losses, gradients and weights."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from deepspeed.runtime.zero import GatheredParameters
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from transformers import TrainerCallback
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from breviary.backbones.sharding import full_size, full_weight, local_bytes, partitioned_loading
from breviary.backbones.tiny import TinyBackbone
from breviary.config.build import build_backbone, build_reader
from breviary.contract import Example
from breviary.runtime.distributed import barrier, end_process_group, rank, start_process_group
from breviary.training.engines import prepare_deepspeed, training_arguments
from breviary.training.fsdp import shard_reader
from breviary.training.log import RunLog
from breviary.training.trainer import ReaderTrainer
from data.collate import Collator

ROOT = Path(__file__).resolve().parents[2]
STEPS, EXAMPLES_PER_STEP = 2, 4
SEGMENT = 16

COMMON = [
    "backbone=tiny",
    "backbone.layers=2",
    "decoder.lora_rank=4",
    "decoder.lora_targets=[q_proj,v_proj,down_proj]",
    f"train.steps={STEPS}",
    "train.optimizer=sgd",
    "train.learning_rate=0.02",
    "train.weight_decay=0",
    "train.warmup=0",
    "train.log_every=1",
    "train.eval_examples=0",
    "train.max_grad_norm=0",
]
COMI = ["compressor=comi", "compressor.encoder_layers=2", f"compressor.segment_size={SEGMENT}"]
SLOTS = ["compressor.ratio=null", "compressor.slots=5"]

CASES: dict[str, list[str]] = {
    # Encoder and alignment trained in full, and weights that are used without a module call. The first step draws
    # ratio 1, where the learned weights have no effect: DDP would wait for their gradients.
    "comi_input": [
        *COMI,
        "compressor.learned_weights=merge",
        "compressor.ratio_choices=[4,1]",
        "train.gradient_checkpointing=true",
    ],
    "comi_depth": [*COMI, "compressor.join=depth", "compressor.encoder_layers=1", "train.gradient_checkpointing=true"],
    "mean_pool_slots": [*COMI, *SLOTS, "compressor=mean_pool", "compressor.encoder_layers=1"],
    # A random ratio per step; contexts without a positive segment do not count in the contrastive loss.
    "ram_uniform": ["compressor=ram", "compressor.encoder_layers=1", "compressor.segment_size=8"],
    # Random chunk counts and strides: at most one or two chunks for rank 0's texts, two or three for rank 1's.
    # A small learning rate: rounding differences in the weights of the second step grow with every chunk.
    "comet": [
        "compressor=comet",
        "compressor.chunk_size=24",
        "compressor.stride=4",
        "compressor.global_slots=2",
        "compressor.queue_budget=6",
        "compressor.widest_stride=8",
        "compressor.most_chunks=3",
        "train.gradient_checkpointing=true",
        "train.learning_rate=0.002",
    ],
    # The encoder shares the decoder's modules and is not a submodule.
    "icae": [
        "compressor=icae",
        "compressor.memory_tokens=3",
        "compressor.lora_rank=4",
        "compressor.lora_dropout=0",
        "train.gradient_checkpointing=true",
    ],
    # The memory is empty; every weight is trained, including the tied embedding and head.
    "no_context_clipped": ["compressor=no_context", "decoder.train=full", "train.max_grad_norm=1.0"],
}

# Not every case on every engine. Ranks of comet make unequal module calls, for which zero3 and fsdp are rejected. zero1
# differs from zero2 only in when gradients are summed: unused weights, unequal calls and clipping cover that. fsdp
# shards single maps: unused weights, maps that two stacks share, a tied head.
EQUAL_CALLS = [name for name in CASES if name != "comet"]
TRAINED = {
    "zero3": EQUAL_CALLS,
    "zero1": ["comi_input", "comet", "no_context_clipped"],
    "fsdp": ["comi_input", "icae", "no_context_clipped"],
}


# Cases of an engine that train with its form for large models: optimizer, and with zero3 weights, in the CPU's memory.
OFFLOADED = {("zero2", "no_context_clipped"): "zero2_offload", ("zero3", "no_context_clipped"): "zero3_offload"}


def cases_of(engine: str) -> list[str]:
    """Names of the cases that this engine trains."""
    return TRAINED.get(engine, list(CASES))


class Items(torch.utils.data.Dataset):
    """Random tokens. The two ranks take batches of one in turn: rank 0's contexts have one segment, rank 1's three.

    In the second step, two contexts are empty. Answers have 1 to 9 tokens, so that counts differ.
    """

    def __init__(self) -> None:
        rng = random.Random(0)
        self.items = []
        for index in range(STEPS * EXAMPLES_PER_STEP):
            length = rng.randint(2 * SEGMENT + 1, 3 * SEGMENT) if index % 2 else rng.randint(5, SEGMENT)
            length = 0 if index in (4, 7) else length
            sizes = dict(
                prefix=2,
                context=length,
                query=rng.randint(2, 6),
                prompt=rng.randint(3, 8),
                answer=rng.choice([1, 2, 9]),
            )
            pieces = {name: [rng.randrange(2, 500) for _ in range(size)] for name, size in sizes.items()}
            gold = [index % 3 == 0 and 3 <= token < 9 for token in range(length)]  # some contexts have no gold tokens
            self.items.append(
                {
                    **pieces,
                    "evidence": gold,
                    "starts": None,
                    "ends": None,
                    "example": Example(f"{index}", "", "", ("",)),
                }
            )
        self.lengths = [len(item["context"]) for item in self.items]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.items[index]


class Recorder(ReaderTrainer):
    """Records the gradients of every step, and takes the examples in their order."""

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.SequentialSampler:
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def _prepare_for_training(self, *args: Any) -> Any:
        self.gradients: list[dict[str, torch.Tensor]] = []
        prepared = super()._prepare_for_training(*args)
        if self.is_deepspeed_enabled:  # the engine steps inside backward
            step = self.model_wrapped.step
            self.model_wrapped.step = lambda *a, **k: (self.record_gradients(), step(*a, **k))
        return prepared

    def record_gradients(self) -> None:
        from deepspeed.utils import safe_get_full_grad

        gradients = {}
        for name, parameter in self.reader.named_parameters():
            if parameter.requires_grad:
                gradient = safe_get_full_grad(parameter) if self.is_deepspeed_enabled else parameter.grad
                gradients[name] = full_weight(gradient).clone()
        self.gradients.append(gradients)


class RecordGradients(TrainerCallback):
    """Records gradients before each step of an engine other than DeepSpeed's."""

    def __init__(self, trainer: Recorder) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.trainer.is_deepspeed_enabled:
            self.trainer.record_gradients()


def train_cases(engine: str, world: int, folder: Path) -> None:
    """Trains every case with this engine; rank 0 writes {case: losses, gradient norms, gradients, weights}."""
    mock.patch("breviary.backbones.head.CHUNK_LOGITS", 5 * 512).start()  # losses in chunks of five rows
    device = torch.device("cpu")
    if engine.startswith("zero"):
        prepare_deepspeed(device)
    start_process_group(device)
    results, home = {}, folder / f"{engine}{world}"
    common = COMMON
    if engine == "zero3":
        common = [*saved_backbone(home), *(word for word in COMMON if not word.startswith("backbone"))]
    for name in cases_of(engine):
        choice = OFFLOADED.get((engine, name), engine)
        results[name] = train_case(choice, world, [*common, *CASES[name]], home / name)
        unset_hf_deepspeed_config()  # a remaining ZeRO-3 configuration would shard the next case's weights
    if rank() == 0:
        torch.save(results, folder / f"{engine}{world}.pt")
    end_process_group()


def saved_backbone(home: Path) -> list[str]:
    """Overrides for the tiny backbone in a folder: pretrained weights, which ZeRO-3 partitions while it loads them."""
    tiny = TinyBackbone(layers=2)
    if rank() == 0:
        tiny.load().save_pretrained(home / "backbone")
        tiny.tokenizer().save_pretrained(home / "backbone")
    barrier()
    return ["backbone=smollm2_135m", f"backbone.path={home / 'backbone'}", "backbone.dtype=float32"]


@contextlib.contextmanager
def gathered_sizes() -> Iterator[list[int]]:
    """Yields a list that receives the number of elements of each set of weights that is whole at the same time."""
    enter, sizes = GatheredParameters.__enter__, []

    def counting(self: Any) -> Any:
        sizes.append(sum(parameter.ds_numel for parameter in getattr(self, "params", [])))
        return enter(self)

    with mock.patch.object(GatheredParameters, "__enter__", counting):
        yield sizes


def train_case(engine: str, world: int, overrides: list[str], folder: Path) -> dict[str, Any]:
    """Trains one case. A step is one batch of 4 on one process, or 2 micro-batches of 1 on each of two processes."""
    batch = EXAMPLES_PER_STEP if world == 1 else 1
    overrides = [
        *overrides,
        f"engine={engine}",
        f"train.batch_size={batch}",
        f"train.accumulation={EXAMPLES_PER_STEP // batch // world}",
    ]
    if engine.startswith("zero3"):
        overrides.append("engine.deepspeed.zero_optimization.stage3_param_persistence_threshold=0")
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("train", overrides)
    folder.mkdir(parents=True, exist_ok=True)
    backbone = build_backbone(cfg)
    tokenizer = backbone.tokenizer()
    deepspeed = OmegaConf.to_container(cfg.engine.deepspeed) if cfg.engine.deepspeed else None
    with partitioned_loading(deepspeed), gathered_sizes() as sizes:
        reader = build_reader(cfg, backbone, tokenizer)
    loaded = {
        "held": local_bytes(reader.decoder.layers) / 4,
        "of": sum(map(full_size, reader.decoder.layers.parameters())),
        "new": sum(full_size(p) for name, p in reader.decoder.layers.named_parameters() if "lora_" in name),
        "gathered": max(sizes, default=0),
        "largest": max(map(full_size, reader.parameters())),
    }
    if engine == "fsdp":
        shard_reader(reader, {**cfg.engine.fsdp, "smallest": 1000}, torch.float32, torch.device("cpu"))
    arguments = training_arguments(cfg, folder, False, torch.device("cpu"), validate=False)
    arguments.save_strategy = "no"
    trainer = Recorder(
        reader, arguments, Items(), Collator(tokenizer.pad_token_id), None, backbone.fingerprint, False, RunLog(folder)
    )
    trainer.add_callback(RecordGradients(trainer))
    trainer.train()
    logs = [row for row in trainer.state.log_history if "loss" in row]
    return {
        "loaded": loaded,
        "losses": [row["loss"] for row in logs],
        "norms": [row.get("grad_norm") for row in logs],
        "gradients": trainer.gradients,
        "weights": {n: full_weight(p).clone() for n, p in reader.named_parameters() if p.requires_grad},
    }
