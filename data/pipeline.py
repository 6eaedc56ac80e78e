"""Prompts, tokenising, collating and scoring as one object: the implementation of breviary.config.text_pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from breviary.contract import Batch, Example
from data.collate import Collator
from data.metrics import scores
from data.prompts import Prompt
from data.tokenised import Tokenised, tokenise_split


class DataPipeline:
    """Implements the protocol `TextPipeline`. Entry points pass an instance to breviary, which never imports data."""

    def prompt(self, settings: Mapping[str, Any]) -> Prompt:
        """The prompt of configuration section `prompt`. Raises ValueError for wrong settings."""
        return Prompt(**settings)

    def tokenise(
        self,
        examples: Sequence[Example],
        tokenizer: PreTrainedTokenizerBase,
        prompt: Prompt,
        max_context_tokens: int | None,
        cache_dir: str | None,
        truncation: str = "middle",
    ) -> Tokenised:
        """As `tokenise_split`."""
        return tokenise_split(examples, tokenizer, prompt, max_context_tokens, cache_dir, truncation)

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[dict[str, Any]]], Batch]:
        """The function that turns tokenised items into a batch, padded for this tokenizer."""
        return Collator(tokenizer.pad_token_id or 0)

    def scores(self, prediction: str, references: Sequence[str]) -> dict[str, float]:
        """As `data.metrics.scores`."""
        return scores(prediction, references)


TEXT = DataPipeline()
