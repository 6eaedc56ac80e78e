"""Which context lengths fit: the backbone's positions hold context or memory, question, answer and generated tokens."""

from __future__ import annotations

from typing import Any

from breviary.backbones.pretrained import Backbone, usable_positions
from breviary.backbones.tiny import TinyBackbone
from breviary.config.build import ReaderSpec
from breviary.contract import Compressor


class ContextLimits:
    """Checks tokenised splits against a reader and its backbone.

    `items` of every method is a tokenised split: `lengths` of the contexts, `other_lengths` (prefix, question or
    prompt, and answer) and `answer_lengths`, in tokens, one entry per example.
    max_new_tokens  tokens reserved for generation
    """

    def __init__(self, spec: ReaderSpec, backbone: Backbone | TinyBackbone, max_new_tokens: int):
        self.spec, self.backbone, self.max_new_tokens = spec, backbone, max_new_tokens
        self.positions: int = usable_positions(backbone.config)

    def other_tokens(self, items: Any, context_tokens: int) -> int:
        """Largest number of tokens beside a context of at most `context_tokens` tokens, generated ones included."""
        most = max(items.other_lengths, default=0)
        if self.spec.objective.is_autoencoder:  # the answer is the context itself and the end token
            most = max(
                (
                    other - answer + min(length, context_tokens) + 1
                    for other, answer, length in zip(items.other_lengths, items.answer_lengths, items.lengths)
                ),
                default=0,
            )
        return most + self.max_new_tokens

    def longest_fitting(self, items: Any, settings: dict[str, Any] | None = None) -> int:
        """Tokens to which contexts must be cut so that every example fits; the longest length where all fit.

        settings  constructor arguments of the compressor, where they differ from the configured ones
        """
        settings = self.spec.settings if settings is None else settings

        def is_fitting(tokens: int) -> bool:
            others = self.other_tokens(items, tokens)
            if others >= self.positions:
                return False
            limit = self.spec.compressor.longest_context(settings, self.positions, others)
            return limit is None or limit >= tokens

        least, most = 0, max(items.lengths, default=0)
        if is_fitting(most):
            return most
        while most - least > 1:  # fitting is monotonic in the length
            middle = (least + most) // 2
            least, most = (middle, most) if is_fitting(middle) else (least, middle)
        return least

    # -------------------------------------------------------------- checks, each returns error messages

    def check(self, splits: dict[str, Any]) -> list[str]:
        """Checks all splits of a training, {name: items}."""
        return [problem for name, items in splits.items() for problem in self._check_split(name, items)]

    def check_data(self, name: str, items: Any) -> list[str]:
        """Examples that lack what objective or reader read of them."""
        room = self.positions - self.max_new_tokens
        problems = self._check_min_length(name, items) + self._check_targets(name, items)
        return problems + self.spec.compressor.data_problems(self.spec.settings, name, items, room)

    def _check_targets(self, name: str, items: Any) -> list[str]:
        """Contexts with tokens to supervise, for readers that supervise answers alone."""
        marked = sum(bool(length) for length in items.target_lengths)
        if not marked or getattr(self.spec.compressor, "supervises_context", False):
            return []
        return [
            f"dataset {name}: {marked} chats have earlier messages of the assistant in their context, which this "
            "reader does not learn to predict; set dataset.turns=each for an example for each of them, or "
            "dataset.turns=last"
        ]

    def _check_min_length(self, name: str, items: Any) -> list[str]:
        """Contexts that are too short for the objective to supervise anything."""
        fewest = self.spec.objective.min_context_tokens(self.spec.objective_settings)
        few = sum(length < fewest for length in items.lengths)
        if not few:
            return []
        return [
            f"dataset {name}: {few} contexts of fewer than {fewest} tokens, of which the objective can supervise "
            "nothing; remove them from the data, or use objective=answer"
        ]

    def _check_split(self, name: str, items: Any) -> list[str]:
        problems = self.check_data(name, items) + self._check_group_size(name, items)
        least = self.other_tokens(items, 0)
        if least >= self.positions:
            return [
                *problems,
                f"dataset {name}: prefix, question and answer take up to {least} tokens, the backbone has "
                f"{self.positions} positions; shorten prompt.template or generation.max_new_tokens",
            ]
        longest = max(items.lengths, default=0)
        limit = self.longest_fitting(items)
        room = self.positions - self.other_tokens(items, longest)
        if self.spec.objective.teacher_reads_context and longest > room:
            problems.append(
                f"dataset {name}: this objective's teacher reads whole contexts, and the longest of {longest} tokens "
                f"does not fit beside {self.positions - room} further ones in the backbone's {self.positions} "
                f"positions; set limits.max_context_tokens={room} to cut contexts, or shorter texts"
            )
        if longest > limit:
            problems.append(self._too_long(name, longest, limit, self.positions - room))
        elif issubclass(self.spec.compressor, Compressor):
            problems += self._check_encoder_tokens(self.spec.compressor, name, items, self.positions - room)
        return problems

    def _too_long(self, name: str, longest: int, limit: int, others: int) -> str:
        ways = [f"limits.max_context_tokens={limit} to cut contexts"] if limit else []
        ways += self._fitting_settings(others, longest, limit) if others < self.positions else []
        again = ", which include the context itself as the answer," if self.spec.objective.is_autoencoder else ""
        return (
            f"dataset {name}: the longest context of {longest} tokens does not fit beside {others} further ones{again} "
            f"in the backbone's {self.positions} positions (at most {limit} here); "
            f"set {' or '.join(ways) or 'a backbone of more positions'}"
        )

    def _fitting_settings(self, others: int, longest: int, limit: int) -> list[str]:
        """Settings of the compressor under which `longest` tokens would fit, as key=value."""
        settings, room = self.spec.settings, self.positions - others
        segment = min(room, limit)
        smaller = {"segment_size": segment} if settings.get("segment_size", 0) > segment > 0 else {}
        is_fixed = settings.get("ratio") and not settings.get("ratio_choices")
        least = -(-longest // room)
        # Every segment may round up by one slot: the smallest ratio that fits can be larger than `least`.
        ratios = [{"ratio": ratio} for ratio in range(least, longest + 1)] if is_fixed else []
        for change in (smaller, *ratios, *(smaller | larger for larger in ratios)):
            fitting = self.spec.compressor.longest_context(settings | change, self.positions, others)
            if change and (fitting is None or fitting >= longest):
                return [" ".join(f"compressor.{key}={value}" for key, value in change.items())]
        return []

    def _check_encoder_tokens(self, compressor: type[Compressor], name: str, items: Any, others: int) -> list[str]:
        """Contexts that are too long in the tokens of an encoder with its own tokenizer."""
        translation = compressor.translation(self.spec.settings, self.backbone)
        limit = compressor.longest_context(self.spec.settings, self.positions, others) if translation else None
        if limit is None:
            return []
        longest = max((len(translation.rows([items[i]["context"]])[0]) for i in range(len(items))), default=0)
        if longest <= limit:
            return []
        return [
            f"dataset {name}: the longest context is {longest} tokens of the tokenizer of compressor.encoder, of which "
            f"at most {limit} fit beside {others} further ones; set limits.max_context_tokens="
            f"{max(max(items.lengths) * limit // longest, 1)}, or a higher compressor.ratio"
        ]

    def _check_group_size(self, name: str, items: Any) -> list[str]:
        """Texts to reconstruct that are shorter than one group: nothing would be compressed."""
        settings = self.spec.settings
        ratio = max([settings.get("ratio") or 1, *(settings.get("ratio_choices") or [])])
        short = [length for length in items.lengths if 0 < length < ratio]
        if not self.spec.objective.is_autoencoder or not short:
            return []
        return [
            f"dataset {name}: {len(short)} texts, the shortest of {min(short)} tokens, are shorter than a group of "
            f"{ratio:g} tokens (compressor.ratio, ratio_choices); lower the ratio, raise limits.max_context_tokens, "
            "or take longer texts, e.g. dataset.min_words=48"
        ]
