"""How uncertain a text is: under a language model, by its tokens' frequencies, and to a compression program (spec C5).

Per document, for a model that reads the very tokens which are compressed, after a fixed beginning:
    nll   mean surprisal -log p(x_t | x_<t), nats a token: what is called entropy unless something else is said
    H     mean predictive entropy of p(. | x_<t) over the whole vocabulary, nats a token
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

from breviary.backbones.pretrained import Backbone
from breviary.backbones.stack import Stack
from breviary.backbones.tiny import TinyBackbone
from breviary.contract import Tokens
from breviary.memory.assembly import Layout, take_columns
from breviary.runtime.device import resolve_device
from breviary.runtime.files import write_json

SCHEMA = 1

ROWS = 512  # tokens whose logits are held at once

LN2 = math.log(2)


# ------------------------------------------------------------------ pure functions


def surprisal(logits: Tensor, ids: Tensor) -> Tensor:
    """-log p(id), nats: logits (..., V), ids (...) -> (...) float32. Uniform logits give log V."""
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, -2), ids.flatten(), reduction="none").view(
        ids.shape
    )


def predictive_entropy(logits: Tensor) -> Tensor:
    """Shannon entropy of softmax(logits), nats, over the whole vocabulary in float32: (..., V) -> (...)."""
    log_p = logits.float().log_softmax(-1)
    return -(log_p.exp() * log_p.masked_fill(log_p.isneginf(), 0)).sum(-1)


def unigram_entropy(ids: Sequence[int]) -> float:
    """Shannon entropy of a document's own token frequencies, bits a token; 0 of no token or one repeated."""
    total = len(ids)
    return sum(-n / total * math.log2(n / total) for n in Counter(ids).values()) if total else 0.0


def zlib_ratio(text: str) -> float:
    """Bytes of the zlib-compressed text / bytes of the text (UTF-8), level 9: small = repetitive; 1 of an empty text.

    A short text of no repetition is above 1: zlib's header takes 8 bytes.
    """
    raw = text.encode("utf-8", "surrogatepass")
    return len(zlib.compress(raw, 9)) / len(raw) if raw else 1.0


def summary(nll: Tensor, entropy: Tensor, text_bytes: int) -> dict[str, float]:
    """One document's readings of a model, from its tokens' surprisal (N,) and predictive entropy (N,), in nats.

    nll, nll_std (of the tokens, not of the mean), nll_max, H: nats a token; bits_per_token = nll / ln 2;
    bits_per_byte = all nats / ln 2 / bytes.
    Raises ValueError where there is no token or no byte.
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
    """Controls that need no model: unigram_entropy (bits a token), zlib_ratio, tokens, bytes."""
    return {
        "unigram_entropy": unigram_entropy(ids),
        "zlib_ratio": zlib_ratio(text),
        "tokens": len(ids),
        "bytes": len(text.encode("utf-8", "surrogatepass")),
    }


# ------------------------------------------------------------------ a model's reading


@torch.no_grad()
def token_readings(
    stack: Stack, texts: Tokens, prefix: Sequence[int], layers: int | None = None
) -> tuple[Tensor, Tensor]:
    """Surprisal and predictive entropy of every token, (B, N) float32 nats both, 0 on padding.

    stack   with its language-model head
    texts   (B, N), any padding
    prefix  token ids read before each text, at least one: they predict its first token
    layers  a truncated reading: the first so many layers, then the final norm and the head; None = all
    Costs one forward and the logits of ROWS tokens at a time.
    """
    if not len(prefix):
        raise ValueError("prefix is empty: nothing would predict the first token; give the BOS token, or the end token")
    B = len(texts.ids)
    prefix_BP = torch.tensor([list(prefix)] * B, device=texts.ids.device)
    layout = Layout.of([torch.ones_like(prefix_BP, dtype=torch.bool), texts.mask])
    states = stack.embed(layout.place([prefix_BP, texts.ids]))
    states = stack.run(states, range(len(stack) if layers is None else layers), layout.positions())
    before_BN = (layout.columns_of(1) - 1).clamp(min=0)
    rows_RD, ids_R = take_columns(states, before_BN).flatten(0, 1), texts.ids.flatten()
    nll, entropy = [], []
    for rows, ids in zip(rows_RD.split(ROWS), ids_R.split(ROWS)):
        logits = stack.head(stack.norm(rows))
        nll.append(surprisal(logits, ids))
        entropy.append(predictive_entropy(logits))
    return tuple(torch.cat(parts).view(texts.ids.shape).masked_fill(~texts.mask, 0) for parts in (nll, entropy))


class EntropyReader:
    """Readings of one backbone, each text once: what is known lies in `cache`, a JSON file a backbone and way of reading.

    backbone    whose pretrained weights read, BOS first (the end token where there is none); loaded at the first text that
                is not known yet
    layers      None = all (the model's own reading); n = a truncated encoder's, through the final norm and the head
    max_tokens  texts are cut to so many, as the compressor's contexts are; None = never
    cache       a folder; None = nothing is kept
    batch_size  texts read at once: readings do not depend on it
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
        made_of = json.dumps([SCHEMA, backbone.fingerprint["sha256"], backbone.dtype, layers, max_tokens])
        name = f"entropy-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.json"
        self.file = None if cache is None else Path(cache) / name
        self._known: dict[str, dict[str, float]] = {}
        if self.file is not None and self.file.is_file():
            self._known = json.loads(self.file.read_text())

    def read(self, texts: Iterable[str]) -> list[dict[str, float]]:
        """One dict a text: `summary` and `text_measures`.

        Raises ValueError, all of them named, for texts that are no text, empty, or longer than the backbone's positions.
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
        new = {key: text for key, text in zip(keys, texts) if key not in self._known}
        if new:
            self._known |= self._read(new)
            if self.file is not None:
                write_json(self.file, self._known)
        return [self._known[key] for key in keys]

    def _read(self, texts: dict[str, str]) -> dict[str, dict[str, float]]:
        """EncodingStore of texts that are not known; similar lengths are read together."""
        pieces = {key: self._tokens(text) for key, text in texts.items()}
        positions = self.backbone.config.max_position_embeddings
        longest = max(len(ids) for ids, _ in pieces.values())
        if longest + 1 > positions:
            raise ValueError(
                f"a document of {longest} tokens does not fit the backbone's {positions} positions; give "
                f"max_tokens={positions - 1} or less"
            )
        order, found = sorted(pieces, key=lambda key: len(pieces[key][0])), {}
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            nll, entropy, mask = self._readings([pieces[key][0] for key in batch])
            for row, key in enumerate(batch):
                ids, text = pieces[key]
                controls = text_measures(text, ids)
                found[key] = {**summary(nll[row][mask[row]], entropy[row][mask[row]], controls["bytes"]), **controls}
        return found

    def _tokens(self, text: str) -> tuple[list[int], str]:
        """Token ids and the text that they stand for, cut to max_tokens."""
        encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
        ids, spans = encoded["input_ids"][: self.max_tokens], encoded["offset_mapping"][: self.max_tokens]
        return ids, text if len(ids) == len(encoded["input_ids"]) else text[: spans[-1][1]]

    def _readings(self, rows: list[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
        if self._stack is None:
            self._stack = Stack(self.backbone.load()).eval().to(resolve_device(self.backbone.device))
        device, width = self._stack.embed_tokens.weight.device, max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
        mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows], device=device)
        start = self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else self.tokenizer.eos_token_id
        with self._stack.precision():
            nll, entropy = token_readings(self._stack, Tokens(ids, mask), [start], self.layers)
        return nll.cpu(), entropy.cpu(), mask.cpu()
