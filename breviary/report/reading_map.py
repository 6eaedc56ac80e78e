"""Reading maps: answers the first questions of a split with one reader and shows how it compressed each context.

From a resolved evaluation configuration to cards, and from cards to an HTML file (breviary.report.reading_map_page).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from breviary.config.build import ReaderSpec, build_backbone
from breviary.config.errors import ConfigError
from breviary.contract import Batch, Compressor, Example, Generation, KeyValueMemory, Memory
from breviary.evaluation.facts import training_record, training_text, with_training
from breviary.evaluation.resolve import find_checkpoint
from breviary.evaluation.session import EvaluationSession, print_untrained
from breviary.memory.trace import spans_from_trace, trace_row
from breviary.report.reading_map_cards import write_cards
from breviary.report.reading_map_marks import Card
from breviary.report.reading_map_page import render_page
from breviary.runs.dataset_names import dataset_label
from breviary.runtime.distributed import print_progress, print_rank0
from breviary.runtime.files import write_text

SINGLE_READER = {
    "variants": "make one map for each",
    "compare": "make one map for each run",
    "baselines": "make one with compressor=NAME and no run",
}

SHOWN_SETTINGS = ("join", "ratio", "slots", "segment_size")


def make_reading_map(session: EvaluationSession, cfg: DictConfig, n: Any, output: str | None) -> Path:
    """Answers the first n questions of the split and writes the page; returns its path.

    output  HTML file; None = reading_map.html in the run, or <paths.outputs>/reading_map/READER.html without a run
    Its cards stand beside it as JSON: the page of a report shows some of those that are in the run.
    Raises: ConfigError with every problem of the configuration, before any weight is loaded.
    """
    problems = check_options(cfg, n, output)
    cfg = cfg.copy()
    cfg.examples = n if isinstance(n, int) and n > 0 else 1
    cfg.variants, cfg.compare, cfg.baselines = [], [], []
    [cfg], examples = session.check(cfg, problems)
    require_token_spans(cfg)
    cards = make_cards(session, cfg, examples)
    default = Path(cfg.run) if cfg.run else Path(cfg.paths.outputs) / "reading_map"
    file = Path(output or default / ("reading_map.html" if cfg.run else f"{cfg.reader}.html"))
    facts = map_facts(cfg, len(cards))
    write_text(file, render_page(facts, cards))
    write_cards(file.with_suffix(".json"), facts, cards)
    return file


def check_options(cfg: DictConfig, n: Any, output: str | None) -> list[str]:
    """Error messages for the keys of this command alone."""
    problems = []
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        problems.append(f"n={n}: must be a whole number of at least 1, e.g. n=20")
    if output is not None and Path(output).is_dir():
        problems.append(f"output={output}: is a folder; name a file, e.g. output={output}/map.html")
    problems += [
        f"{key}={list(cfg[key])}: a map shows one reader; {instead}"
        for key, instead in SINGLE_READER.items()
        if cfg[key]
    ]
    return problems


def require_token_spans(cfg: DictConfig) -> None:
    """Raises ConfigError for readers without slots, and for tokenizers that do not relate tokens to characters."""
    backbone, spec = build_backbone(cfg), ReaderSpec.of(cfg)
    if not issubclass(spec.compressor, Compressor):
        raise ConfigError(
            [f"compressor={spec.compressor.__name__}: has no slots that a map could show; choose e.g. compressor=comi"]
        )
    tokenizer = backbone.tokenizer()
    if not tokenizer.is_fast:
        raise ConfigError(
            [
                f"the tokenizer {tokenizer.name_or_path!r} provides no character offsets, which a map needs to mark "
                "tokens in the text; use the fast tokenizer of this backbone"
            ]
        )
    translation = spec.compressor.translation(spec.settings, backbone)
    if translation is not None:
        raise ConfigError(
            [
                f"compressor.encoder={cfg.compressor.encoder}: uses another tokenizer, "
                f"{translation.target.name_or_path!r}, than the decoder, whose tokens a map shows; from Python, "
                "memory.token_spans() describes a document in the encoder's tokens"
            ]
        )


def make_cards(session: EvaluationSession, cfg: DictConfig, examples: Sequence[Example]) -> list[Card]:
    """Loads the reader, answers every example and returns a card for each."""
    reader = session.load_reader(cfg, find_checkpoint(cfg)).eval()
    if not cfg.run:
        print_untrained(cfg.reader, reader)
    reader.context_cache = reader.context_cache_class(cfg.eval_batch_size)  # `answer` and `memory` share the encoding
    items = session.tokenise(cfg, examples)
    print_rank0(f"{cfg.reader}: {items.report()}")
    collate = session.text.collator(build_backbone(cfg).tokenizer())
    device = next(reader.parameters()).device
    requested = requested_budget(cfg, reader.requested_ratio)
    cards: list[Card] = []
    for start in range(0, len(items), cfg.eval_batch_size):
        batch = collate([items[i] for i in range(start, min(start + cfg.eval_batch_size, len(items)))]).to(device)
        answers = reader.answer(batch, Generation(**cfg.generation))
        cards += batch_cards(session, cfg, batch, answers, reader.memory(batch), requested)
        print_progress(f"  {cfg.reader}: {len(cards)}/{len(items)} answered")
    print_rank0(f"  {cfg.reader}: {len(items)}/{len(items)} answered")
    return cards


def batch_cards(
    session: EvaluationSession,
    cfg: DictConfig,
    batch: Batch,
    answers: list[str],
    memory: Memory | KeyValueMemory,
    requested: str | None,
) -> Iterator[Card]:
    """A card for each example of a batch."""
    assert batch.offsets is not None  # `require_token_spans` has checked the tokenizer
    for b, (example, answer) in enumerate(zip(batch.examples, answers)):
        mask = batch.context.mask[b]
        offsets = tuple((start, end) for start, end in batch.offsets[b][mask].tolist())
        trace = trace_row(memory.trace, b, len(batch))
        scores = session.text.scores(answer, example.answers)
        yield Card(
            question=example.question,
            prediction=answer,
            references=example.answers,
            exact=scores["em"] == 1,
            f1=scores["f1"],
            context=example.context,
            offsets=offsets,
            gold=() if batch.evidence is None else tuple(batch.evidence[b][mask].tolist()),
            spans=spans_from_trace(len(offsets), trace, cfg.compressor.get("segment_size")),
            slots=int(memory.slots[b] if isinstance(memory, KeyValueMemory) else memory.mask[b].sum()),
            requested=requested,
        )


def requested_budget(cfg: DictConfig, requested_ratio: float | None) -> str | None:
    """The budget in the configuration: "4x", "5 slots", or None."""
    if requested_ratio is not None:
        return f"{requested_ratio:g}x"
    slots = cfg.compressor.get("slots")
    return None if slots is None else f"{slots} slots"


def map_facts(cfg: DictConfig, questions: int) -> list[tuple[str, str]]:
    """(name, value) of the reader and the data, for the head of the page."""
    checkpoint = find_checkpoint(cfg)
    run = "/".join(Path(cfg.run).parts[-2:]) if cfg.run else None
    training = training_text([training_record(cfg.run, checkpoint)])
    settings = [f"{key}={cfg.compressor[key]}" for key in SHOWN_SETTINGS if cfg.compressor.get(key)]
    return [
        ("Reader", " ".join([with_training(cfg.reader, training), *settings])),
        ("Run", f"{run}, {checkpoint.name}" if checkpoint else "none: weights as initialised"),
        ("Backbone", build_backbone(cfg).description),
        ("Data", f"{cfg.split} split of {dataset_label(cfg.dataset, cfg.split)}, first {questions} questions"),
    ]
