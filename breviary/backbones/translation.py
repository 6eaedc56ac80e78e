"""Translates tokens of one tokenizer into tokens of another, for encoders whose tokenizer differs from the decoder's.

All interfaces use the decoder's tokens; an encoder translates them just before its embedding. Truncation, objectives,
saved contexts and reconstruction targets therefore refer to the same text for both.
Shape letters: B texts, N tokens of the longest.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch

from breviary.contract import Tokens


class Translation:
    """Translates tokens of tokenizer `source` into tokens of tokenizer `target`, through the decoded text.

    A character that truncation has split becomes U+FFFD. Text that looks like a special token stays plain text, as in
    all prompts. Cost: one copy to the host and both tokenizers, some milliseconds per thousand tokens and call.
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
        return Tokens(ids_BN, mask_BN).map(lambda x: x.to(tokens.ids.device))

    def rows(self, rows: Sequence[Sequence[int]]) -> list[list[int]]:
        """As `__call__`, for lists of ids."""
        texts = self.source.batch_decode(rows, clean_up_tokenization_spaces=False)
        if not texts:
            return []
        encoded = self.target(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        # Some tokenizers return a token for the empty text.
        return [ids if text else [] for ids, text in zip(encoded, texts)]


def translation_between(decoder: Any, encoder: Any) -> Translation | None:
    """Translation from a decoder's tokens to an encoder's; None where both backbones tokenize alike."""
    source, target = decoder.tokenizer(), encoder.tokenizer()
    return None if same_tokenizer(source, target) else Translation(source, target)


def same_tokenizer(one: Any, other: Any) -> bool:
    """Whether two tokenizers return the same tokens for every text."""
    if not (one.is_fast and other.is_fast):
        return type(one) is type(other) and one.get_vocab() == other.get_vocab()
    first, second = (json.loads(tokenizer.backend_tokenizer.to_str()) for tokenizer in (one, other))
    # The other parts hold settings of the latest call and special tokens, which are plain text here.
    return all(first[part] == second[part] for part in ("normalizer", "pre_tokenizer", "model"))
