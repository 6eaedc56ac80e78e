"""Entropy of a text under a language model, of its token frequencies, and by a compression program (spec C5).

Per document, for a model that processes the compressed tokens after a fixed prefix:
    nll   mean surprisal -log p(x_t | x_<t), nats per token: called entropy unless stated otherwise
    H     mean predictive entropy of p(. | x_<t) over the whole vocabulary, nats per token
Shape letters: B documents, N tokens, V vocabulary, D width.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from breviary.backbones.head import row_values
from breviary.backbones.pretrained import Backbone, usable_positions
from breviary.backbones.stack import Stack
from breviary.backbones.tiny import TinyBackbone
from breviary.contract import Tokens
from breviary.memory.assembly import Layout, take_columns
from breviary.runtime.device import resolve_device
from breviary.runtime.files import write_json

SCHEMA = 1

LN2 = math.log(2)


# ------------------------------------------------------------------ pure functions


def surprisal(logits: Tensor, ids: Tensor) -> Tensor:
    """-log p(id), nats: logits (..., V), ids (...) -> (...) float32; log V for uniform logits."""
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, -2), ids.flatten(), reduction="none").view(
        ids.shape
    )


def predictive_entropy(logits: Tensor) -> Tensor:
    """Shannon entropy of softmax(logits), nats, over the whole vocabulary in float32: (..., V) -> (...)."""
    log_p = logits.float().log_softmax(-1)
    return -(log_p.exp() * log_p.masked_fill(log_p.isneginf(), 0)).sum(-1)


def unigram_entropy(ids: Sequence[int]) -> float:
    """Shannon entropy of a document's own token frequencies, bits per token; 0 for no token or one repeated token."""
    total = len(ids)
    return sum(-n / total * math.log2(n / total) for n in Counter(ids).values()) if total else 0.0


def zlib_ratio(text: str) -> float:
    """Bytes of the zlib-compressed text / bytes of the text (UTF-8), level 9: small = repetitive; 1 for an empty text.

    Above 1 for a short text without repetition, because of zlib's header of 8 bytes.
    """
    raw = text.encode("utf-8", "surrogatepass")
    return len(zlib.compress(raw, 9)) / len(raw) if raw else 1.0


def document_summary(nll: Tensor, entropy: Tensor, text_bytes: float) -> dict[str, float]:
    """Entropies of one document from its tokens' surprisal (N,) and predictive entropy (N,), both in nats.

    nll, nll_std (of the tokens, not of the mean), nll_max, H: nats per token; bits_per_token = nll / ln 2;
    bits_per_byte = sum of nats / ln 2 / bytes.
    Raises: ValueError where there is no token or no byte.
    """
    if not len(nll) or not text_bytes:
        raise ValueError(
            f"a document of {len(nll)} tokens and {text_bytes} bytes has no entropy; leave empty documents out"
        )
    nll, entropy = nll.double(), entropy.double()
    mean = nll.mean().item()
    return {
        "nll": mean,
        "nll_std": nll.std(correction=0).item(),
        "nll_max": nll.max().item(),
        "H": entropy.mean().item(),
        "bits_per_token": mean / LN2,
        "bits_per_byte": nll.sum().item() / LN2 / text_bytes,
    }


def text_measures(text: str, ids: Sequence[int]) -> dict[str, float]:
    """Measures that need no model: unigram_entropy (bits per token), zlib_ratio, tokens, bytes."""
    return {
        "unigram_entropy": unigram_entropy(ids),
        "zlib_ratio": zlib_ratio(text),
        "tokens": len(ids),
        "bytes": len(text.encode("utf-8", "surrogatepass")),
    }


# ------------------------------------------------------------------ under a language model


@torch.no_grad()
def token_surprisal_and_entropy(
    stack: Stack, texts: Tokens, prefix: Sequence[int], layers: int | None = None
) -> tuple[Tensor, Tensor]:
    """Surprisal and predictive entropy of every token, both (B, N) float32 in nats, 0 on padding.

    stack   with its language-model head
    texts   (B, N), any padding
    prefix  token ids before each text, at least one: they predict its first token
    layers  number of layers that run before the final norm and the head; None = all
    Costs one forward and the logits of one chunk of tokens at a time (breviary/backbones/head.py).
    """
    if not len(prefix):
        raise ValueError("prefix is empty: nothing would predict the first token; give the BOS token, or the end token")
    B = len(texts.ids)
    prefix_BP = torch.tensor([list(prefix)] * B, device=texts.ids.device)
    layout = Layout.of([torch.ones_like(prefix_BP, dtype=torch.bool), texts.mask])
    states = stack.embed(layout.pack([prefix_BP, texts.ids]))
    states = stack.run(states, range(len(stack) if layers is None else layers), layout.positions())
    before_BN = (layout.columns_of(1) - 1).clamp(min=0)
    ids_R = texts.ids.flatten()

    def values(logits: Tensor, chunk: slice) -> tuple[Tensor, Tensor]:
        return surprisal(logits, ids_R[chunk]), predictive_entropy(logits)

    nll, entropy = row_values(stack.lm_head, stack.norm(take_columns(states, before_BN)), values)
    return nll.masked_fill(~texts.mask, 0), entropy.masked_fill(~texts.mask, 0)


class EntropyMeter:
    """Entropies of texts under one backbone, each text measured once.

    backbone    pretrained; BOS (or the end token, without BOS) precedes each text; loaded at the first new text
    layers      None = all; n = the first n layers, then the final norm and the head, as a truncated encoder
    max_tokens  texts are cut to this length, like a compressor's contexts; None = never
    cache       folder of one JSON file per backbone, layers and max_tokens; None = results are not stored
    batch_size  texts measured at once; results do not depend on it
    """

    def __init__(
        self,
        backbone: Backbone | TinyBackbone,
        layers: int | None = None,
        max_tokens: int | None = None,
        cache: str | Path | None = None,
        batch_size: int = 8,
    ):
        most = backbone.config.num_hidden_layers
        if layers is not None and not 1 <= layers <= most:
            raise ValueError(f"layers={layers}: must be from 1 to {most} for this backbone, or null for all")
        if max_tokens is not None and max_tokens < 1:
            raise ValueError(f"max_tokens={max_tokens}: must be at least 1, or null for no limit")
        self.backbone, self.layers, self.max_tokens, self.batch_size = backbone, layers, max_tokens, batch_size
        self.tokenizer = backbone.tokenizer()
        self._stack: Stack | None = None
        settings = json.dumps([SCHEMA, backbone.fingerprint["sha256"], backbone.dtype, layers, max_tokens])
        name = f"entropy-{hashlib.sha256(settings.encode()).hexdigest()[:16]}.json"
        self.file = None if cache is None else Path(cache) / name
        self._cached: dict[str, dict[str, float]] = {}
        if self.file is not None and self.file.is_file():
            self._cached = json.loads(self.file.read_text())

    def measure(self, texts: Iterable[str]) -> list[dict[str, float]]:
        """`document_summary` and `text_measures` of each text, as one dict.

        Raises: ValueError for values that are not strings, empty texts, and texts longer than the backbone's positions;
        the message names all of the first two.
        """
        texts = list(texts)
        problems = [
            f"document {n}: {type(text).__name__} is no text" if not isinstance(text, str) else f"document {n} is empty"
            for n, text in enumerate(texts)
            if not isinstance(text, str) or not text
        ]
        if problems:
            raise ValueError("; ".join(problems))
        keys = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() for text in texts]
        new = {key: text for key, text in zip(keys, texts) if key not in self._cached}
        if new:
            self._cached |= self._measure_new(new)
            if self.file is not None:
                write_json(self.file, self._cached)
        return [self._cached[key] for key in keys]

    def _measure_new(self, texts: dict[str, str]) -> dict[str, dict[str, float]]:
        """Results of texts that are not in the cache; texts of similar length share a batch."""
        pieces = {key: self._tokens(text) for key, text in texts.items()}
        positions = usable_positions(self.backbone.config)
        longest = max(len(ids) for ids, _ in pieces.values())
        if longest + 1 > positions:
            raise ValueError(
                f"a document of {longest} tokens does not fit the backbone's {positions} positions; give "
                f"max_tokens={positions - 1} or less"
            )
        order, results = sorted(pieces, key=lambda key: len(pieces[key][0])), {}
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            nll, entropy, mask = self._measure_batch([pieces[key][0] for key in batch])
            for row, key in enumerate(batch):
                ids, text = pieces[key]
                controls = text_measures(text, ids)
                summary = document_summary(nll[row][mask[row]], entropy[row][mask[row]], controls["bytes"])
                results[key] = {**summary, **controls}
        return results

    def _tokens(self, text: str) -> tuple[list[int], str]:
        """Token ids and the text that they encode, cut to max_tokens."""
        encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
        ids, spans = encoded["input_ids"][: self.max_tokens], encoded["offset_mapping"][: self.max_tokens]
        return ids, text if len(ids) == len(encoded["input_ids"]) else text[: spans[-1][1]]

    def _measure_batch(self, rows: list[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
        if self._stack is None:
            self._stack = Stack(self.backbone.load()).eval().to(resolve_device(self.backbone.device))
        device, width = next(self._stack.parameters()).device, max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
        mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows], device=device)
        start = self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else self.tokenizer.eos_token_id
        with self._stack.mixed_precision():
            nll, entropy = token_surprisal_and_entropy(self._stack, Tokens(ids, mask), [start], self.layers)
        return nll.cpu(), entropy.cpu(), mask.cpu()
