"""Texts of one's own as batches: what readers opened from Python read and are asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from breviary.contract import Batch, Example
from data.collate import Collator
from data.prompts import Prompt


class Texts:
    """Puts contexts and questions as a run's data set would: the same prefix, template and tokens.

    tokenizer  the backbone's
    prompt     arguments of Prompt
    Raises ValueError as Prompt.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: dict[str, Any]) -> None:
        self.tokenizer, self.prompt = tokenizer, Prompt(**prompt)
        self._collate = Collator(tokenizer.pad_token_id or 0)

    def __call__(self, contexts: Sequence[str], questions: Sequence[str]) -> Batch:
        """One row for each pair; either text may be empty. No answer is known, so the batch's are empty."""
        assert len(contexts) == len(questions), (len(contexts), len(questions))
        examples = [Example(str(i), *texts, ("",)) for i, texts in enumerate(zip(contexts, questions))]
        return self._collate([{**self.prompt.tokenise(example, self.tokenizer), "example": example} for example in examples])
