"""References that generation settings cut: an answer equal to such a reference cannot be generated."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from breviary.runtime.spelling import override


def answer_notes(items: Any, cfg: DictConfig, is_autoencoder: bool) -> list[str]:
    """How many references exceed generation.max_new_tokens, fall below min_new_tokens, or hold a stop string.

    items           a tokenised split: `examples`, `lengths` of the contexts, `reference_lengths` with end token
    is_autoencoder  the answers are the contexts
    """
    if is_autoencoder:
        texts, name = (example.context for example in items.examples), "texts"
        lengths, spare = [length + 1 for length in items.lengths], 16
    else:
        template, name, spare = cfg.prompt.answer_template, "references", 0
        texts = (
            template.replace("{answer}", answer).rstrip() for example in items.examples for answer in example.answers
        )
        lengths = [length for row in items.reference_lengths for length in row]
    generation, notes = cfg.generation, []
    most, least = generation.max_new_tokens, generation.min_new_tokens
    long = sum(
        length - (not is_autoencoder) > most for length in lengths
    )  # an answer needs no end token to be complete
    if long:
        notes.append(
            f"{long} of {len(lengths)} {name} are longer than generation.max_new_tokens={most} tokens "
            f"and would be cut; generation.max_new_tokens={max(lengths) + spare} would suffice"
        )
    short = sum(length - 1 < least for length in lengths)
    if short:
        notes.append(
            f"{short} of {len(lengths)} {name} are shorter than generation.min_new_tokens={least} tokens: "
            "answers go on after them; generation.min_new_tokens=0 lets them end"
        )
    stopped = sum(any(stop in text for stop in generation.stop) for text in texts)
    if stopped:
        notes.append(
            f"{stopped} of {len(lengths)} {name} contain one of generation.stop={list(generation.stop)}, where an "
            f"answer ends; {override('generation.stop', [])} waits for the end token"
        )
    return notes
