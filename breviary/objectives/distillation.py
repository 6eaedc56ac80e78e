"""Learning to say what the same backbone says that has read the whole context: distillation without labels.

B rows, A answer tokens, V vocabulary, K = kept logits and one bucket for the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from breviary.backbones.stack import Stack
from breviary.backbones.trainable import disable_adapters
from breviary.contract import Batch, Compressor
from breviary.memory.assembly import Layout, take_columns
from breviary.objectives.text import Continue


class Distill(Continue):
    """Predict what the untouched backbone predicts that reads the whole context where the reader has its memory
    (context distillation: Askell et al. 2112.00861, Snell et al. 2209.15189; soft targets: Hinton et al. 1503.02531).

    Loss of a token: T^2 KL(teacher | reader), both at temperature T. Of the teacher the `top` largest logits are kept, with
    all others as one bucket of their summed probability. Renormalising the kept ones instead would ask nothing of what the
    reader spends elsewhere: its loss could be 0 with nearly all mass on other tokens. With the bucket the loss is 0 only if
    that mass is right as well; it is at most the whole KL, and equal to it where top is the vocabulary.

    context_share, hint_tokens  the text that is gone on with, as in Continue; context_share null: the data's first answer
                                and the end token after its question (then hint_tokens means nothing)
    top                         logits kept, >= 1
    temperature                 T, > 0

    The teacher reads [prefix ; context ; prompt ; answer], adapters off, without gradient: one further forward over the
    whole context. Its weights are the backbone's own, so decoder.train must leave them: lora or frozen.
    """

    teacher_reads_context = True

    def __init__(
        self, context_share: float | None = 0.5, hint_tokens: int = 8, top: int = 64, temperature: float = 1.0
    ):
        super().__init__(context_share, hint_tokens)
        self.top, self.temperature = top, temperature

    def primary(self, batch: Batch) -> Batch:
        """The continuation, or what the data asks."""
        return batch if self.context_share is None else super().primary(batch)

    def token_losses(self, batch: Batch, logits_BAV: Tensor, decoder: Stack) -> Tensor:
        """T^2 KL(teacher | reader) of each answer token, (B, A); meaningless on padding."""
        return topk_kl_divergence(logits_BAV, teacher_logits(decoder, batch), self.top, self.temperature)

    @classmethod
    def problems(cls, settings: Mapping[str, Any], reader: type, train: str) -> list[str]:
        """As Answer.problems; the decoder's own weights must stay as they are, and the memory must be slots."""
        found = super().problems(settings, reader, train)
        top, temperature = settings["top"], settings["temperature"]
        if top < 1:
            found.append(f"objective.top={top}: must be at least 1, e.g. 64")
        if temperature <= 0:
            found.append(f"objective.temperature={temperature}: must be above 0, e.g. 1.0")
        if train not in ("lora", "frozen"):
            found.append(
                f"objective=distill with decoder.train={train}: the teacher is the same backbone with adapters off, "
                "whose own weights must not change; use decoder.train=lora or frozen"
            )
        if not issubclass(reader, Compressor):
            found.append(
                "objective=distill: this compressor is a reader whose memory is no slots; use objective=continue, or "
                "a compressor such as comi"
            )
        return found


@torch.no_grad()
def teacher_logits(decoder: Stack, batch: Batch) -> Tensor:
    """What the plain backbone predicts for each answer token after [prefix ; context ; prompt], (B, A, V) float32."""
    parts = [batch.prefix, batch.context, batch.prompt, batch.answer]
    layout = Layout.of([part.mask for part in parts])
    with disable_adapters(decoder):
        states = decoder.embed(layout.pack([part.ids for part in parts]))
        states = decoder.run(states, range(len(decoder)), layout.positions())
        predicting_BA = (layout.columns_of(3) - 1).clamp(min=0)
        return decoder.head(decoder.norm(take_columns(states, predicting_BA))).float()


def topk_kl_divergence(logits_BAV: Tensor, teacher_BAV: Tensor, top: int, temperature: float = 1.0) -> Tensor:
    """T^2 KL(teacher | logits), (B, A), over the teacher's `top` largest logits and a bucket of all others."""
    top = min(top, teacher_BAV.shape[-1])
    ids_BAK = teacher_BAV.topk(top, dim=-1).indices
    target_BAK, said_BAK = (_bucketed(x / temperature, ids_BAK) for x in (teacher_BAV, logits_BAV))
    nats_BAK = torch.nn.functional.kl_div(said_BAK, target_BAK, reduction="none", log_target=True)
    return temperature**2 * nats_BAK.sum(-1)


def _bucketed(logits_BAV: Tensor, ids_BAK: Tensor) -> Tensor:
    """Log probabilities of `ids` and, where any other is left, of all others together, the last."""
    total_BA1 = logits_BAV.logsumexp(-1, keepdim=True)
    named_BAK = logits_BAV.gather(-1, ids_BAK) - total_BA1
    if ids_BAK.shape[-1] == logits_BAV.shape[-1]:
        return named_BAK
    # Summed over the others themselves: 1 - sum of the named ones is rounding error where they hold nearly all.
    others_BA1 = logits_BAV.scatter(-1, ids_BAK, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([named_BAK, others_BA1 - total_BA1], -1)
