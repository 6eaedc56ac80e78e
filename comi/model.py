"""COMI (arXiv 2602.01719): coarse-to-fine compression by marginal information gain.

Shape letters: R segment rows, L tokens of a segment, G slots of a segment, D hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from breviary.backbones.pretrained import Backbone
from breviary.backbones.stack import Stack
from breviary.backbones.tiny import TinyBackbone
from breviary.contract import Encoded, Question
from breviary.memory.merging import MergingCompressor
from breviary.selection.named import build_relevance, evidence_problems, relevance_class, relevance_problems
from breviary.selection.relevance import Candidates, Relevance
from comi.grouping import GainGrouping

LEARNED_WEIGHTS = ("none", "merge")


class COMI(MergingCompressor):
    """Tokens of high marginal information gain get short groups and large weights.

    Coarse (spec A3): number of tokens of each slot, from the gain of each initial group's representative.
    Fine (A4): weights of each group's tokens, a softmax of their gains within the group.

    coarse, fine         the two stages; off: consecutive groups of `ratio`, plain means. Both off is GMSA's pooling
    redundancy_coarse, redundancy_fine  the gain's second term in each stage
    alpha, beta          weights of relevance and redundancy in the gain (the paper: 1, 1)
    temperature          of the coarse softmax (the paper: 1)
    min_group_size       tokens reserved for each group; 0 = the published rule, which may drop groups
    learned_weights      none | merge: alpha and beta of the fine stage are parameters. The coarse stage has none:
                         its sizes are integers and pass no gradient
    quirks               the published numerics, see comi/README.md
    query_free           the question is ignored: relevance is 0 and the gain is redundancy alone, e.g. for autoencoding
    relevance            cosine: of a token's state with the question's, as published | attention | bm25 | gold |
                         random, or another object of breviary/selection: the score of a token's segment, divided by the
                         highest of its context, takes the cosine's place in both stages
    relevance_size       tokens of such a segment
    Further arguments as in MergingCompressor and ContextEncoder. Costs O(L) memory per segment beside its states.
    """

    compress_only_keys = MergingCompressor.compress_only_keys | {
        "coarse",
        "fine",
        "redundancy_coarse",
        "redundancy_fine",
        "alpha",
        "beta",
        "temperature",
        "min_group_size",
        "relevance",
        "relevance_size",
    }

    former_names = {
        **MergingCompressor.former_names,
        "merge_alpha": "gain.merge_alpha",
        "merge_beta": "gain.merge_beta",
    }

    def __init__(
        self,
        backbone: Backbone | TinyBackbone,
        decoder: Stack,
        *,
        coarse: bool = True,
        fine: bool = True,
        redundancy_coarse: bool = True,
        redundancy_fine: bool = True,
        alpha: float = 1.0,
        beta: float = 1.0,
        temperature: float = 1.0,
        min_group_size: int = 0,
        learned_weights: str = "none",
        quirks: bool = False,
        query_free: bool = False,
        relevance: Relevance | dict | str = "cosine",
        relevance_size: int = 50,
        **merging: Any,
    ):
        super().__init__(backbone, decoder, **merging)
        self.needs_question = not query_free
        assert not isinstance(relevance, dict), relevance  # a dict in the configuration only, from which it is built
        self.relevance = None if relevance == "cosine" else build_relevance(relevance)
        self.relevance_size = relevance_size
        if self.relevance is not None:
            self.relevance.prepare(backbone, decoder)
            self.needs_evidence = self.relevance.needs_evidence
        self.gain = GainGrouping(
            coarse,
            fine,
            redundancy_coarse,
            redundancy_fine,
            alpha,
            beta,
            temperature,
            min_group_size,
            learned_weights,
            quirks,
        )

    def group_tokens(
        self,
        states: Tensor,
        mask: Tensor,
        query: Tensor | None,
        ratio: int | Tensor,
        slots: int,
        relevance: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """As `GainGrouping.forward`; without a question, relevance is 0 for every token."""
        query = torch.zeros_like(states[:, 0]) if query is None else query
        return self.gain(states, mask, query, ratio, slots, relevance)

    def group_inputs(self, encoded: Encoded, question: Question) -> dict[str, Any]:
        """The relevance of each token, (R, L) in [0, 1], where it is not the cosine."""
        if self.relevance is None:
            return {}
        ids, mask = encoded.ids.flatten(1, 2), encoded.mask.flatten(1, 2)
        seen = self.relevance
        candidates = Candidates(ids, mask, question, "segments", self.relevance_size, lambda: seen.tokenizer)
        scores = seen.scores(candidates)
        of_tokens = scores.gather(1, candidates.numbers.clamp(min=0)).clamp(min=0).masked_fill(~mask, 0)
        highest = of_tokens.amax(1, keepdim=True).clamp(min=torch.finfo(of_tokens.dtype).tiny)
        return {"relevance": (of_tokens / highest).view(encoded.mask.shape).flatten(0, 1)}

    def single_token_weights(self, mask: Tensor) -> Tensor | None:
        """Ones; with learned weights their gradients are 0."""
        return self.gain(None, mask, None, 1, mask.shape[1])[1]

    @classmethod
    def problems(cls, settings: Mapping[str, Any], backbone: Any) -> list[str]:
        """As MergingCompressor.problems, and COMI's own arguments."""
        problems = super().problems(settings, backbone)
        if settings["learned_weights"] not in LEARNED_WEIGHTS:
            problems.append(
                f"compressor.learned_weights={settings['learned_weights']}: allowed are {', '.join(LEARNED_WEIGHTS)}; "
                "the coarse stage yields integer sizes, so its weights would never receive a gradient"
            )
        if settings["learned_weights"] == "merge" and not settings["fine"]:
            problems.append(
                "compressor.learned_weights=merge: has no weights to learn with compressor.fine=false; set "
                "compressor.learned_weights=none or compressor.fine=true"
            )
        if settings["query_free"] and settings["learned_weights"] == "merge":
            problems.append(
                "compressor.learned_weights=merge: the weight of relevance would never receive a gradient with "
                "compressor.query_free=true; set compressor.learned_weights=none or compressor.query_free=false"
            )
        problems += cls._relevance_problems(settings, backbone)
        if settings["temperature"] <= 0:
            problems.append(f"compressor.temperature={settings['temperature']}: must be above 0, e.g. 1.0")
        if settings["min_group_size"] < 0:
            problems.append(f"compressor.min_group_size={settings['min_group_size']}: must be 0 or more tokens, e.g. 0")
        return problems

    @classmethod
    def _relevance_problems(cls, settings: Mapping[str, Any], backbone: Any) -> list[str]:
        """Error messages for a relevance in place of the cosine."""
        relevance = settings["relevance"]
        problems = relevance_problems(relevance, backbone)
        if settings["relevance_size"] < 1:
            problems.append(
                f"compressor.relevance_size={settings['relevance_size']}: must be at least 1 token, e.g. 50"
            )
        if problems or relevance == "cosine":
            return problems
        kind = relevance_class(relevance)
        if kind.needs_states or kind.encode is not Relevance.encode:
            problems.append(
                f"compressor.relevance={relevance}: compares states of its own; allowed are attention, bm25, gold, "
                "random, or cosine as published"
            )
        if settings["query_free"]:
            problems.append(
                f"compressor.relevance={relevance}: is not used with compressor.query_free=true; set "
                "compressor.relevance=cosine or compressor.query_free=false"
            )
        if settings["encoder"]:
            problems.append(
                f"compressor.encoder={settings['encoder']}: relevance={relevance} reads the decoder's tokens; "
                "set compressor.encoder=null or compressor.relevance=cosine"
            )
        return problems

    @classmethod
    def data_problems(cls, settings: Mapping[str, Any], name: str, items: Any, positions: int) -> list[str]:
        """Examples without marked evidence, where the relevance reads it."""
        return [] if settings["relevance"] == "cosine" else evidence_problems(settings["relevance"], name, items)
