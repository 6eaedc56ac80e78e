"""The interface to `data`, which breviary never imports: entry points pass in data/text_pipeline.py's TEXT."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from breviary.contract import Batch, Example


class TextPipeline(Protocol):
    """Prompts, tokenising, collating and scoring."""

    metrics_version: int  # increased when a score of any answer changes: results of another version are not used

    def prompt(self, settings: Mapping[str, Any]) -> Any:
        """The prompt of configuration section `prompt`. Raises ValueError for wrong settings."""

    def tokenise(
        self,
        examples: Sequence[Example],
        tokenizer: Any,
        prompt: Any,
        max_context_tokens: int | None,
        cache_dir: str | None,
        truncation: str,
    ) -> Any:
        """Examples as tokens: a sequence of items for `collator`, with the attributes of data.tokenised.Tokenised."""

    def collator(self, tokenizer: Any) -> Callable[[list[Any]], Batch]:
        """The function that turns tokenised items into a batch, padded for this tokenizer."""

    def scores(self, prediction: str, references: Sequence[str]) -> dict[str, float]:
        """{metric: value in [0, 1]} of one answer, the best over the references."""

    def scoring(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """How predictions were scored, for results.json: metrics_version, and normalisation: {rule: examples}."""
