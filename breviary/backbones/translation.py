"""The same text in the tokens of two tokenizers: for an encoder that was trained with another one than the decoder.

Everything in the house is in the decoder's tokens; an encoder's own exist only between its door and its embedding. So cuts,
objectives, kept contexts and the target that is to be restored mean the same stretch of text for both, whatever made it.
B texts, N tokens of the longest.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch

from breviary.contract import Tokens


class Translation:
    """From tokens of `source` to tokens of `target`.

    A text is what its tokens say: a character that a cut went through becomes U+FFFD. What looks like a special token is
    plain text, as in data/prompts.py. Costs one copy to the host and both tokenizers' time, some milliseconds per thousand
    tokens, whenever a context is read.
    """

    def __init__(self, source: Any, target: Any):
        self.source, self.target = source, target

    def __call__(self, tokens: Tokens) -> Tokens:
        """Tokens (B, any width) -> tokens (B, N) on the same device, right-padded."""
        rows = self.rows([ids[mask].tolist() for ids, mask in zip(tokens.ids.cpu(), tokens.mask.cpu())])
        lengths_B = torch.tensor([len(row) for row in rows])
        mask_BN = torch.arange(max(map(len, rows), default=0)) < lengths_B[:, None]
        ids_BN = torch.zeros(mask_BN.shape, dtype=torch.int64)
        ids_BN[mask_BN] = torch.tensor([token for row in rows for token in row], dtype=torch.int64)
        return Tokens(ids_BN, mask_BN).to(tokens.ids.device)

    def rows(self, rows: Sequence[Sequence[int]]) -> list[list[int]]:
        """As a call, of lists of ids."""
        texts = self.source.batch_decode(rows, clean_up_tokenization_spaces=False)
        # Some tokenizers make a token of nothing at all.
        spoken = (
            self.target(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
            if texts
            else []
        )
        return [ids if text else [] for ids, text in zip(spoken, texts)]


def translation_between(decoder: Any, encoder: Any) -> Translation | None:
    """From the tokens of one backbone to those of another, which reads for it; None where they are the same."""
    ours, theirs = decoder.tokenizer(), encoder.tokenizer()
    return None if same_tokenizer(ours, theirs) else Translation(ours, theirs)


def same_tokenizer(one: Any, other: Any) -> bool:
    """Whether two tokenizers make the same tokens of any text."""
    if not (one.is_fast and other.is_fast):
        return type(one) is type(other) and one.get_vocab() == other.get_vocab()
    first, second = (json.loads(tokenizer.backend_tokenizer.to_str()) for tokenizer in (one, other))
    # Of the rest some hold what the latest call asked for, and special tokens are plain text here.
    return all(first[part] == second[part] for part in ("normalizer", "pre_tokenizer", "model"))
