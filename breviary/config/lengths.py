"""TODO DOC"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from breviary.config.build import compressor_class, compressor_settings, objective_class, objective_settings
from breviary.contract import Compressor


def check_lengths(cfg: DictConfig, backbone: Any, splits: dict[str, Any]) -> list[str]:
    """Examples whose tokens find no place in the backbone's positions; `splits` are tokenised."""
    positions = backbone.config.max_position_embeddings
    cls, settings = compressor_class(cfg), compressor_settings(cfg)
    teacher_reads_context = objective_class(cfg).teacher_reads_context
    found = []
    for name, items in splits.items():
        found += check_min_length(cfg, name, items) + check_group_size(cfg, name, items)
        least = max_other_tokens(cfg, items, 0)
        if least >= positions:
            found.append(
                f"dataset {name}: prefix, question and answer take up to {least} tokens, the backbone has "
                f"{positions} positions; shorten prompt.template or generation.max_new_tokens"
            )
            continue
        longest = max(items.lengths, default=0)
        limit = max_context_length(cfg, cls, settings, positions, items)
        room = positions - max_other_tokens(cfg, items, longest)
        if teacher_reads_context and longest > room:
            found.append(
                f"dataset {name}: this objective's teacher reads whole contexts, and the longest of {longest} tokens does "
                f"not fit beside {positions - room} further ones in the backbone's {positions} positions; set "
                f"limits.max_context_tokens={room} to cut contexts, or shorter texts"
            )
        if longest > limit:
            others = positions - room
            ways = [f"limits.max_context_tokens={limit} to cut contexts"] if limit else []
            ways += _fitting_settings(cls, settings, positions, others, longest, limit) if others < positions else []
            again = ", of which it is one itself, to be written down," if objective_class(cfg).is_autoencoder else ""
            found.append(
                f"dataset {name}: the longest context of {longest} tokens does not fit beside {others} "
                f"further ones{again} in the backbone's {positions} positions (at most {limit} here); "
                f"set {' or '.join(ways) or 'a backbone of more positions'}"
            )
        elif issubclass(cls, Compressor):
            found += check_encoder_lengths(cls, settings, backbone, name, items, positions - room)
    return found


def check_encoder_lengths(
    cls: type[Compressor], settings: dict[str, Any], backbone: Any, name: str, items: Any, others: int
) -> list[str]:
    """Contexts that are too long in the tokens of an encoder with a tokenizer of its own."""
    translation = cls.translation(settings, backbone)
    limit = cls.longest_context(settings, backbone.config.max_position_embeddings, others) if translation else None
    if limit is None:
        return []
    longest = max((len(translation.rows([items[i]["context"]])[0]) for i in range(len(items))), default=0)
    return (
        [
            f"dataset {name}: the longest context is {longest} tokens of the tokenizer of compressor.encoder, of which at most "
            f"{limit} fit beside {others} further ones; set limits.max_context_tokens="
            f"{max(max(items.lengths) * limit // longest, 1)}, or a higher compressor.ratio"
        ]
        if longest > limit
        else []
    )


def max_other_tokens(cfg: DictConfig, items: Any, context_tokens: int) -> int:
    """Most tokens that stand beside a context of at most so many: prefix, question or prompt, what is asked, and room for
    what is generated."""
    most = max(items.others, default=0)
    if objective_class(cfg).is_autoencoder:  # the context itself and the end token are asked for, in the answer's place
        most = max(
            (
                other - answer + min(length, context_tokens) + 1
                for other, answer, length in zip(items.others, items.answers, items.lengths)
            ),
            default=0,
        )
    return most + cfg.generation.max_new_tokens


def max_context_length(cfg: DictConfig, cls: type, settings: dict[str, Any], positions: int, items: Any) -> int:
    """Context tokens to which contexts must be cut so that all find a place; the longest one's where nothing is to be cut."""

    def is_fitting(tokens: int) -> bool:
        others = max_other_tokens(cfg, items, tokens)
        limit = cls.longest_context(settings, positions, others) if others < positions else -1
        return limit is None or limit >= tokens

    least, most = 0, max(items.lengths, default=0)
    if is_fitting(most):
        return most
    while most - least > 1:  # the longer the contexts, the less fits
        middle = (least + most) // 2
        least, most = (middle, most) if is_fitting(middle) else (least, middle)
    return least


def check_min_length(cfg: DictConfig, name: str, items: Any) -> list[str]:
    """Contexts that are too short for what the objective asks; `items` are tokenised."""
    fewest = objective_class(cfg).min_context_tokens(objective_settings(cfg))
    few = sum(length < fewest for length in items.lengths)
    return (
        [
            f"dataset {name}: {few} contexts of fewer than {fewest} tokens, of which the objective can ask nothing; leave them "
            "out of the data, or use objective=answer"
        ]
        if few
        else []
    )


def check_group_size(cfg: DictConfig, name: str, items: Any) -> list[str]:
    """Texts to be restored that are shorter than what one slot is to stand for: nothing would be compressed."""
    settings = compressor_settings(cfg)
    asked = [settings.get("ratio") or 1, *(settings.get("ratio_choices") or [])]
    short = [length for length in items.lengths if 0 < length < max(asked)]
    if not objective_class(cfg).is_autoencoder or not short:
        return []
    return [
        f"dataset {name}: {len(short)} texts, the shortest of {min(short)} tokens, are shorter than a group of "
        f"{max(asked):g} tokens (compressor.ratio, ratio_choices); lower the ratio, or take longer texts, "
        "e.g. dataset.min_words=48"
    ]


def generation_notes(cfg: DictConfig, items: Any) -> list[str]:
    """What of `generation` keeps texts from being written down again as a whole."""
    if not objective_class(cfg).is_autoencoder:
        return []
    most, stop = cfg.generation.max_new_tokens, list(cfg.generation.stop)
    long = sum(length + 1 > most for length in items.lengths)  # the end token counts
    stopped = sum(any(text in example.context for text in stop) for example in items.examples)
    notes = (
        [
            f"{long} of {len(items)} texts are longer than generation.max_new_tokens={most}: what is written of them is cut; "
            f"{max(items.lengths) + 16} would do"
        ]
        if long
        else []
    )
    return notes + (
        [
            f"{stopped} of {len(items)} texts hold one of generation.stop={stop}, where writing ends; "
            "generation.stop=[] waits for the end token"
        ]
        if stopped
        else []
    )


def _fitting_settings(
    cls: type[Compressor], settings: dict[str, Any], positions: int, others: int, longest: int, limit: int
) -> list[str]:
    """Settings of the compressor under which `longest` tokens would fit, as key=value."""
    room = positions - others
    segment = min(room, limit)
    smaller = {"segment_size": segment} if settings.get("segment_size", 0) > segment > 0 else {}
    larger = {"ratio": -(-longest // room)} if settings.get("ratio") and not settings.get("ratio_choices") else {}
    for change in (smaller, larger, smaller | larger):
        limit = cls.longest_context(settings | change, positions, others)
        if change and (limit is None or limit >= longest):
            return [" ".join(f"compressor.{key}={value}" for key, value in change.items())]
    return []
