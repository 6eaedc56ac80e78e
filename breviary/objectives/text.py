"""TODO DOC"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from breviary.contract import Batch, Tokens
from breviary.memory.assembly import Layout, token_index
from breviary.objectives.answer import Answer, take_span


class Reconstruct(Answer):
    """Write the whole context down again from its memory, then the end token: an autoencoder (GMSA 2505.12215, stage 1).

    Target and context are the same tokens, cut together where limits.max_context_tokens cuts, so that nothing is asked that
    was not read. What stands between them is the batch's prompt; dataset=passages has the instruction there. Needs no
    labels: the batch's answers are not looked at.

    measures             as Answer's
    continuation_weight  of a second loss in training, ICAE's (2307.06945): the first half of the context is compressed by
                         itself, the second predicted from its memory; a mean over its tokens, as the first loss is over
                         its own. 0 = none. ICAE draws one of the two for each text; here every text has both
    continuation_hint    first tokens of the second half that are given, not predicted (ICAE: 8); as Continue's
    The second loss costs another reading of half the context.
    """

    is_autoencoder = True

    def __init__(self, measures: Any = None, continuation_weight: float = 0.0, continuation_hint: int = 8):
        self.text_metrics, self.continuation_weight, self.continuation_hint = (
            measures,
            continuation_weight,
            continuation_hint,
        )

    def primary(self, batch: Batch) -> Batch:
        """The batch with its contexts as answers."""
        lengths_B = batch.answer.lengths
        end_B1 = Layout.of([batch.answer.mask], round_to=1).pack([batch.answer.ids]).gather(1, lengths_B[:, None] - 1)
        layout = Layout.of([batch.context.mask, torch.ones_like(end_B1, dtype=torch.bool)], round_to=1)
        return replace(batch, answer=Tokens(layout.pack([batch.context.ids, end_B1]), layout.mask), task="reconstruct")

    def auxiliary(self, batch: Batch) -> dict[str, tuple[float, Batch]]:
        """The first half as context, the hint as query and prompt, the rest as answer; no end token."""
        if not self.continuation_weight:
            return {}
        return {"continue": (self.continuation_weight, Continue(0.5, self.continuation_hint).primary(batch))}

    @classmethod
    def min_context_tokens(cls, settings: Mapping[str, Any]) -> int:
        """One: of an empty context nothing can be written down."""
        return 1

    @classmethod
    def problems(cls, settings: Mapping[str, Any], reader: type, train: str) -> list[str]:
        """As Answer.problems."""
        found = []
        for key, least, example in (("continuation_weight", 0, 0.5), ("continuation_hint", 1, 8)):
            if settings[key] < least:
                found.append(f"objective.{key}={settings[key]}: must be at least {least}, e.g. {example}")
        return found


class Continue(Answer):
    """Read the first part of a text, predict the rest from its memory: language modelling across the compression
    (AutoCompressors 2305.14788; ICAE's second loss, 2307.06945). Needs no labels: question and answers are not looked at.

    context_share  of the context's tokens that are compressed, rounded down, in (0, 1)
    hint_tokens    that follow them are given, in the place of query and prompt, so that what is predicted continues running
                   text and a query-aware compressor has a query; in short texts fewer, so that one token is left to
                   predict. All further tokens are supervised, and no end token

    In evaluation the NLL is that of the continuation; generated text is scored against the data's answers all the same, so
    EM and F1 mean nothing here.
    """

    def __init__(self, context_share: float = 0.5, hint_tokens: int = 8):
        self.context_share, self.hint_tokens = context_share, hint_tokens

    def primary(self, batch: Batch) -> Batch:
        """The first part as context, the hint as query and prompt, the rest as answer."""
        context, share = batch.context, self.context_share
        lengths_B, T = context.lengths, context.ids.shape[1]
        kept_B = (lengths_B.double() * share).long()
        given_B = kept_B + (lengths_B - kept_B - 1).clamp(0, self.hint_tokens)
        hint = take_span(context, kept_B, given_B, self.hint_tokens)
        rest = take_span(context, given_B, lengths_B, T - int(T * share))  # no row has more behind its first part
        mask_BT = context.mask & (token_index(context.mask) < kept_B[:, None])
        evidence = None if batch.evidence is None else batch.evidence & mask_BT
        return replace(
            batch,
            context=Tokens(context.ids, mask_BT),
            query=hint,
            prompt=hint,
            answer=rest,
            evidence=evidence,
            task="continue",
        )

    @classmethod
    def min_context_tokens(cls, settings: Mapping[str, Any]) -> int:
        """One to read and one to predict."""
        return 0 if settings["context_share"] is None else 2

    @classmethod
    def problems(cls, settings: Mapping[str, Any], reader: type, train: str) -> list[str]:
        """As Answer.problems."""
        found = []
        share, hint = settings["context_share"], settings["hint_tokens"]
        if share is not None and not 0 < share < 1:
            found.append(f"objective.context_share={share}: must be between 0 and 1, both excluded, e.g. 0.5")
        if hint < 1:
            found.append(f"objective.hint_tokens={hint}: must be at least 1, e.g. 8")
        return found
