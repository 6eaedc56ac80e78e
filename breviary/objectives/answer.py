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

from breviary.backbones.stack import Stack
from breviary.contract import Batch, Tokens
from breviary.memory.assembly import Layout


def token_nll(logits_BAV: Tensor, ids_BA: Tensor) -> Tensor:
    """Nats spent on each answer token, (B, A); meaningless on padding."""
    # Classes last, as they lie: with classes second, as cross_entropy also takes them, a CPU is three times as slow.
    return torch.nn.functional.cross_entropy(logits_BAV.flatten(0, 1), ids_BA.flatten(), reduction="none").view_as(
        ids_BA
    )


class Answer:
    """Answer the question: negative log likelihood of the first reference and the end token (COMI, A6).

    measures  what evaluation tells beside the scores of answers: a callable such as data.restoration.Restoration
    """

    text_metrics: Any = None
    is_autoencoder = False  # True: what is asked is the context itself, so that it takes positions a second time

    teacher_reads_context = False  # True: in training the decoder also reads context and answer together, uncompressed

    def primary(self, batch: Batch) -> Batch:
        """What is asked in training and evaluation."""
        return batch

    def auxiliary(self, batch: Batch) -> dict[str, tuple[float, Batch]]:
        """What else is asked of the same contexts in training: {name: (weight, batch)}."""
        return {}

    def token_losses(self, batch: Batch, logits_BAV: Tensor, decoder: Stack) -> Tensor:
        """Training loss of each answer token of `main`'s batch, in nats, (B, A); meaningless on padding. Evaluation always
        measures `token_nll`. Asked by readers whose memory is slots."""
        return token_nll(logits_BAV, batch.answer.ids)

    def begin_step(self, step: int, seed: int) -> None:
        """Told once per optimizer step, equally on every rank."""

    @classmethod
    def min_context_tokens(cls, settings: Mapping[str, Any]) -> int:
        """Tokens that a context must have, under constructor arguments `settings`."""
        return 0

    @classmethod
    def problems(cls, settings: Mapping[str, Any], reader: type, train: str) -> list[str]:
        """What is wrong with constructor arguments `settings`, for a compressor or reader of class `reader` and
        decoder.train=`train`: one sentence each, with its key `objective.X`, what is allowed and an example."""
        return []


class ShuffledContext(Answer):
    """What `objective` asks, of memories of other contexts: what a reader says of any memory it still says, what it kept of the
    very text is missing. For evaluation.

    instead  a batch of as many rows, each with another context than the batch that is asked
    """

    def __init__(self, objective: Answer, instead: Batch):
        self.objective, self.instead = objective, instead

    def primary(self, batch: Batch) -> Batch:
        """The batch's questions and answers on the other contexts."""
        asked, read = self.objective.primary(batch), self.objective.primary(self.instead)
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

    def auxiliary(self, batch: Batch) -> dict[str, tuple[float, Batch]]:
        """The passage: its hint in the place of query and prompt, the rest as the answer."""
        lengths_B = batch.context.lengths
        N = self.hint_tokens + self.copy_tokens
        shares_B = torch.tensor([random.Random(f"{self._drawn}-{example.id}").random() for example in batch.examples])
        start_B = (shares_B.to(lengths_B.device) * (lengths_B - N + 1).clamp(min=1)).long()
        hint = take_span(batch.context, start_B, start_B + self.hint_tokens, self.hint_tokens)
        rest = take_span(batch.context, start_B + self.hint_tokens, start_B + N, self.copy_tokens)
        return {"copy": (self.copy_weight, replace(batch, query=hint, prompt=hint, answer=rest))}


def take_span(text: Tokens, start_B: Tensor, end_B: Tensor, width: int) -> Tokens:
    """Tokens number start_B to end_B - 1 of each row, as far as it has them, (B, width): `end_B - start_B` is no more."""
    ids_BT = Layout.of([text.mask], round_to=1).pack([text.ids])
    columns_BN = start_B[:, None] + torch.arange(width, device=ids_BT.device)
    mask_BN = columns_BN < torch.minimum(end_B, text.lengths)[:, None]
    widest = max(ids_BT.shape[1], 1)
    ids_BT = torch.nn.functional.pad(ids_BT, (0, widest - ids_BT.shape[1]))  # no context in the whole batch
    return Tokens(ids_BT.gather(1, columns_BN.clamp(max=widest - 1)).masked_fill(~mask_BN, 0), mask_BN)
