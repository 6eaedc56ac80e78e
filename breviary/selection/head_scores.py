"""How much a prompt attends to each unit of a context: attention mass of single heads, and their combination.

Shape letters: B contexts, T context tokens (left-packed), P prefix tokens, U units of a context, J key/value heads,
G query heads of one key/value head, W window layers, H query heads of a layer, Q prompt tokens, d head width,
D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from breviary.backbones.stack import Stack
from breviary.contract import Tokens
from breviary.memory.columns import Columns
from breviary.memory.observers import Observers, Pair, run_behind

HEADS = ("mean", "max", "linear")
SMALL = 1e-9  # mass below it counts as this, before a logarithm


class HeadScores(nn.Module):
    """Combines the attention mass of the heads of W layers into one positive score.

    heads   mean: over all heads | max: over the heads of a layer, then the mean over layers | linear: exp of a learned
            weighted sum of each head's log mean mass and log largest mass in a unit, centred over the units
    number  heads of all window layers, W H
    """

    def __init__(self, heads: str, number: int):
        super().__init__()
        assert heads in HEADS, heads
        self.heads = heads
        if heads == "linear":
            # At first the geometric mean of all heads' mean mass.
            self.readout = nn.Parameter(torch.cat([torch.full((number,), 1 / number), torch.zeros(number)]))

    def of_tokens(self, mass: Tensor) -> Tensor:
        """Score of each token, (B, T), from mass (B, T, W, H). Not with heads: linear."""
        assert self.heads != "linear", "a read-out scores units"
        return mass.mean((2, 3)) if self.heads == "mean" else mass.amax(3).mean(2)

    def forward(self, mass: Tensor, numbers: Tensor, count: int) -> Tensor:
        """Score of each unit, (B, U), from mass (B, T, W, H), units of the tokens (B, T), -1 on padding, and U.

        Padding units score 0, or with heads: linear any positive number.
        """
        if self.heads == "linear":
            features, valid = unit_features(mass.flatten(2), numbers, count)
            return self.read_out(features, valid)
        return unit_means(self.of_tokens(mass)[..., None], numbers, count)[0][..., 0]

    def read_out(self, features: Tensor, valid: Tensor) -> Tensor:
        """exp of the weighted sum of `unit_features` (B, U, 2 W H): (B, U). valid (B, U)."""
        return (features @ self.readout.float()).clamp(-30, 30).masked_fill(~valid, 0).exp()


def unit_features(mass: Tensor, numbers: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Log mean and log largest mass of each head in each unit, centred over the units of a context.

    mass (B, T, F), numbers (B, T) -> (B, U, 2 F), and which units have a token, (B, U)
    """
    means, valid = unit_means(mass, numbers, count)
    index = numbers.clamp(min=0)[..., None].expand_as(mass)
    largest = torch.zeros_like(means).scatter_reduce(1, index, mass.masked_fill((numbers < 0)[..., None], 0), "amax")
    features = torch.cat([means, largest], -1).clamp(min=SMALL).log()
    total = features.masked_fill(~valid[..., None], 0).sum(1, keepdim=True)
    return features - total / valid.sum(1)[:, None, None].clamp(min=1), valid


def unit_means(x: Tensor, numbers: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Means of (B, T, F) over the tokens of each unit, (B, U, F), and which units have a token, (B, U)."""
    is_token = numbers >= 0
    index = numbers.clamp(min=0)
    sums = x.new_zeros(len(x), count, x.shape[2])
    sums = sums.scatter_add(1, index[..., None].expand_as(x), x.masked_fill(~is_token[..., None], 0))
    tokens = x.new_zeros(len(x), count).scatter_add(1, index, is_token.to(x.dtype))
    return sums / tokens.clamp(min=1)[..., None], tokens > 0


def attention_mass(
    decoder: Stack, states: Tensor, states_mask: Tensor, columns: Columns, pairs: Sequence[Pair], window: int
) -> Tensor:
    """Attention mass of each context token, the mean over the prompt's tokens: (B, T, W, H) float32.

    states, states_mask  (B, Q, D) embeddings of the prompt, (B, Q)
    columns, pairs       of the cache of layers 0..n-1, behind which the prompt runs; the last `window` layers are seen
    """
    prompt = Tokens(torch.zeros_like(states_mask, dtype=torch.long), states_mask)
    masses = []
    first = len(pairs) - window
    for index, seen in enumerate(run_behind(decoder, states, prompt, columns, pairs, first=first)):
        if seen is not None:
            masses.append(layer_mass(seen, columns, pairs[index][0]))
    return torch.stack(masses, 2)


def layer_mass(seen: Observers, columns: Columns, keys: Tensor) -> Tensor:
    """The mass in one layer, (B, T, H), from its keys (B, J, S, d)."""
    prefix_keys, context_keys = columns.split(keys)
    visible = columns.mask[:, None].expand(-1, seen.mask.shape[1], -1)
    with torch.autocast(keys.device.type, enabled=False):
        weights = seen.attention(context_keys, visible, prefix_keys, columns.prefix_mask)  # (B, J, G, Q, T)
    return (weights.sum(3) / seen.mask.sum(1).clamp(min=1)[:, None, None, None]).flatten(1, 2).transpose(1, 2)


def selecting_layer(layer: int | None, layers: int) -> int:
    """Layer n of a decoder of `layers` layers."""
    return max(layers * 3 // 5, 1) if layer is None else layer


def head_problems(settings: Mapping[str, Any], layers: int, key: str) -> list[str]:
    """Error messages for layer, window and heads below configuration key `key`, for a decoder of `layers` layers."""
    layer, problems = settings["layer"], []
    if layer is not None and not 1 <= layer < layers:
        problems.append(f"{key}.layer={layer}: must be from 1 to {layers - 1} of this backbone, or null")
    if settings["window"] < 1:
        problems.append(f"{key}.window={settings['window']}: must be at least 1 layer, e.g. 4")
    if settings["heads"] not in HEADS:
        problems.append(f"{key}.heads={settings['heads']}: allowed are {', '.join(HEADS)}")
    return problems
