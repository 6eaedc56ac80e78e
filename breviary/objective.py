"""What a reader is trained to say after its memory.

An objective turns a batch into what is asked: a batch again, whose prompt stands between memory and answer and whose
answer is supervised. B rows, T context tokens.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import torch

from breviary.assemble import Layout
from breviary.contract import Batch, Tokens


class Answer:
    """Answer the question: negative log likelihood of the first reference and the end token (COMI, A6).

    measures  what evaluation tells beside the scores of answers: a callable such as data.restoration.Restoration
    """

    measures: Any = None

    def main(self, batch: Batch) -> Batch:
        """What is asked in training and evaluation."""
        return batch

    def others(self, batch: Batch) -> dict[str, tuple[float, Batch]]:
        """What else is asked of the same contexts in training: {name: (weight, batch)}."""
        return {}

    def begin_step(self, step: int, seed: int) -> None:
        """Told once per optimizer step, equally on every rank."""


class Reconstruct(Answer):
    """Write the whole context down again from its memory, then the end token: an autoencoder (GMSA 2505.12215, stage 1).

    Target and context are the same tokens, so that nothing is asked that was not read. What stands between them is the
    batch's prompt; dataset=passages has the instruction there. Needs no labels: the batch's answers are not looked at.

    measures  as Answer's
    """

    def __init__(self, measures: Any = None):
        self.measures = measures

    def main(self, batch: Batch) -> Batch:
        """The batch with its contexts as answers."""
        lengths_B = batch.answer.lengths
        end_B1 = Layout.of([batch.answer.mask], round_to=1).place([batch.answer.ids]).gather(1, lengths_B[:, None] - 1)
        layout = Layout.of([batch.context.mask, torch.ones_like(end_B1, dtype=torch.bool)], round_to=1)
        return replace(batch, answer=Tokens(layout.place([batch.context.ids, end_B1]), layout.mask))


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
        layout = Layout.of([batch.context.mask], round_to=1)
        ids_BT, lengths_B = layout.place([batch.context.ids]), batch.context.lengths
        N = self.hint_tokens + self.copy_tokens
        shares_B = torch.tensor([random.Random(f"{self._drawn}-{example.id}").random() for example in batch.examples])
        start_B = (shares_B.to(ids_BT.device) * (lengths_B - N + 1).clamp(min=1)).long()
        columns_BN = start_B[:, None] + torch.arange(N, device=ids_BT.device)
        mask_BN = columns_BN < lengths_B[:, None]
        width = max(ids_BT.shape[1], 1)
        ids_BT = torch.nn.functional.pad(ids_BT, (0, width - ids_BT.shape[1]))  # no context in the whole batch
        ids_BN = ids_BT.gather(1, columns_BN.clamp(max=width - 1)).masked_fill(~mask_BN, 0)
        hint = Tokens(ids_BN[:, : self.hint_tokens], mask_BN[:, : self.hint_tokens])
        rest = Tokens(ids_BN[:, self.hint_tokens :], mask_BN[:, self.hint_tokens :])
        return {"copy": (self.copy_weight, replace(batch, query=hint, prompt=hint, answer=rest))}
