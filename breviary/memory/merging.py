"""Merging token states into memory slots: the tensor functions and the compressor that all merging methods share.

A method decides only which tokens form a group and with what weights. The merged values may be other states than those
from which groups and weights were computed. Batched tensor code: no loop over rows, tokens or slots, and no host sync,
except for a ratio per row (`max_slot_count`).

Shapes: B rows, T tokens, G groups, D width; in `MergingCompressor` R segment rows, L tokens of a segment, G slots of a
segment. `mask (B, T)` is True on real tokens, padding on any side. `groups (B, T)` int64 holds each token's group, -1
on padding. A ratio is tokens per slot: an int, or (B,) int64 >= 1 where rows have different ratios.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from breviary.backbones.pretrained import Backbone, usable_positions
from breviary.backbones.stack import Stack
from breviary.backbones.tiny import TinyBackbone
from breviary.backbones.translation import Translation, translation_between
from breviary.contract import Context, Encoded, Memory, Question
from breviary.memory.assembly import token_index
from breviary.memory.budget import Budget, BudgetedCompressor, check_budget, max_context_for_slots
from breviary.memory.encoder import ContextEncoder, check_context_encoder


def without_autocast(function: Callable) -> Callable:
    """Decorator: runs a function of states, its first argument, with autocast off.

    Autocast would compute the matrix products of cosines in bf16.
    """

    @functools.wraps(function)
    def wrapped(states: Tensor, *args, **kwargs):
        with torch.autocast(states.device.type, enabled=False):
            return function(states, *args, **kwargs)

    return wrapped


def consecutive_groups(mask: Tensor, ratio: int | Tensor) -> Tensor:
    """Groups of `ratio` consecutive real tokens, the last one short: (B, T) int64, -1 on padding."""
    ratio = ratio.to(mask.device)[:, None] if isinstance(ratio, Tensor) else ratio
    return torch.where(mask, token_index(mask) // ratio, -1)


def groups_from_sizes(sizes: Tensor, mask: Tensor) -> Tensor:
    """Consecutive groups of `sizes (B, G)` real tokens each: (B, T) int64, -1 on padding.

    Each row of `sizes` sums to the row's number of real tokens; a group of size 0 has no token.
    """
    ends = sizes.cumsum(-1)
    return torch.where(mask, torch.searchsorted(ends, token_index(mask), right=True), -1)


def slot_count(lengths: Tensor, ratio: int | Tensor) -> Tensor:
    """Slots of each row, ceil(length / ratio): (B,) int64."""
    ratio = ratio.to(lengths.device) if isinstance(ratio, Tensor) else ratio
    return -(-lengths // ratio)


def max_slot_count(width: int, ratio: int | Tensor) -> int:
    """Upper bound on the slots of a row of `width` tokens. A ratio tensor on an accelerator costs one host sync."""
    smallest = int(ratio.min()) if isinstance(ratio, Tensor) else ratio
    return -(-width // smallest)


def merge_slots(values: Tensor, groups: Tensor, slots: int, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """One vector per group: the sum of its values, each times its weight.

    values   (B, T, D)
    groups   (B, T), every index below `slots`
    weights  (B, T), not normalised here; None = plain mean of each group
    Returns memory (B, slots, D) in the values' dtype and its mask (B, slots). Groups without a token are dropped, the
    others move left in order; masked slots are zero. Sums run in fp32 (fp64 for fp64 values), differentiable in values
    and weights. Cost: one fp32 copy of the values unless they are fp32.
    """
    batch, width, dim = values.shape
    wide = torch.promote_types(values.dtype, torch.float32)
    packed, counts, mask = _drop_empty_groups(groups, slots)
    if weights is None:
        weights = 1 / counts.gather(1, packed).clamp(min=1).to(wide)
    # Padding goes to one extra slot per row, which is cut off below, so that shapes are known without a sync.
    bags = (packed + torch.arange(batch, device=groups.device)[:, None] * (slots + 1)).flatten()
    order = bags.argsort(stable=True)
    flat_counts = counts.flatten()
    starts = flat_counts.cumsum(0) - flat_counts
    summed = F.embedding_bag(
        order,
        values.reshape(batch * width, dim).to(wide),
        starts,
        mode="sum",
        per_sample_weights=weights.to(wide).flatten()[order],
    )
    return summed.view(batch, slots + 1, dim)[:, :slots].to(values.dtype), mask


def last_token_positions(positions: Tensor, groups: Tensor, slots: int) -> Tensor:
    """Position of each group's last token, in the slot order of `merge_slots`: (B, slots), 0 where masked.

    positions (B, T) of any dtype. The last token is the one in the last column, independent of the positions.
    """
    packed, _, mask = _drop_empty_groups(groups, slots)
    columns = torch.arange(groups.shape[1], device=groups.device).expand_as(groups)
    last = columns.new_zeros(len(groups), slots + 1).scatter_reduce(1, packed, columns, "amax")[:, :slots]
    return positions.gather(1, last).masked_fill(~mask, 0)


def _drop_empty_groups(groups: Tensor, slots: int) -> tuple[Tensor, Tensor, Tensor]:
    """Slot of each token (B, T) after empty groups are dropped, `slots` on padding; tokens of each slot
    (B, slots + 1); mask (B, slots) of the slots in use."""
    raw = torch.where(groups < 0, slots, groups)
    ones = torch.ones_like(raw)
    zeros = raw.new_zeros(len(raw), slots + 1)
    used = zeros.scatter_add(1, raw, ones)[:, :slots] > 0
    new_index = F.pad(used.long().cumsum(1) - 1, (0, 1), value=slots)
    packed = new_index.gather(1, raw)
    mask = torch.arange(slots, device=raw.device) < used.sum(1, keepdim=True)
    return packed, zeros.scatter_add(1, packed, ones), mask


class MergingCompressor(BudgetedCompressor):
    """Groups of context states, each merged into one slot.

    ratio, slots, ratio_choices, ratio_draw  as in Budget
    **encoder  as in ContextEncoder: join, encoder_layers, encoder_train, lsa_layers, segment_size, ...
    A subclass implements `group_tokens`, and sets `needs_question` to False where that ignores the question.
    """

    forwards_kwargs_to = ContextEncoder  # its constructor arguments are configuration keys too
    former_names = {"reading": "context_encoder"}  # in checkpoints of earlier versions
    compress_only_keys = frozenset({"ratio", "slots", "ratio_choices", "ratio_draw", "slot_positions"})

    def __init__(
        self,
        backbone: Backbone | TinyBackbone,
        decoder: Stack,
        *,
        ratio: int | None = 4,
        slots: int | None = None,
        ratio_choices: list[int] | None = None,
        ratio_draw: str = "step",
        **encoder: Any,
    ):
        super().__init__()
        self.budget = Budget(ratio, slots, ratio_choices, ratio_draw=ratio_draw)
        self.context_encoder = ContextEncoder(backbone, decoder, **encoder)
        self.layer = self.context_encoder.layer

    def group_tokens(
        self, states: Tensor, mask: Tensor, query: Tensor | None, ratio: int | Tensor, slots: int
    ) -> tuple[Tensor, Tensor | None]:
        """Group and weight of each token.

        states  (R, L, D) from which similarities are computed; mask (R, L) right-padded
        query   (R, D) mean of the question's states; None where `needs_question` is False
        ratio   tokens per slot, an int or (R,)
        slots   upper bound on the groups of a row
        Returns groups (R, L) int64, -1 on padding, and weights (R, L) that sum to 1 in each group, or None for means.
        """
        raise NotImplementedError

    def group_inputs(self, encoded: Encoded, question: Question) -> dict[str, Any]:
        """Further arguments of `group_tokens`, for a subclass that groups by more than states and query."""
        return {}

    def single_token_weights(self, mask: Tensor) -> Tensor | None:
        """Weights (R, L) at ratio 1, where every token of mask (R, L) is a group of its own; None = 1.

        A subclass with learned weights returns ones with a gradient of 0 for each: DDP and ZeRO wait for all gradients.
        """
        return None

    @property
    def tokenizer(self) -> Any:
        """The encoder's tokenizer where it differs from the decoder's, else None."""
        return self.context_encoder.translation and self.context_encoder.translation.target

    def encode(self, context: Context) -> Encoded:
        """As `ContextEncoder.encode`; without keys and values where no question would read them."""
        return self.context_encoder.encode(context, keep_keys=self.needs_question)

    def compress(self, encoded: Encoded, question: Question) -> Memory:
        """Groups, weights, merge, alignment."""
        values_RLD, mask_RL = encoded.states.flatten(0, 1), encoded.mask.flatten(0, 1)
        ratio = self.budget.ratio_per_segment(encoded.ids, encoded.mask, self.training)
        G = max(self.budget.max_slots(mask_RL.shape[1], self.training), 1)
        query_RD = self.context_encoder.query(encoded, question).flatten(0, 1) if self.needs_question else None
        if isinstance(ratio, int) and ratio == 1:
            groups_RL, weights_RL = consecutive_groups(mask_RL, 1), self.single_token_weights(mask_RL)
        else:
            states_RLD = self.context_encoder.similarity_states(encoded).flatten(0, 1)
            further = self.group_inputs(encoded, question)
            groups_RL, weights_RL = self.group_tokens(states_RLD, mask_RL, query_RD, ratio, G, **further)
        slots_RGD, slot_mask_RG = merge_slots(values_RLD, groups_RL, G, weights_RL)
        last_RG = last_token_positions(token_index(mask_RL), groups_RL, G)
        memory = self.context_encoder.memory(slots_RGD, slot_mask_RG, last_RG, encoded)
        memory.trace |= {"groups": groups_RL, "weights": weights_RL}
        return memory

    @classmethod
    def problems(cls, settings: Mapping[str, Any], backbone: Any) -> list[str]:
        """Error messages for the budget and the context encoder."""
        return check_budget(settings) + check_context_encoder(settings, backbone)

    @classmethod
    def translation(cls, settings: Mapping[str, Any], backbone: Any) -> Translation | None:
        """As `Compressor.translation`, for an encoder with another tokenizer than the decoder's."""
        return translation_between(backbone, Backbone(settings["encoder"])) if settings["encoder"] else None

    @classmethod
    def longest_context(cls, settings: Mapping[str, Any], positions: int, others: int) -> int | None:
        """As `Compressor.longest_context`.

        At depth the context takes positions of the decoder. At the input its slots do, and one segment with the
        question must fit the encoder's positions.
        """
        if settings["join"] == "depth":
            return max(positions - others, 0)
        by_slots = max_context_for_slots(settings, max(positions - others, 0), settings["segment_size"])
        if settings["encoder"] is not None:
            positions = min(positions, usable_positions(Backbone(settings["encoder"]).config))
        by_segment = None if settings["segment_size"] + others <= positions else max(positions - others, 0)
        limits = [limit for limit in (by_slots, by_segment) if limit is not None]
        return min(limits) if limits else None
