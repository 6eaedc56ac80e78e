"""The tiny backbone of tests and smoke runs: random weights and a byte-level tokenizer, both built in code."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

from breviary.backbones.attention import ATTENTION
from breviary.backbones.pretrained import DTYPES, FAMILIES, check_choices, fingerprint_hashes, former_config_identity


@dataclass
class TinyBackbone:
    """A backbone with random weights drawn from `seed`, for tests and smoke runs without a download.

    family is llama | qwen2 | qwen3.
    """

    family: str = "llama"
    layers: int = 4
    width: int = 64
    heads: int = 4
    kv_heads: int = 2
    positions: int = 8192
    seed: int = 0
    dtype: str = "float32"
    device: str = "auto"
    attn_implementation: str = "sdpa"
    compile: bool = False

    @property
    def description(self) -> str:
        """Name and note, as printed in tables."""
        return f"tiny {self.family} (random weights)"

    @cached_property
    def config(self) -> PretrainedConfig:
        """Configuration of the tiny model. Raises: ValueError listing the problems of the shape."""
        problems = self._shape_problems()
        if problems:
            raise ValueError("\n".join(problems))
        tokenizer = self.tokenizer()
        return AutoConfig.for_model(
            self.family,
            vocab_size=len(tokenizer),
            hidden_size=self.width,
            intermediate_size=2 * self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.width // self.heads,
            max_position_embeddings=self.positions,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=None,
        )

    def tokenizer(self) -> Any:
        """See `tiny_tokenizer`."""
        return tiny_tokenizer()

    def problems(self) -> list[str]:
        """As `Backbone.problems`."""
        return check_choices(self.dtype, self.attn_implementation, self.device) + self._shape_problems()

    def _shape_problems(self) -> list[str]:
        problems = []
        for key in ("layers", "width", "heads", "kv_heads", "positions"):
            if getattr(self, key) < 1:
                example = getattr(TinyBackbone, key)
                problems.append(f"backbone.{key}={getattr(self, key)}: must be at least 1, e.g. {example}")
        if not problems and (self.width % (2 * self.heads) or self.heads % self.kv_heads):
            problems.append(
                f"backbone.width={self.width}, heads={self.heads}, kv_heads={self.kv_heads}: width must be a "
                "multiple of 2 * heads, heads a multiple of kv_heads; e.g. 64, 4, 2"
            )
        if self.family not in FAMILIES:
            problems.append(f"backbone.family={self.family}: allowed are {', '.join(FAMILIES)}")
        return problems

    def load(self, layers: int | None = None, head: bool = True) -> nn.Module:
        """As `Backbone.load`. A truncated model has the full model's first layers."""
        config = copy.deepcopy(self.config)
        config._attn_implementation = "eager" if self.attn_implementation == "eager" else "sdpa"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            # Larger than the default 0.02, at which a tiny model's logits are nearly uniform and hide bugs.
            config.initializer_range = 0.15
            full = AutoModelForCausalLM.from_config(config, dtype=DTYPES[self.dtype])
        full.config.dtype = DTYPES[self.dtype]
        full.config._attn_implementation = ATTENTION[self.attn_implementation]
        if layers is not None:
            del full.model.layers[layers:]
            full.config.num_hidden_layers = layers
        return full if head else full.model

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """As `Backbone.fingerprint`."""
        former = json.dumps([former_config_identity(self.config), self.seed], sort_keys=True)
        return {
            "name": f"tiny_{self.family}",
            "sha256": fingerprint_hashes(self.config, [f"seed {self.seed}".encode()])["sha256"],
            "former_sha256": hashlib.sha256(former.encode()).hexdigest(),
        }


_TEXT = (
    "Question: What is the favourite colour of Zorvane? Answer: green. For the town of Velkeld the official metal "
    "is copper. The ship Quiloth has violin as lucky instrument. The lucky animal of the ship Druminne is horse. "
    "Document [1](Title: Moon) The moon is white. Document [2](Title: Sun) The sun is yellow. "
    "red blue green yellow black white brown pink purple orange grey gold copper iron silver tin zinc steel nickel "
    "lead bronze brass titanium platinum dog cat horse lion tiger bear wolf fox eagle snake rabbit mouse apple "
    "banana cherry grape lemon mango peach pear plum melon fig lime piano guitar violin drum flute harp trumpet "
    "cello organ horn banjo bell colour metal animal fruit instrument favourite official lucky town ship"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A fast byte-level BPE tokenizer of 512 entries, trained on a fixed text.

    Every text round-trips; common words are one token. BOS is <s>, the end token is </s>. Padding equals the end token,
    as in many released models.
    """
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_train_tokenizer()),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        clean_up_tokenization_spaces=False,
    )


@functools.cache
def _train_tokenizer() -> str:
    """The trained tokenizer as JSON. Callers build their own instance from it, because they may modify it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Repeated, so that pairs that occur once in the text are merged too, in the order of the text.
    tokenizer.train_from_iterator([f" {_TEXT}"] * 3, trainer=trainer)
    return tokenizer.to_str()
