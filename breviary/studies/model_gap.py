"""Distances between two language models of one vocabulary, measured on the same tokens.

Shape letters: B documents, N tokens with the beginning-of-text token first, V vocabulary, D width, T = B * N.
"""

from __future__ import annotations

import torch
from torch import Tensor

from breviary.backbones.head import chunks_of
from breviary.backbones.pretrained import Backbone
from breviary.backbones.stack import Stack
from breviary.backbones.tiny import TinyBackbone
from breviary.runtime.device import resolve_device
from breviary.studies.entropy import surprisal


def symmetric_kl(logits_a: Tensor, logits_b: Tensor) -> Tensor:
    """(KL(a || b) + KL(b || a)) / 2 of two distributions, nats: logits (..., V) twice -> (...) float32. 0 = equal."""
    log_a, log_b = logits_a.float().log_softmax(-1), logits_b.float().log_softmax(-1)
    return ((log_a.exp() - log_b.exp()) * (log_a - log_b)).sum(-1) / 2


def linear_cka(states_a: Tensor, states_b: Tensor) -> float:
    """Linear centred kernel alignment (Kornblith et al. 2019, 1905.00414): (T, D_a), (T, D_b) -> 0..1.

    1 = equal up to rotation, scale and shift; nan where one side is constant. Costs T * D_a * D_b.
    """
    a, b = (states.double() - states.double().mean(0) for states in (states_a, states_b))
    within = torch.linalg.norm(a.T @ a) * torch.linalg.norm(b.T @ b)
    return float(torch.linalg.norm(a.T @ b) ** 2 / within) if within > 0 else float("nan")


@torch.no_grad()
def model_gaps(
    encoder: Backbone | TinyBackbone, decoder: Backbone | TinyBackbone, ids: Tensor, layers: int, batch_size: int = 16
) -> dict[str, float]:
    """Three gaps between two models on probe documents ids (B, N) int64 without padding; ids[:, 0] is not predicted.

    kl    mean symmetric KL of their next-token distributions, nats
    nll   mean over documents of |NLL of the encoder - NLL of the decoder|, nats per token
    cka   1 - linear CKA of the states after `layers` layers and each model's final norm
    Raises: ValueError where the vocabularies differ.
    """
    if encoder.config.vocab_size != decoder.config.vocab_size:
        raise ValueError(
            f"vocabularies of {encoder.config.vocab_size} and {decoder.config.vocab_size} entries: "
            "distributions over different tokens cannot be compared; give models of one tokenizer"
        )
    stacks = [Stack(model.load()).eval().to(resolve_device(model.device)) for model in (encoder, decoder)]
    kl, nll = [], []
    states: tuple[list[Tensor], list[Tensor]] = ([], [])
    for rows in ids.split(batch_size):
        last = []
        for side, stack in enumerate(stacks):
            rows = rows.to(stack.embed_tokens.weight.device)
            positions = torch.arange(rows.shape[1], device=rows.device).expand(rows.shape)
            lower = stack.run(stack.embed(rows), range(layers), positions)
            states[side].append(stack.norm(lower).flatten(0, 1))
            last.append(stack.norm(stack.run(lower, range(layers, len(stack)), positions)[:, :-1]).flatten(0, 1))
        targets, parts = rows[:, 1:].flatten(), []
        for chunk in chunks_of(len(targets), encoder.config.vocab_size):
            logits = [stack.head(states[chunk]) for stack, states in zip(stacks, last)]
            parts.append(torch.stack([symmetric_kl(*logits), *(surprisal(each, targets[chunk]) for each in logits)]))
        kl_B, own_B, other_B = torch.cat(parts, 1).view(3, len(rows), -1).mean(2)
        kl.append(kl_B)
        nll.append((own_B - other_B).abs())
    return {
        "kl": float(torch.cat(kl).mean()),
        "nll": float(torch.cat(nll).mean()),
        "cka": 1 - linear_cka(torch.cat(states[0]), torch.cat(states[1])),
    }
