"""Objectives on plain text without labels: reconstruct the context, or continue it.

Shape letters: B rows, T context tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from breviary.contract import Batch, Tokens
from breviary.memory.assembly import Layout, token_index
from breviary.objectives.answer import Answer, take_span


class Reconstruct(Answer):
    """Reconstruct the whole context from its memory, then the end token: an autoencoder (GMSA 2505.12215, stage 1).

    Target and context are the same tokens, after truncation to limits.max_context_tokens. The batch's prompt stands
    between them; with dataset=passages it is the instruction. The answers of the batch are not used.

    measures             `text_metrics` of Answer, as in configs/objective/reconstruct.yaml; None = none
    continuation_weight  weight of ICAE's second loss (2307.06945) in training: the first half of the context is
                         compressed on its own, the second half is predicted from its memory. Each loss is a mean over
                         its tokens. 0 = none. ICAE draws one of the two losses per text; here every text has both
    continuation_hint    first tokens of the second half that are given, not predicted (ICAE: 8), as in Continue
    continuation_above   the second loss has no term for texts whose second half has at most so many tokens, the hint
                         among them (ICAE: 64)
    Cost of the second loss: encoding half the context once more.
    """

    is_autoencoder = True

    def __init__(
        self,
        measures: Any = None,
        continuation_weight: float = 0.0,
        continuation_hint: int = 8,
        continuation_above: int = 0,
    ):
        self.text_metrics = measures
        self.continuation_weight, self.continuation_hint = continuation_weight, continuation_hint
        self.continuation_above = continuation_above

    def primary(self, batch: Batch) -> Batch:
        """The batch with its contexts as answers."""
        lengths_B = batch.answer.lengths
        end_B1 = Layout.of([batch.answer.mask], round_to=1).pack([batch.answer.ids]).gather(1, lengths_B[:, None] - 1)
        layout = Layout.of([batch.context.mask, torch.ones_like(end_B1, dtype=torch.bool)], round_to=1)
        answer = Tokens(layout.pack([batch.context.ids, end_B1]), layout.mask)
        return replace(batch, answer=answer, targets=None, task="reconstruct")

    def auxiliary(self, batch: Batch) -> dict[str, tuple[float, Batch]]:
        """The first half as context, the hint as query and prompt, the rest as answer, without an end token."""
        if not self.continuation_weight:
            return {}
        continued = Continue(0.5, self.continuation_hint).primary(batch)
        is_long_B = batch.context.lengths - continued.context.lengths > self.continuation_above
        answer = Tokens(continued.answer.ids, continued.answer.mask & is_long_B[:, None])
        return {"continue": (self.continuation_weight, replace(continued, answer=answer))}

    @classmethod
    def asks_question(cls, settings: Mapping[str, Any]) -> bool:
        """No: the prompt is an instruction, or nothing."""
        return False

    @classmethod
    def min_context_tokens(cls, settings: Mapping[str, Any]) -> int:
        """One: an empty context has nothing to reconstruct."""
        return 1

    @classmethod
    def problems(cls, settings: Mapping[str, Any], reader: type, train: str) -> list[str]:
        """As `Answer.problems`."""
        problems = []
        for key, minimum, example in (
            ("continuation_weight", 0, 0.5),
            ("continuation_hint", 1, 8),
            ("continuation_above", 0, 64),
        ):
            if settings.get(key, minimum) < minimum:
                problems.append(f"objective.{key}={settings[key]}: must be at least {minimum}, e.g. {example}")
        return problems


class Continue(Answer):
    """Compress the first part of a text and predict the rest from its memory: language modelling on compressed text.

    AutoCompressors 2305.14788; ICAE's second loss, 2307.06945. Question and answers of the batch are not used.

    context_share  share of the context's tokens that is compressed, rounded down, in (0, 1)
    hint_tokens    number of following tokens that are given as query and prompt: the prediction then continues running
                   text, and a query-aware compressor has a query. Fewer in short texts, so that at least one token is
                   predicted. All further tokens are supervised, without an end token

    In evaluation, the NLL is that of the continuation. Generated text is still scored against the data's answers, so EM
    and F1 are meaningless with this objective.
    """

    context_share: float | None

    def __init__(self, context_share: float = 0.5, hint_tokens: int = 8):
        self.context_share, self.hint_tokens = context_share, hint_tokens

    def primary(self, batch: Batch) -> Batch:
        """The first part as context, the hint as query and prompt, the rest as answer."""
        context, share = batch.context, self.context_share
        assert share is not None
        lengths_B, T = context.lengths, context.ids.shape[1]
        hint_start_B = (lengths_B.double() * share).long()
        hint_end_B = hint_start_B + (lengths_B - hint_start_B - 1).clamp(0, self.hint_tokens)
        hint = take_span(context, hint_start_B, hint_end_B, self.hint_tokens)
        rest = take_span(context, hint_end_B, lengths_B, T - int(T * share))  # the most tokens that any row has left
        mask_BT = context.mask & (token_index(context.mask) < hint_start_B[:, None])
        evidence = None if batch.evidence is None else batch.evidence & mask_BT
        return replace(
            batch,
            context=Tokens(context.ids, mask_BT),
            query=hint,
            prompt=hint,
            answer=rest,
            evidence=evidence,
            compressed=None,
            targets=None,
            task="continue",
        )

    @classmethod
    def asks_question(cls, settings: Mapping[str, Any]) -> bool:
        """Only with context_share null, where the data's questions are answered."""
        return settings["context_share"] is None

    @classmethod
    def min_context_tokens(cls, settings: Mapping[str, Any]) -> int:
        """Two: one to compress and one to predict; none with context_share null."""
        return 0 if settings["context_share"] is None else 2

    @classmethod
    def problems(cls, settings: Mapping[str, Any], reader: type, train: str) -> list[str]:
        """As `Answer.problems`."""
        problems = []
        share, hint = settings["context_share"], settings["hint_tokens"]
        if share is not None and not 0 < share < 1:
            problems.append(f"objective.context_share={share}: must be between 0 and 1, both excluded, e.g. 0.5")
        if hint < 1:
            problems.append(f"objective.hint_tokens={hint}: must be at least 1, e.g. 8")
        return problems
