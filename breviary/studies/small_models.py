"""Small language models trained from scratch: their own tokenizer, a Llama of a few layers, transformers' Trainer.

Their training data is known exactly, unlike that of released models.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from breviary.runtime.device import resolve_device

TRAINING_RECORD = "training.json"


@dataclass
class SmallModel:
    """Shape and training of a small language model.

    layers, width, heads  of a Llama; the feed-forward part is 8/3 of the width, embeddings are tied
    positions             of its rotary embedding
    steps, batch_size     optimizer steps, and sequences per step
    learning_rate         peak; linear warm-up over a twentieth of the steps, then a cosine to 0
    dtype                 float32 | bfloat16 (autocast; weights stay float32)
    """

    layers: int = 4
    width: int = 192
    heads: int = 6
    positions: int = 1024
    steps: int = 300
    batch_size: int = 32
    learning_rate: float = 3e-3
    dtype: str = "float32"

    def problems(self, key: str) -> list[str]:
        """Error messages for wrong values; `key` is their section of the configuration."""
        problems = [
            f"{key}.{name}={getattr(self, name)}: must be at least 1, e.g. {getattr(SmallModel, name)}"
            for name in ("layers", "width", "heads", "positions", "steps", "batch_size")
            if getattr(self, name) < 1
        ]
        if not problems and self.width % (2 * self.heads):
            problems.append(
                f"{key}.width={self.width}, heads={self.heads}: width must be a multiple of 2 * heads, e.g. 192, 6"
            )
        if self.learning_rate <= 0:
            problems.append(f"{key}.learning_rate={self.learning_rate}: must be above 0, e.g. 3e-3")
        if self.dtype not in ("float32", "bfloat16"):
            problems.append(f"{key}.dtype={self.dtype}: allowed are float32, bfloat16")
        return problems


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `vocabulary` entries (at least 258: all bytes, <s> and </s>); every text round-trips."""
    assert vocabulary >= 258, vocabulary
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainer=trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        clean_up_tokenization_spaces=False,
    )


def train_language_model(shape: SmallModel, ids: Tensor, tokenizer: Any, home: Path, name: str, seed: int) -> Path:
    """The folder, in Hugging Face format, of a model trained on sequences ids (N, T) int64, each with <s> first.

    Sequences are shuffled in each epoch; `seed` sets initialisation and order. A folder under `home` that an earlier
    call with equal arguments finished is returned without training.
    Raises: ValueError where there is no sequence.
    """
    if not len(ids):
        raise ValueError(f"{name}: no text to train a language model on")
    arguments = json.dumps([asdict(shape), seed, len(tokenizer)]).encode() + ids.numpy().tobytes()
    digest = hashlib.sha256(arguments).hexdigest()
    folder = home / f"{name}-{seed}-{digest[:12]}"
    if (folder / TRAINING_RECORD).is_file():
        return folder
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            "llama",
            vocab_size=len(tokenizer),
            hidden_size=shape.width,
            intermediate_size=-(-8 * shape.width // 24) * 8,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            max_position_embeddings=shape.positions,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=None,
        )
    )
    with tempfile.TemporaryDirectory() as scratch:
        log = _train(model, shape, ids, scratch, seed)
    if folder.exists():
        shutil.rmtree(folder)  # left by a killed call
    model.cpu().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / TRAINING_RECORD).write_text(
        json.dumps(
            {
                "name": name,
                "seed": seed,
                "shape": asdict(shape),
                "sequences": len(ids),
                "tokens_read": shape.steps * shape.batch_size * ids.shape[1],
                "parameters": model.num_parameters(),
                "log": log,
            },
            indent=1,
        )
    )
    return folder


def _train(model: Any, shape: SmallModel, ids: Tensor, scratch: str, seed: int) -> list[dict[str, float]]:
    """Trains in place; returns the logged losses, nats per token."""
    device = resolve_device("auto")
    settings = TrainingArguments(
        output_dir=scratch,
        max_steps=shape.steps,
        per_device_train_batch_size=shape.batch_size,
        report_to=[],
        learning_rate=shape.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(shape.steps // 20, 1),
        weight_decay=0.01,
        seed=seed,
        data_seed=seed,
        logging_steps=max(shape.steps // 20, 1),
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=device.type == "cpu",
        bf16=shape.dtype == "bfloat16",
        dataloader_pin_memory=device.type == "cuda",
    )
    settings._n_gpu = min(settings.n_gpu, 1)  # no DataParallel
    rows = [{"input_ids": row, "labels": row} for row in ids]
    trainer = Trainer(model=model, args=settings, train_dataset=rows)
    trainer.pop_callback(PrinterCallback)
    trainer.train()
    return [{"step": row["step"], "loss": row["loss"]} for row in trainer.state.log_history if "loss" in row]
