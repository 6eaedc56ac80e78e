"""What a reader is trained to say after its memory.

An objective turns a batch into what is asked: a batch again, whose prompt stands between memory and answer and whose
answer is supervised. B rows, T context tokens, A answer tokens, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from breviary.assemble import Layout, ranks
from breviary.contract import Batch, Tokens
from breviary.stack import Stack


def token_nll(logits_BAV: Tensor, ids_BA: Tensor) -> Tensor:
    """Nats spent on each answer token, (B, A); meaningless on padding."""
    # Classes last, as they lie: with classes second, as cross_entropy also takes them, a CPU is three times as slow.
    return torch.nn.functional.cross_entropy(logits_BAV.flatten(0, 1), ids_BA.flatten(), reduction="none").view_as(ids_BA)


class Answer:
    """Answer the question: negative log likelihood of the first reference and the end token (COMI, A6).

    measures  what evaluation tells beside the scores of answers: a callable such as data.restoration.Restoration
    """

    measures: Any = None
    is_autoencoder = False  # True: what is asked is the context itself, so that it takes positions a second time

    reads_whole = False  # True: in training the decoder also reads context and answer together, uncompressed

    def main(self, batch: Batch) -> Batch:
        """What is asked in training and evaluation."""
        return batch

    def others(self, batch: Batch) -> dict[str, tuple[float, Batch]]:
        """What else is asked of the same contexts in training: {name: (weight, batch)}."""
        return {}

    def losses(self, batch: Batch, logits_BAV: Tensor, decoder: Stack) -> Tensor:
        """Training loss of each answer token of `main`'s batch, in nats, (B, A); meaningless on padding. Evaluation always
        measures `token_nll`. Asked by readers whose memory is slots."""
        return token_nll(logits_BAV, batch.answer.ids)

    def begin_step(self, step: int, seed: int) -> None:
        """Told once per optimizer step, equally on every rank."""

    @classmethod
    def fewest_tokens(cls, settings: Mapping[str, Any]) -> int:
        """Tokens that a context must have, under constructor arguments `settings`."""
        return 0

    @classmethod
    def problems(cls, settings: Mapping[str, Any], reader: type, train: str) -> list[str]:
        """What is wrong with constructor arguments `settings`, for a compressor or reader of class `reader` and
        decoder.train=`train`: one sentence each, with its key `objective.X`, what is allowed and an example."""
        return []


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
        self.measures, self.continuation_weight, self.continuation_hint = measures, continuation_weight, continuation_hint

    def main(self, batch: Batch) -> Batch:
        """The batch with its contexts as answers."""
        lengths_B = batch.answer.lengths
        end_B1 = Layout.of([batch.answer.mask], round_to=1).place([batch.answer.ids]).gather(1, lengths_B[:, None] - 1)
        layout = Layout.of([batch.context.mask, torch.ones_like(end_B1, dtype=torch.bool)], round_to=1)
        return replace(batch, answer=Tokens(layout.place([batch.context.ids, end_B1]), layout.mask), task="reconstruct")

    def others(self, batch: Batch) -> dict[str, tuple[float, Batch]]:
        """The first half as context, the hint as query and prompt, the rest as answer; no end token."""
        if not self.continuation_weight:
            return {}
        return {"continue": (self.continuation_weight, Continue(0.5, self.continuation_hint).main(batch))}

    @classmethod
    def fewest_tokens(cls, settings: Mapping[str, Any]) -> int:
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


class OfAnother(Answer):
    """What `objective` asks, of memories of other contexts: what a reader says of any memory it still says, what it kept of the
    very text is missing. For evaluation.

    instead  a batch of as many rows, each with another context than the batch that is asked
    """

    def __init__(self, objective: Answer, instead: Batch):
        self.objective, self.instead = objective, instead

    def main(self, batch: Batch) -> Batch:
        """The batch's questions and answers on the other contexts."""
        asked, read = self.objective.main(batch), self.objective.main(self.instead)
        return replace(asked, context=read.context, evidence=None, offsets=None, examples=read.examples)


class AnswerAndCopy(Answer):
    """Answer the question, and write down a passage of the context from the same memory.

    An answer supervises a handful of tokens; with few examples that teaches little of how slots are read. So of every
    context a passage is drawn (from seed, step and example id): its first tokens are given in the question's place, the
    following ones are supervised. The reconstruction that ICAE (2307.06945) and GMSA (2505.12215) train before they
    train on questions, here beside it. Contexts shorter than the hint supervise nothing.

    copy_weight  of the passage's loss, a mean over its tokens as the answer's is over the answer's
    copy_tokens  tokens supervised; hint_tokens  tokens given
    Costs a second pass of the memory through the layers above it, and of the passage through all.
    """

    def __init__(self, copy_weight: float = 1.0, copy_tokens: int = 64, hint_tokens: int = 8):
        self.copy_weight, self.copy_tokens, self.hint_tokens = copy_weight, copy_tokens, hint_tokens
        self._drawn = "none"

    def begin_step(self, step: int, seed: int) -> None:
        """Other passages each step."""
        self._drawn = f"{seed}-{step}"

    def others(self, batch: Batch) -> dict[str, tuple[float, Batch]]:
        """The passage: its hint in the place of query and prompt, the rest as the answer."""
        lengths_B = batch.context.lengths
        N = self.hint_tokens + self.copy_tokens
        shares_B = torch.tensor([random.Random(f"{self._drawn}-{example.id}").random() for example in batch.examples])
        start_B = (shares_B.to(lengths_B.device) * (lengths_B - N + 1).clamp(min=1)).long()
        hint = stretch(batch.context, start_B, start_B + self.hint_tokens, self.hint_tokens)
        rest = stretch(batch.context, start_B + self.hint_tokens, start_B + N, self.copy_tokens)
        return {"copy": (self.copy_weight, replace(batch, query=hint, prompt=hint, answer=rest))}


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

    def main(self, batch: Batch) -> Batch:
        """The first part as context, the hint as query and prompt, the rest as answer."""
        context, share = batch.context, self.context_share
        lengths_B, T = context.lengths, context.ids.shape[1]
        kept_B = (lengths_B.double() * share).long()
        given_B = kept_B + (lengths_B - kept_B - 1).clamp(0, self.hint_tokens)
        hint = stretch(context, kept_B, given_B, self.hint_tokens)
        rest = stretch(context, given_B, lengths_B, T - int(T * share))  # no row has more behind its first part
        mask_BT = context.mask & (ranks(context.mask) < kept_B[:, None])
        evidence = None if batch.evidence is None else batch.evidence & mask_BT
        return replace(batch, context=Tokens(context.ids, mask_BT), query=hint, prompt=hint, answer=rest, evidence=evidence,
                       task="continue")

    @classmethod
    def fewest_tokens(cls, settings: Mapping[str, Any]) -> int:
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


def stretch(text: Tokens, start_B: Tensor, end_B: Tensor, width: int) -> Tokens:
    """Tokens number start_B to end_B - 1 of each row, as far as it has them, (B, width): `end_B - start_B` is no more."""
    ids_BT = Layout.of([text.mask], round_to=1).place([text.ids])
    columns_BN = start_B[:, None] + torch.arange(width, device=ids_BT.device)
    mask_BN = columns_BN < torch.minimum(end_B, text.lengths)[:, None]
    widest = max(ids_BT.shape[1], 1)
    ids_BT = torch.nn.functional.pad(ids_BT, (0, widest - ids_BT.shape[1]))  # no context in the whole batch
    return Tokens(ids_BT.gather(1, columns_BN.clamp(max=widest - 1)).masked_fill(~mask_BN, 0), mask_BN)
