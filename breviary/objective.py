"""What a reader is trained to say after its memory."""

from __future__ import annotations

from breviary.contract import Batch, Tokens


class Answer:
    """Answer the question: negative log likelihood of the first reference and the end token (COMI, A6)."""

    def prompt(self, batch: Batch) -> Tokens:
        """What stands between memory and target."""
        return batch.prompt

    def target(self, batch: Batch) -> Tokens:
        """The supervised tokens."""
        return batch.answer
