"""Context distillation: the reader learns what its own backbone predicts on the uncompressed context.

Shape letters: B rows, A answer tokens, D hidden width, r rows of a chunk, V vocabulary, K = the teacher's largest
logits and one bucket for all others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from breviary.backbones.head import Project, RowLoss, row_losses
from breviary.backbones.stack import Stack
from breviary.backbones.trainable import teacher_adapters
from breviary.contract import Batch, Compressor
from breviary.memory.assembly import Layout, take_columns
from breviary.objectives.text import Continue


class Distill(Continue):
    """Match the predictions of a teacher that has the whole context in place of the memory.

    Context distillation: Askell et al. 2112.00861, Snell et al. 2209.15189. Soft targets: Hinton et al. 1503.02531.

    Loss of a token: T^2 KL(teacher | reader), both at temperature T, over the teacher's `top` largest logits and one
    bucket with the summed probability of all other tokens. Renormalising over the `top` tokens instead would ignore the
    reader's probability of other tokens: the loss could be 0 with nearly all mass there. With the bucket, the loss is 0
    only if that mass matches too. It is at most the full KL, and equal to it where `top` is the vocabulary size.

    context_share, hint_tokens  the supervised continuation, as in Continue. context_share null: the first reference and
                                the end token after the question; hint_tokens is then unused
    top                         number of teacher logits, >= 1
    temperature                 T, > 0
    teacher                     None: the backbone without adapters | a run whose adapters the teacher has, such as an
                                equally trained full context; training loads them (training.teacher)

    The teacher processes [prefix ; context ; prompt ; answer] without gradient: one more forward pass over the whole
    context. It shares the backbone's weights, so decoder.train must be lora or frozen.
    """

    teacher_reads_context = True

    def __init__(
        self,
        context_share: float | None = 0.5,
        hint_tokens: int = 8,
        top: int = 64,
        temperature: float = 1.0,
        teacher: str | None = None,
    ):
        super().__init__(hint_tokens=hint_tokens)
        self.context_share, self.top, self.temperature, self.teacher = context_share, top, temperature, teacher

    def primary(self, batch: Batch) -> Batch:
        """The continuation; with context_share null, the question and answer of the data."""
        return batch if self.context_share is None else super().primary(batch)

    def token_losses(self, batch: Batch, rows_BAD: Tensor, decoder: Stack) -> Tensor:
        """T^2 KL(teacher | reader) of each answer token, (B, A); meaningless on padding."""
        loss = TopKDivergence(teacher_rows(decoder, batch).flatten(0, 1), self.top, self.temperature)
        return row_losses(decoder.lm_head, rows_BAD, loss)

    @classmethod
    def problems(cls, settings: Mapping[str, Any], reader: type, train: str) -> list[str]:
        """As `Answer.problems`. The decoder's own weights must be frozen, and the memory must be slots."""
        problems = super().problems(settings, reader, train)
        top, temperature = settings["top"], settings["temperature"]
        if top < 1:
            problems.append(f"objective.top={top}: must be at least 1, e.g. 64")
        if temperature <= 0:
            problems.append(f"objective.temperature={temperature}: must be above 0, e.g. 1.0")
        if train not in ("lora", "frozen"):
            problems.append(
                f"objective=distill with decoder.train={train}: the teacher is the same backbone without adapters, so "
                "its weights must not change; use decoder.train=lora or frozen"
            )
        if settings["teacher"] and train != "lora":
            problems.append(
                f"objective.teacher={settings['teacher']} with decoder.train={train}: a teacher's adapters stand "
                "beside the reader's; set decoder.train=lora or objective.teacher=null"
            )
        if not issubclass(reader, Compressor):
            problems.append(
                "objective=distill: the memory of this compressor does not consist of slots; use objective=continue, "
                "or a compressor with slots, e.g. comi"
            )
        return problems


class TopKDivergence(RowLoss):
    """`topk_kl_divergence` from a teacher whose normed states are `rows` (R, D), of the reader's head."""

    def __init__(self, rows: Tensor, top: int, temperature: float = 1.0):
        self.rows, self.top, self.temperature = rows, top, temperature

    def values(self, logits: Tensor, rows: slice, project: Project) -> Tensor:
        """As `RowLoss.values`; the teacher's logits exist for the chunk alone."""
        return topk_kl_divergence(logits, project(self.rows[rows]), self.top, self.temperature)


@torch.no_grad()
def teacher_rows(decoder: Stack, batch: Batch) -> Tensor:
    """The teacher's normed states that predict each answer token after [prefix ; context ; prompt], (B, A, D)."""
    parts = [batch.prefix, batch.context, batch.prompt, batch.answer]
    layout = Layout.of([part.mask for part in parts])
    with teacher_adapters(decoder):
        states = decoder.embed(layout.pack([part.ids for part in parts]))
        states = decoder.run(states, range(len(decoder)), layout.positions())
        predicting_BA = (layout.columns_of(3) - 1).clamp(min=0)
        return decoder.norm(take_columns(states, predicting_BA))


def topk_kl_divergence(logits_rV: Tensor, teacher_rV: Tensor, top: int, temperature: float = 1.0) -> Tensor:
    """T^2 KL(teacher | logits), (r,), over the teacher's `top` largest logits and one bucket of all others."""
    top = min(top, teacher_rV.shape[-1])
    ids_rK = teacher_rV.topk(top, dim=-1).indices
    target_rK, reader_rK = (_log_probs_with_rest(x / temperature, ids_rK) for x in (teacher_rV, logits_rV))
    nats_rK = torch.nn.functional.kl_div(reader_rK, target_rK, reduction="none", log_target=True)
    return temperature**2 * nats_rK.sum(-1)


def _log_probs_with_rest(logits_rV: Tensor, ids_rK: Tensor) -> Tensor:
    """Log probabilities of `ids`, followed by that of all other tokens together, if there are any."""
    total_r1 = logits_rV.logsumexp(-1, keepdim=True)
    log_probs_rK = logits_rV.gather(-1, ids_rK) - total_r1
    if ids_rK.shape[-1] == logits_rV.shape[-1]:
        return log_probs_rK
    # Summed over the other tokens: 1 - sum(p) of the selected ones is mostly rounding error where their sum is near 1.
    rest_r1 = logits_rV.scatter(-1, ids_rK, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([log_probs_rK, rest_r1 - total_r1], -1)
