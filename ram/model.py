"""RAM, Read As HuMan (arXiv 2602.01840): segments relevant to the question are read closely, the others skimmed.

Shape letters: B contexts, T context tokens (right-padded), N segments of a context, L tokens of a segment, G slots of a
context, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from breviary.backbones.pretrained import Backbone, usable_positions
from breviary.backbones.stack import Stack
from breviary.backbones.tiny import TinyBackbone
from breviary.contract import Batch, Encoded, Memory, Question
from breviary.memory.assembly import Layout, token_index
from breviary.memory.hashing import HASH_RANGE, hash_integers, hash_tokens
from breviary.memory.merging import MergingCompressor, last_token_positions, merge_slots
from breviary.selection.cosine import Cosine, split_segments
from breviary.selection.named import build_relevance, evidence_problems, relevance_class, relevance_problems
from breviary.selection.relevance import Candidates, Relevance
from ram.labels import SOURCES, positive_segments, positive_tokens
from ram.losses import contrastive_loss
from ram.segments import BUDGETS, SKIM_MODES, floor_divide, select_segments, skim_weights

KEEP_MODES = ("topk", "random", "none")
READ_MODES = ("segments", "whole")
UNLIMITED = 2**40  # segment size that holds any context

ALLOWED_VALUES = {"read": READ_MODES, "keep": KEEP_MODES, "budget": BUDGETS, "skim": SKIM_MODES, "positives": SOURCES}


class RAM(MergingCompressor):
    """The most relevant fixed-width segments stay unchanged; each other one becomes one vector; in document order.

    1. The first layers of the backbone encode every segment independently, and the question as its own row (spec 1.3).
    2. Relevance is the cosine of a segment's mean state with the question's (1.4); the best segments are kept (1.5).
    3. A skimmed segment becomes the sum of its states, weighted by softmax of their cosines with the question (1.6).
    4. join: input  kept tokens enter as the decoder's own embeddings, skimmed vectors through a linear map (1.7, 1.8)
       join: depth  the decoder's first layers encode; kept states and skimmed vectors enter layer n unchanged (ours)
    5. In training a contrastive loss raises the question's similarity with segments that hold the answer (1.9).

    segment_size         tokens of a segment (the paper's L_seg)
    read                 segments: each is encoded by itself, as published | whole: the context is encoded at once, and
                         its states are split into segments
    relevance            cosine (step 2) | bm25 | gold | random, or another object of breviary/selection in its place
    keep                 topk | random (by a hash of a segment's tokens, for comparison) | none (skim all)
    budget               nominal: floor(segments / ratio) are kept, skimmed vectors are not counted | strict: all slots
                         together are at most floor(tokens / ratio). A budget in `slots` is always strict
    skim                 query_weighted | mean | drop (close reading only)
    skim_temperature     of the softmax over a segment's tokens (published: 1)
    skimmer              replaces `skim`: any (states, mask, query, ratio, slots) -> (groups, weights) that merges each
                         skimmed segment into several slots, such as COMI's grouping; None = one slot
    skim_ratio           tokens per slot of the skimmer
    uniform_keep         each training step draws the kept share 1 / ratio uniformly from (0, 1]
    contrastive_weight   of the loss of step 5; 0 = off
    contrastive_temperature  of that loss (training code 0.1)
    positives            evidence: gold passages where the data marks them, else answers | answers: their occurrences
    ignore_case          when occurrences of answers are searched
    quirks               the published inference code: kept tokens use the encoder's embedding; contrastive temperature
                         0.05; rotary frequencies are rounded to bfloat16, for any backbone.dtype
    Further arguments as in MergingCompressor and ContextEncoder. States never depend on the question, so each context
    is encoded once.
    """

    compress_only_keys = MergingCompressor.compress_only_keys | {
        "relevance",
        "keep",
        "budget",
        "skim",
        "skim_temperature",
        "skim_ratio",
        "uniform_keep",
        "contrastive_weight",
        "contrastive_temperature",
        "positives",
        "ignore_case",
    }

    def __init__(
        self,
        backbone: Backbone | TinyBackbone,
        decoder: Stack,
        *,
        segment_size: int = 50,
        read: str = "segments",
        relevance: Relevance | dict | str = "cosine",
        keep: str = "topk",
        budget: str = "nominal",
        skim: str = "query_weighted",
        skim_temperature: float = 1.0,
        skimmer: nn.Module | dict | None = None,
        skim_ratio: int = 10,
        uniform_keep: bool = True,
        contrastive_weight: float = 1.0,
        contrastive_temperature: float = 0.1,
        positives: str = "evidence",
        ignore_case: bool = True,
        alignment: str = "linear",
        question: str = "alone",
        quirks: bool = False,
        **merging: Any,
    ):
        encoded_size = segment_size if read == "segments" else UNLIMITED
        super().__init__(
            backbone, decoder, segment_size=encoded_size, alignment=alignment, question=question, **merging
        )
        assert keep in KEEP_MODES and skim in SKIM_MODES, (keep, skim)
        # Dicts in the configuration only, from which both are built.
        assert not isinstance(skimmer, dict) and not isinstance(relevance, dict), (skimmer, relevance)
        self.relevance = build_relevance(relevance)
        self.relevance.prepare(backbone, decoder)
        self.needs_evidence = self.relevance.needs_evidence
        self.budget.uniform_keep = uniform_keep and self.budget.slots is None
        self.segment_size, self.keep, self.budget_rule = segment_size, keep, budget
        self.skim, self.skim_temperature = skim, skim_temperature
        self.skimmer, self.skim_ratio = skimmer, skim_ratio
        self.contrastive_weight, self.positives, self.ignore_case = contrastive_weight, positives, ignore_case
        self.contrastive_temperature = 0.05 if quirks else contrastive_temperature
        self.quirks = quirks
        if quirks:
            for stack in (decoder, self.context_encoder.encoder, self.context_encoder.lsa):
                if stack is not None:
                    stack.round_frequencies()

    def compress(self, encoded: Encoded, question: Question) -> Memory:
        """Steps 2 to 5. Every operation runs for any selection, so that all weights always receive a gradient."""
        values_BTD, mask_BT, ids_BT = (x.flatten(1, 2) for x in (encoded.states, encoded.mask, encoded.ids))
        states_BTD = self.context_encoder.similarity_states(encoded).flatten(1, 2)
        states_BNLD = split_segments(states_BTD, self.segment_size)
        mask_BNL = split_segments(mask_BT, self.segment_size)
        query_BD = self.context_encoder.query(encoded, question)[:, 0]
        candidates = Candidates(
            ids_BT,
            mask_BT,
            question,
            "segments",
            self.segment_size,
            lambda: self.relevance.tokenizer,
            states_BTD,
            query_BD,
        )
        relevance_BN = self.relevance.scores(candidates)
        keep_BN = self.select(relevance_BN, split_segments(ids_BT, self.segment_size), mask_BNL)

        groups_BT, weights_BT = self.assign_slots(keep_BN, states_BNLD, mask_BNL, query_BD, mask_BT.shape[1])
        G = self.max_slots(mask_BNL.shape[1])
        slots_BGD, slot_mask_BG = merge_slots(values_BTD, groups_BT, G, weights_BT)
        last_BG = last_token_positions(token_index(mask_BT), groups_BT, G)
        kept_BG = keep_BN.gather(1, last_BG // self.segment_size) & slot_mask_BG
        memory = self.context_encoder.memory(
            slots_BGD, slot_mask_BG, last_BG, encoded, kept_BG, self.context_encoder.encoder if self.quirks else None
        )
        memory.trace |= {"groups": groups_BT, "weights": weights_BT, "relevance": relevance_BN, "kept": keep_BN}
        if question.labels is not None:
            positives_BN = positive_segments(question.labels, self.segment_size)
            # Padding beyond the context may add or remove segments.
            missing = keep_BN.shape[1] - positives_BN.shape[1]
            loss = contrastive_loss(
                relevance_BN,
                nn.functional.pad(positives_BN, (0, missing)),
                mask_BNL.any(-1),
                self.contrastive_temperature,
                "sum",
            )
            memory.losses["contrastive"] = (self.contrastive_weight * loss, positives_BN.any(1).sum())
        return memory

    def select(self, relevance: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Segments to read closely: (B, N) bool. relevance (B, N), ids and mask (B, N, L)."""
        lengths_BN = mask.sum(-1)
        if self.keep == "none":
            return torch.zeros_like(lengths_BN, dtype=torch.bool)
        if self.keep == "random":
            relevance = hash_integers(hash_tokens(ids, mask)).double() / HASH_RANGE
        ratio = self.budget.requested_ratio(self.training)
        slots = None if ratio is not None else torch.full_like(lengths_BN[:, 0], self.budget.slots)
        return select_segments(relevance, lengths_BN, ratio, self.budget_rule, slots, self.skimmed_slots(lengths_BN))

    def skimmed_slots(self, lengths: Tensor | int) -> Tensor | int:
        """Upper bound on the slots of skimmed segments of the given lengths."""
        if self.skim == "drop":
            return 0 * lengths
        return -(-lengths // (self.segment_size if self.skimmer is None else self.skim_ratio))

    def assign_slots(
        self, keep: Tensor, states: Tensor, mask: Tensor, query: Tensor, width: int
    ) -> tuple[Tensor, Tensor | None]:
        """Slot of each token, in document order, and its weight: (B, T) both, T = width.

        keep (B, N), states (B, N, L, D), mask (B, N, L), query (B, D). Slots are -1 on padding and in dropped segments.
        Weights None = plain means (a kept token is the mean of itself).
        """
        slots_BN = torch.where(keep, mask.sum(-1), self.skimmed_slots(mask.sum(-1)))
        first_BN1 = (slots_BN.cumsum(1) - slots_BN)[..., None]
        inner_BNL, weights_BNL = self._skim_groups(states, mask, query)
        column_L = torch.arange(mask.shape[2], device=mask.device)
        groups_BNL = first_BN1 + torch.where(keep[..., None], column_L, inner_BNL)
        groups_BNL = groups_BNL.masked_fill(~mask | (slots_BN == 0)[..., None], -1)
        if weights_BNL is not None:
            weights_BNL = torch.where(keep[..., None], 1.0, weights_BNL).flatten(1)[:, :width]
        return groups_BNL.flatten(1)[:, :width], weights_BNL

    def _skim_groups(self, states: Tensor, mask: Tensor, query: Tensor) -> tuple[Tensor, Tensor | None]:
        """Slot of each token within its segment if that is skimmed, and its weight: (B, N, L) both."""
        if self.skimmer is None:
            weights = skim_weights(states, mask, query, self.skim_temperature, self.skim)
            return torch.zeros_like(mask, dtype=torch.int64), weights
        B, N, L = mask.shape
        groups, weights = self.skimmer(
            states.flatten(0, 1),
            mask.flatten(0, 1),
            query.repeat_interleave(N, 0),
            self.skim_ratio,
            self.skimmed_slots(L),
        )
        return groups.view(B, N, L), None if weights is None else weights.view(B, N, L)

    def max_slots(self, segments: int) -> int:
        """Upper bound on the slots of a context of at most `segments` segments, known without its tokens."""
        ratio, size = self.budget.requested_ratio(self.training), self.segment_size
        all_skimmed = max(segments * self.skimmed_slots(size), 1)
        if self.keep == "none":
            return all_skimmed
        if ratio is None:
            assert self.budget.slots is not None  # exactly one of ratio and slots is set
            return max(min(self.budget.slots, segments * size), all_skimmed)
        if self.budget_rule == "strict":
            return max(floor_divide(segments * size, ratio), all_skimmed)
        kept = floor_divide(segments, ratio)
        return max(kept * size + (segments - kept) * self.skimmed_slots(size), 1)

    def labels(self, batch: Batch) -> Tensor | None:
        """Positive tokens (B, T), left-packed as `encode` packs the context."""
        if not self.contrastive_weight:
            return None
        marks = positive_tokens(batch, self.positives, self.ignore_case)
        return Layout.of([batch.context.mask], round_to=1).pack([marks])

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Number of contexts with a positive segment."""
        if not self.contrastive_weight:
            return {}
        return {"contrastive": positive_tokens(batch, self.positives, self.ignore_case).any(1).sum()}

    @classmethod
    def problems(cls, settings: Mapping[str, Any], backbone: Any) -> list[str]:
        """As MergingCompressor.problems, and RAM's own arguments."""
        problems = super().problems(settings, backbone)
        problems += [
            f"compressor.{key}={settings[key]}: allowed are {', '.join(values)}"
            for key, values in ALLOWED_VALUES.items()
            if settings[key] not in values
        ]
        problems += relevance_problems(settings["relevance"], backbone)
        problems += cls._check_numbers(settings) + cls._check_combinations(settings)
        if not problems:
            problems += cls._check_relevance(settings)
        if (
            not problems
            and settings["encoder"]
            and cls.translation(settings, backbone)
            and (settings["keep"] != "none" or settings["contrastive_weight"])
        ):
            problems.append(
                f"compressor.encoder={settings['encoder']}: its tokenizer differs from the decoder's, whose tokens RAM "
                "keeps and labels; set compressor.keep=none compressor.contrastive_weight=0 (skim all), or give an "
                "encoder with the same tokenizer"
            )
        if settings["keep"] == "none" and settings["skim"] == "drop":
            problems.append(
                "compressor.keep=none with compressor.skim=drop leaves no memory; use compressor=no_context instead"
            )
        return problems

    @classmethod
    def _check_numbers(cls, settings: Mapping[str, Any]) -> list[str]:
        problems = []
        for key, example in (("skim_temperature", 1.0), ("contrastive_temperature", 0.1)):
            if settings[key] <= 0:
                problems.append(f"compressor.{key}={settings[key]}: must be above 0, e.g. {example}")
        if settings["skim_ratio"] < 1:
            problems.append(f"compressor.skim_ratio={settings['skim_ratio']}: must be at least 1 token, e.g. 10")
        if settings["contrastive_weight"] < 0:
            problems.append(
                f"compressor.contrastive_weight={settings['contrastive_weight']}: must be 0 (off) or more, e.g. 1.0"
            )
        if settings["segment_size"] < 2:
            problems.append(f"compressor.segment_size={settings['segment_size']}: must be at least 2 tokens, e.g. 50")
        return problems

    @staticmethod
    def _check_relevance(settings: Mapping[str, Any]) -> list[str]:
        """Combinations with a relevance other than the cosine, which alone has gradients."""
        relevance = relevance_class(settings["relevance"])
        problems = []
        if relevance.encode is not Relevance.encode:
            problems.append(
                f"compressor.relevance={settings['relevance']}: encodes contexts by itself, which only text selection "
                "supports (compressor=dense); e.g. compressor.relevance=bm25"
            )
        if relevance is not Cosine and settings["keep"] != "topk":
            problems.append(
                f"compressor.relevance={settings['relevance']}: is not used with compressor.keep={settings['keep']}; "
                "set compressor.keep=topk or compressor.relevance=cosine"
            )
        if relevance is not Cosine and settings["contrastive_weight"]:
            problems.append(
                f"compressor.relevance={settings['relevance']}: has no gradient for the contrastive loss; set "
                "compressor.contrastive_weight=0"
            )
        return problems

    @classmethod
    def data_problems(cls, settings: Mapping[str, Any], name: str, items: Any, positions: int) -> list[str]:
        """Examples without marked evidence, where the relevance reads it."""
        return evidence_problems(settings["relevance"], name, items)

    @staticmethod
    def _check_combinations(settings: Mapping[str, Any]) -> list[str]:
        problems = []
        if settings["skimmer"] and settings["skim"] == "drop":
            problems.append(
                "compressor.skimmer has nothing to merge with compressor.skim=drop; set compressor.skimmer=null or "
                "compressor.skim=query_weighted"
            )
        if settings["uniform_keep"] and settings["ratio_choices"]:
            problems.append(
                "compressor.uniform_keep=true and compressor.ratio_choices exclude each other: both draw the "
                "ratio of a training step; set compressor.uniform_keep=false or compressor.ratio_choices=null"
            )
        if settings["ratio_draw"] != "step":
            problems.append(
                f"compressor.ratio_draw={settings['ratio_draw']}: RAM draws one kept share per step; set "
                "compressor.ratio_draw=step"
            )
        if settings["quirks"] and (settings["join"] == "depth" or settings["encoder"]):
            problems.append(
                "compressor.quirks=true applies to the published form only; set compressor.join=input and "
                "compressor.encoder=null"
            )
        return problems

    @classmethod
    def longest_context(cls, settings: Mapping[str, Any], positions: int, others: int) -> int | None:
        """As `Compressor.longest_context`. At depth the context takes positions; at the input the slots do."""
        room, size = max(positions - others, 0), settings["segment_size"]
        if settings["join"] == "depth":
            return room
        ratio = 1 if settings["uniform_keep"] else min([settings["ratio"] or 1, *(settings["ratio_choices"] or [])])
        each = -(-size // settings["skim_ratio"]) if settings["skimmer"] else 1  # slots of a skimmed segment
        all_skimmed = room // each * size
        if settings["keep"] == "none":
            limit = all_skimmed
        elif settings["slots"] is not None:
            limit = all_skimmed if settings["slots"] <= room else 0
        elif settings["budget"] == "strict":
            limit = min(int(room * ratio), all_skimmed)
        else:  # N segments take at most N / ratio * (size - each) + N * each slots
            limit = int(room / ((size - each) / ratio + each)) * size
        if settings["read"] == "whole":
            encoder = settings["encoder"]
            encoder_positions = usable_positions(Backbone(encoder).config) if encoder else positions
            limit = min(limit, max(encoder_positions - others, 0))
        return limit
