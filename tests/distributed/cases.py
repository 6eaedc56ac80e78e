"""What is trained on one process and on two, and what is kept of it for the comparison."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from transformers import TrainerCallback
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from breviary.config.build import build_backbone, build_reader
from breviary.contract import Example
from breviary.runtime.distributed import end_process_group, rank, start_process_group
from breviary.training.engines import full_weight, prepare_deepspeed, training_arguments
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
    # An encoder and its alignment trained in full, and weights that no module's call uses.
    "comi_input": [*COMI, "compressor.learned_weights=merge", "train.gradient_checkpointing=true"],
    "comi_depth": [*COMI, "compressor.join=depth", "compressor.encoder_layers=1", "train.gradient_checkpointing=true"],
    "mean_pool_slots": [*COMI, *SLOTS, "compressor=mean_pool", "compressor.encoder_layers=1"],
    # The ratio is drawn each step; contexts without a positive segment count nothing for the contrastive loss.
    "ram_uniform": ["compressor=ram", "compressor.encoder_layers=1", "compressor.segment_size=8"],
    # Chunks and strides are drawn; where they are full, rank 0's texts take one or two chunks, rank 1's two or three.
    # A small rate: the second step goes on from weights that differ by roundings, which every chunk multiplies.
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
    # The encoder is made of the decoder's own modules, and belongs to no module itself.
    "icae": [
        "compressor=icae",
        "compressor.memory_tokens=3",
        "compressor.lora_rank=4",
        "compressor.lora_dropout=0",
        "train.gradient_checkpointing=true",
    ],
    # Nothing is kept, so the memory is empty; every weight is trained, the tied embedding and head included.
    "no_context_clipped": ["compressor=no_context", "decoder.train=full", "train.max_grad_norm=1.0"],
}

# Not everything everywhere. Ranks of comet call modules unequally often, which zero3 is refused for; zero1 differs from zero2
# only in when gradients are summed: weights in use and not, unequal calls and clipping tell.
TRAINED = {"zero3": [name for name in CASES if name != "comet"], "zero1": ["comi_input", "comet", "no_context_clipped"]}


def cases_of(engine: str) -> list[str]:
    """Names of the cases that this engine trains."""
    return TRAINED.get(engine, list(CASES))


class Items(torch.utils.data.Dataset):
    """Random tokens. Batches of one go to the two ranks in turn: rank 0's contexts take one segment, rank 1's three,
    but in the second step two contexts are empty. Answers are of 1 to 9 tokens, so that counts differ."""

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
            gold = [index % 3 == 0 and 3 <= place < 9 for place in range(length)]  # some contexts mark nothing
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
    """Keeps the gradients of every step, and takes the examples as they stand."""

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.SequentialSampler:
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def _prepare_for_training(self, *args: Any) -> Any:
        self.gradients: list[dict[str, torch.Tensor]] = []
        prepared = super()._prepare_for_training(*args)
        if self.is_deepspeed_enabled:  # its engine steps inside backward
            step = self.model_wrapped.step
            self.model_wrapped.step = lambda *a, **k: (self.keep_gradients(), step(*a, **k))
        return prepared

    def keep_gradients(self) -> None:
        from deepspeed.utils import safe_get_full_grad

        found = {}
        for name, parameter in self.reader.named_parameters():
            if parameter.requires_grad:
                gradient = safe_get_full_grad(parameter) if self.is_deepspeed_enabled else parameter.grad
                found[name] = gradient.detach().clone()
        self.gradients.append(found)


class BeforeStep(TrainerCallback):
    """Asks for the gradients where no DeepSpeed engine does."""

    def __init__(self, trainer: Recorder) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.trainer.is_deepspeed_enabled:
            self.trainer.keep_gradients()


def train_cases(engine: str, world: int, folder: Path) -> None:
    """Every case on this engine; rank 0 writes {case: losses, gradient norms, gradients, weights}."""
    device = torch.device("cpu")
    if engine.startswith("zero"):
        prepare_deepspeed(device)
    start_process_group(device)
    results = {}
    for name in cases_of(engine):
        results[name] = train_case(engine, world, [*COMMON, *CASES[name]], folder / f"{engine}{world}" / name)
        unset_hf_deepspeed_config()  # with ZeRO-3's still there, the next case's weights would be built in pieces
    if rank() == 0:
        torch.save(results, folder / f"{engine}{world}.pt")
    end_process_group()


def train_case(engine: str, world: int, overrides: list[str], folder: Path) -> dict[str, Any]:
    """One case: on one process a step is one batch of 4, on two processes it is 2 micro-batches of 1 each."""
    batch = EXAMPLES_PER_STEP if world == 1 else 1
    overrides = [
        *overrides,
        f"engine={engine}",
        f"train.batch_size={batch}",
        f"train.accumulation={EXAMPLES_PER_STEP // batch // world}",
    ]
    if engine == "zero3":
        overrides.append("engine.deepspeed.zero_optimization.stage3_param_persistence_threshold=0")
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("train", overrides)
    folder.mkdir(parents=True, exist_ok=True)
    backbone = build_backbone(cfg)
    tokenizer = backbone.tokenizer()
    reader = build_reader(cfg, backbone, tokenizer)
    arguments = training_arguments(cfg, folder, False, torch.device("cpu"), validate=False)
    arguments.save_strategy = "no"
    trainer = Recorder(
        reader, arguments, Items(), Collator(tokenizer.pad_token_id), None, backbone.fingerprint, False, RunLog(folder)
    )
    trainer.add_callback(BeforeStep(trainer))
    trainer.train()
    logs = [row for row in trainer.state.log_history if "loss" in row]
    return {
        "losses": [row["loss"] for row in logs],
        "norms": [row.get("grad_norm") for row in logs],
        "gradients": trainer.gradients,
        "weights": {n: full_weight(p).clone() for n, p in reader.named_parameters() if p.requires_grad},
    }
