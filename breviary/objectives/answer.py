"""Objectives that supervise answers: the base class `Answer`, and answers with a copied passage.

An objective turns a batch into a supervised batch: its prompt follows the memory, its answer is supervised.
Shape letters: B rows, T context tokens, A answer tokens, D hidden width, N tokens of a span.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from breviary.backbones.head import token_nll
from breviary.backbones.stack import Stack
from breviary.contract import Batch, Tokens
from breviary.memory.assembly import Layout


class Answer:
    """Answer the question: negative log likelihood of the first reference and the end token (COMI, A6)."""

    text_metrics: Any = None  # computes further metrics in evaluation, from the text and its NLL; None = no others
    is_autoencoder = False  # True: the answer is the context itself, which therefore occupies positions twice
    teacher_reads_context = False  # True: in training the decoder also processes the uncompressed context and answer

    def primary(self, batch: Batch) -> Batch:
        """The batch that is supervised in training and evaluated in evaluation."""
        return batch

    def auxiliary(self, batch: Batch) -> dict[str, tuple[float, Batch]]:
        """Further supervised batches of the same contexts, in training only: {name: (weight, batch)}."""
        return {}

    def token_losses(self, batch: Batch, rows_BAD: Tensor, decoder: Stack) -> Tensor:
        """Training loss of each answer token of the primary batch in nats, (B, A); meaningless on padding.

        rows_BAD  the decoder's normed states that predict the tokens; `decoder.lm_head` maps them to logits, in chunks
        Evaluation always reports `token_nll`. Only readers whose memory is slots call this method.
        """
        return token_nll(decoder.lm_head, rows_BAD, batch.answer.ids)

    def begin_step(self, step: int, seed: int) -> None:
        """Called once per optimizer step with equal arguments on every rank."""

    @classmethod
    def asks_question(cls, settings: Mapping[str, Any]) -> bool:
        """Whether answers depend on the question of the data, so that the prompt must hold it."""
        return True

    @classmethod
    def min_context_tokens(cls, settings: Mapping[str, Any]) -> int:
        """Minimum number of tokens of a context, for constructor arguments `settings`."""
        return 0

    @classmethod
    def problems(cls, settings: Mapping[str, Any], reader: type, train: str) -> list[str]:
        """Error messages for constructor arguments, each with its key `objective.X`, the allowed values and an example.

        settings  {argument: value}
        reader    class of the compressor or reader
        train     value of decoder.train
        """
        return []


class ShuffledContext(Answer):
    """The batch of `objective` with the memory of another context in each row, for evaluation.

    The loss measures how well the answers are predicted without information from the correct context.
    replacement  a batch with as many rows, each with a context that differs from that row's own
    """

    def __init__(self, objective: Answer, replacement: Batch):
        self.objective, self.replacement = objective, replacement

    def primary(self, batch: Batch) -> Batch:
        """Prompts and answers of `batch`, with the contexts of the replacement."""
        own, other = self.objective.primary(batch), self.objective.primary(self.replacement)
        own = replace(own, context=other.context, compressed=other.compressed, examples=other.examples)
        return replace(own, evidence=None, offsets=None)


class AnswerAndCopy(Answer):
    """Answer the question, and reproduce a passage of the context from the same memory.

    An answer supervises few tokens, so few examples teach little about decoding from slots. Therefore a passage of
    every context is drawn from seed, step and example id. Its first tokens replace the question; the following ones
    are supervised. ICAE (2307.06945) and GMSA (2505.12215) train such a reconstruction before the questions; here both
    are trained together. Contexts shorter than the hint supervise nothing.

    copy_weight  weight of the passage's loss, a mean over its tokens, relative to the answer's mean loss
    copy_tokens  supervised tokens
    hint_tokens  first tokens of the passage, given as query and prompt
    Cost: a second pass of the memory through the layers from the joining one on, and of the passage through all layers.
    """

    def __init__(self, copy_weight: float = 1.0, copy_tokens: int = 64, hint_tokens: int = 8):
        self.copy_weight, self.copy_tokens, self.hint_tokens = copy_weight, copy_tokens, hint_tokens
        self._seed = "none"

    def begin_step(self, step: int, seed: int) -> None:
        """Draws other passages in each step."""
        self._seed = f"{seed}-{step}"

    def auxiliary(self, batch: Batch) -> dict[str, tuple[float, Batch]]:
        """The passage: the hint as query and prompt, the rest as the answer."""
        lengths_B = batch.context.lengths
        N = self.hint_tokens + self.copy_tokens
        draws_B = torch.tensor([random.Random(f"{self._seed}-{example.id}").random() for example in batch.examples])
        start_B = (draws_B.to(lengths_B.device) * (lengths_B - N + 1).clamp(min=1)).long()
        hint = take_span(batch.context, start_B, start_B + self.hint_tokens, self.hint_tokens)
        rest = take_span(batch.context, start_B + self.hint_tokens, start_B + N, self.copy_tokens)
        return {"copy": (self.copy_weight, replace(batch, query=hint, prompt=hint, answer=rest, targets=None))}


def take_span(text: Tokens, start_B: Tensor, end_B: Tensor, width: int) -> Tokens:
    """Tokens [start_B, end_B) of each row, cut off at the row's end, (B, width); width >= end_B - start_B."""
    ids_BT = Layout.of([text.mask], round_to=1).pack([text.ids])
    columns_BN = start_B[:, None] + torch.arange(width, device=ids_BT.device)
    mask_BN = columns_BN < torch.minimum(end_B, text.lengths)[:, None]
    ids_width = max(ids_BT.shape[1], 1)
    ids_BT = torch.nn.functional.pad(ids_BT, (0, ids_width - ids_BT.shape[1]))  # width 0: all contexts are empty
    return Tokens(ids_BT.gather(1, columns_BN.clamp(max=ids_width - 1)).masked_fill(~mask_BN, 0), mask_BN)
