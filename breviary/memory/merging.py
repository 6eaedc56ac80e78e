"""Merging token states into memory slots: the one place that does it, for every method.

A method says which group each token belongs to and how much it weighs; the values merged may be
other states than those the groups and weights were made from. Batched tensor code: no loop over
rows, tokens or slots, no host sync (but for a per-row ratio, see `widest`).

Shapes: B rows, T tokens, G groups, D width. `mask (B, T)` is True on real tokens, pads on any side.
`groups (B, T)` int64 holds each token's group, -1 on pads. Ratios are tokens per slot, an int or,
where a budget in slots gives every row its own, an int64 (B,) tensor of values >= 1.


What every compressor that merges states has in common: a budget, a reading, one merge.

A method says only which tokens belong together and with what weights.
Shape letters: R segment rows, L tokens of a segment, G slots of a segment, D hidden width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from breviary.backbones.pretrained import Backbone
from breviary.backbones.stack import Stack
from breviary.backbones.tiny import TinyBackbone
from breviary.backbones.trainable import TRAIN_MODES
from breviary.backbones.translation import Translation, between
from breviary.contract import Context, Encoded, Memory, Question
from breviary.memory.assembly import token_index
from breviary.memory.budget import Budget, BudgetedCompressor, check_budget, max_context_for_slots
from breviary.memory.encoder import ALIGNMENTS, FINAL_NORMS, JOINS, LSA_INITS, QUESTIONS, SLOT_POSITIONS, ContextEncoder


def full_precision(function: Callable) -> Callable:
    """For functions of states (their first argument): autocast would run the cosines' matrix products in bf16."""

    @functools.wraps(function)
    def wrapped(states: Tensor, *args, **kwargs):
        with torch.autocast(states.device.type, enabled=False):
            return function(states, *args, **kwargs)

    return wrapped


def consecutive_groups(mask: Tensor, ratio: int | Tensor) -> Tensor:
    """Groups of `ratio` consecutive real tokens, the last one short: (B, T) int64, -1 on pads."""
    return torch.where(mask, token_index(mask) // _per_row(ratio, mask.device), -1)


def groups_from_sizes(sizes: Tensor, mask: Tensor) -> Tensor:
    """Groups laid out in order over the real tokens, `sizes (B, G)` of them each: (B, T) int64, -1 on pads.

    Each row of `sizes` sums to the row's real tokens; a group of size 0 gets no token.
    """
    ends = sizes.cumsum(-1)
    return torch.where(mask, torch.searchsorted(ends, token_index(mask), right=True), -1)


def slot_count(lengths: Tensor, ratio: int | Tensor) -> Tensor:
    """ceil(length / ratio) slots for each row, (B,) int64."""
    ratio = ratio.to(lengths.device) if isinstance(ratio, Tensor) else ratio
    return -(-lengths // ratio)


def widest(width: int, ratio: int | Tensor) -> int:
    """Most slots that a row of `width` tokens can need; a ratio tensor on an accelerator costs one host sync."""
    smallest = int(ratio.min()) if isinstance(ratio, Tensor) else ratio
    return -(-width // smallest)


def merge_slots(values: Tensor, groups: Tensor, slots: int, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """One vector per group: the sum of its values, each times its weight.

    values (B, T, D); groups (B, T), every index below `slots`; weights (B, T) taken as they are, None = plain
    mean of each group. Returns memory (B, slots, D) in the values' dtype and its mask (B, slots): groups without
    a token are dropped, the others moved left in order, zeros where masked. Sums run in fp32 (fp64 for fp64
    values), differentiably in values and weights. Costs one fp32 copy of values that are not fp32, none of fp32.
    """
    batch, width, dim = values.shape
    wide = torch.promote_types(values.dtype, torch.float32)
    packed, counts, mask = _pack(groups, slots)
    if weights is None:
        weights = 1 / counts.gather(1, packed).clamp(min=1).to(wide)
    # Pads take part with the row's spare last slot, which is cut off below: shapes stay known without a sync.
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


def last_position(positions: Tensor, groups: Tensor, slots: int) -> Tensor:
    """Position of each group's last token, packed as `merge_slots` packs: (B, slots), 0 where masked.

    positions (B, T) of any dtype; "last" is by column, whatever the positions say.
    """
    packed, _, mask = _pack(groups, slots)
    columns = torch.arange(groups.shape[1], device=groups.device).expand_as(groups)
    last = columns.new_zeros(len(groups), slots + 1).scatter_reduce(1, packed, columns, "amax")[:, :slots]
    return positions.gather(1, last).masked_fill(~mask, 0)


def _per_row(ratio: int | Tensor, device: torch.device) -> int | Tensor:
    return ratio.to(device)[:, None] if isinstance(ratio, Tensor) else ratio


def _pack(groups: Tensor, slots: int) -> tuple[Tensor, Tensor, Tensor]:
    """Each token's slot once empty groups are dropped, pads in slot `slots` (B, T); tokens of each slot
    (B, slots + 1); mask (B, slots) of the slots in use."""
    raw = torch.where(groups < 0, slots, groups)
    ones = torch.ones_like(raw)
    zeros = raw.new_zeros(len(raw), slots + 1)
    used = zeros.scatter_add(1, raw, ones)[:, :slots] > 0
    place = F.pad(used.long().cumsum(1) - 1, (0, 1), value=slots)
    packed = place.gather(1, raw)
    mask = torch.arange(slots, device=raw.device) < used.sum(1, keepdim=True)
    return packed, zeros.scatter_add(1, packed, ones), mask


class MergingCompressor(BudgetedCompressor):
    """Groups of context states, each merged into one slot.

    ratio, slots, ratio_choices, ratio_draw  as in Budget
    **encoder                    as in ContextEncoder: join, encoder_layers, encoder_train, lsa_layers, segment_size, ...
    A subclass gives `grouping`; where that does not look at the question, `needs_question` is False.
    """

    forwards_kwargs_to = ContextEncoder  # configuration keys of **encoder
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

    def grouping(
        self, states: Tensor, mask: Tensor, query: Tensor | None, ratio: int | Tensor, slots: int
    ) -> tuple[Tensor, Tensor | None]:
        """Which tokens make which slot.

        states  (R, L, D) to compare, mask (R, L) right-padded, query (R, D) or None
        ratio   tokens per slot, an int or (R,); slots: the most groups a row can have
        Gives groups (R, L) int64, -1 on padding, and weights (R, L) that sum to 1 in each group, or None for means.
        """
        raise NotImplementedError

    @property
    def tokenizer(self) -> Any:
        """As Compressor.tokenizer."""
        return self.context_encoder.translation and self.context_encoder.translation.target

    @property
    def layer(self) -> int:
        """The decoder layer that slots enter."""
        return self.context_encoder.layer

    def encode(self, context: Context) -> Encoded:
        """As ContextEncoder.encode; never depends on the question."""
        return self.context_encoder.encode(context)

    def compress(self, encoded: Encoded, question: Question) -> Memory:
        """Groups, weights, one merge, alignment where there is one."""
        values_RLD, mask_RL = encoded.states.flatten(0, 1), encoded.mask.flatten(0, 1)
        ratio = self.budget.segment_ratios(encoded.ids, encoded.mask, self.training)
        G = self.budget.width(mask_RL.shape[1], self.training)
        query_RD = self.context_encoder.query(encoded, question).flatten(0, 1) if self.needs_question else None
        if isinstance(ratio, int) and ratio == 1:
            groups_RL, weights_RL = consecutive_groups(mask_RL, 1), None  # every token is its own slot
        else:
            compared_RLD = self.context_encoder.compared(encoded).flatten(0, 1)
            groups_RL, weights_RL = self.grouping(compared_RLD, mask_RL, query_RD, ratio, G)
        slots_RGD, slot_mask_RG = merge_slots(values_RLD, groups_RL, G, weights_RL)
        last_RG = last_position(token_index(mask_RL), groups_RL, G)
        memory = self.context_encoder.memory(slots_RGD, slot_mask_RG, last_RG, encoded)
        memory.trace |= {"groups": groups_RL, "weights": weights_RL}
        return memory

    @classmethod
    def problems(cls, settings: Mapping[str, Any], backbone: Any) -> list[str]:
        """Budget, join, layers and widths."""
        found = check_budget(settings)
        allowed = {
            "join": JOINS,
            "slot_positions": SLOT_POSITIONS,
            "final_norm": FINAL_NORMS,
            "alignment": ALIGNMENTS,
            "lsa_init": LSA_INITS,
            "question": QUESTIONS,
            "encoder_train": [mode for mode in TRAIN_MODES if mode not in ("attention", "qkv")],
        }
        for key, values in allowed.items():
            if settings[key] not in values:
                found.append(f"compressor.{key}={settings[key]}: allowed are {', '.join(values)}")
        layers = backbone.config.num_hidden_layers
        most = layers - (settings["join"] == "depth")  # at depth at least one layer must see the slots
        its_own = settings["encoder"] is not None and settings["join"] == "input"  # whose layers are looked at below
        if not its_own and not 1 <= settings["encoder_layers"] <= most:
            found.append(
                f"compressor.encoder_layers={settings['encoder_layers']}: must be from 1 to {most} "
                f"for this backbone of {layers} layers, e.g. {min(8, most)}"
            )
        if settings["join"] == "input" and not 1 <= settings["lsa_layers"] <= layers:
            found.append(
                f"compressor.lsa_layers={settings['lsa_layers']}: must be from 1 to {layers}, e.g. 1; "
                "compressor.alignment=none switches the alignment off"
            )
        if settings["lsa_init"] == "random" and settings["alignment"] in ("linear", "none"):
            found.append(
                f"compressor.lsa_init=random: compressor.alignment={settings['alignment']} has no decoder blocks to "
                "draw anew; set compressor.lsa_init=pretrained, or compressor.alignment=lsa"
            )
        if settings["encoder_lora_rank"] < 1:
            found.append(f"compressor.encoder_lora_rank={settings['encoder_lora_rank']}: must be at least 1, e.g. 16")
        if not 0 <= settings["encoder_lora_dropout"] < 1:
            found.append(
                f"compressor.encoder_lora_dropout={settings['encoder_lora_dropout']}: must be from 0 to below 1, "
                "e.g. 0.05"
            )
        if settings["frozen"] and settings["join"] == "depth":
            found.append(
                "compressor.frozen=true: with compressor.join=depth the decoder's own layers read, there is "
                "nothing of the compressor's to freeze; set compressor.frozen=false, or compressor.join=input"
            )
        if settings["segment_size"] < 1:
            found.append(f"compressor.segment_size={settings['segment_size']}: must be at least 1 token, e.g. 4096")
        return found + cls._check_encoder(settings, backbone)

    @staticmethod
    def _check_encoder(settings: Mapping[str, Any], backbone: Any) -> list[str]:
        if settings["encoder"] is None:
            return []
        if settings["join"] == "depth":
            return [
                f"compressor.encoder={settings['encoder']}: with compressor.join=depth the decoder's own layers "
                "read the context; set compressor.encoder=null or compressor.join=input"
            ]
        encoder = Backbone(settings["encoder"])
        found = encoder.problems()
        if found:
            return [problem.replace("backbone.path", "compressor.encoder") for problem in found]
        if not 1 <= settings["encoder_layers"] <= encoder.config.num_hidden_layers:
            found.append(
                f"compressor.encoder_layers={settings['encoder_layers']}: must be from 1 to "
                f"{encoder.config.num_hidden_layers}, the layers of compressor.encoder={settings['encoder']}"
            )
        widths = encoder.config.hidden_size, backbone.config.hidden_size
        if widths[0] != widths[1] and settings["alignment"] not in ("linear", "linear_lsa"):
            found.append(
                f"compressor.encoder={settings['encoder']}: its width {widths[0]} differs from the decoder's "
                f"{widths[1]}, which compressor.alignment={settings['alignment']} cannot bridge; give an encoder "
                "of the same width, or compressor.alignment=linear_lsa (or linear)"
            )
        try:
            tokens = len(encoder.tokenizer())
        except ValueError as error:
            return found + [str(error).replace("backbone.path", "compressor.encoder")]
        if encoder.config.vocab_size < tokens:
            found.append(
                f"compressor.encoder={settings['encoder']}: embeds {encoder.config.vocab_size} tokens, and its tokenizer has "
                f"{tokens}; give the folder the tokenizer that the model was trained with"
            )
        return found

    @classmethod
    def translation(cls, settings: Mapping[str, Any], backbone: Any) -> Translation | None:
        """As Compressor.translation: of an encoder that has another tokenizer than the decoder."""
        return between(backbone, Backbone(settings["encoder"])) if settings["encoder"] else None

    @classmethod
    def longest_context(cls, settings: Mapping[str, Any], positions: int, others: int) -> int | None:
        """At depth context and everything else share the positions; at the input only the slots take them."""
        if settings["join"] == "depth":
            return max(positions - others, 0)
        by_slots = max_context_for_slots(settings, max(positions - others, 0))
        if settings["encoder"] is not None:  # it reads a segment and the question
            positions = min(positions, Backbone(settings["encoder"]).config.max_position_embeddings)
        by_segment = None if settings["segment_size"] + others <= positions else max(positions - others, 0)
        limits = [limit for limit in (by_slots, by_segment) if limit is not None]
        return min(limits) if limits else None
