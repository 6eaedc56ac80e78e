"""Batches from plain texts, for readers that are used from Python (breviary.load_reader)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from breviary.contract import Batch, Example
from data.collate import Collator
from data.prompts import Prompt


class TextBatches:
    """Turns contexts and questions into batches with a run's prefix, template and tokenizer.

    tokenizer  the backbone's
    prompt     arguments of Prompt
    Raises: ValueError as Prompt.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: dict[str, Any]) -> None:
        self.tokenizer, self.prompt = tokenizer, Prompt(**prompt)
        self._collate = Collator(tokenizer.pad_token_id or 0)

    def __call__(self, contexts: Sequence[str], questions: Sequence[str]) -> Batch:
        """A batch with one row per (context, question); either text may be empty. Its answers are empty."""
        assert len(contexts) == len(questions), (len(contexts), len(questions))
        examples = [Example(str(i), *texts, ("",)) for i, texts in enumerate(zip(contexts, questions))]
        items = [{**self.prompt.tokenise(example, self.tokenizer), "example": example} for example in examples]
        return self._collate(items)
