"""What a reader kept and what it merged, shown in the document: one HTML page that needs nothing else.

    python scripts/reading_map.py run=outputs/NAME/RUN [dataset=nq] [n=20] [output=map.html] [key=value ...]
    python scripts/reading_map.py compressor=ram backbone=smollm2_135m dataset=nq_gold4      an untrained reader

Keys are those of eval.py, which settles, checks and loads; the first n questions of the split are answered.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime.checkout import ROOT, quiet_libraries, require_checkout

require_checkout()
quiet_libraries()

import os
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach run_cli, which tells them in a sentence

import hydra
from omegaconf import DictConfig

from breviary.config.build import build_backbone, compressor_class, compressor_settings
from breviary.config.errors import ConfigError, report_user_errors, run_cli
from breviary.config.keys import known_keys, validate_keys
from breviary.contract import Batch, Generation, Memory
from breviary.evaluation.results import source_of
from breviary.memory.trace import spans_from_trace, trace_row
from breviary.readers.compressed import CompressedReader
from breviary.report.reading_map import Card, page
from breviary.runtime.files import write_text
from data.collate import Collator
from data.metrics import scores
from eval import checked, checkpoint_of, from_command_line, loaded, say, tokenised

OWN = ("n", "output")
ONE_READER = {
    "variants": "make one map for each",
    "compare": "make one map for each run",
    "baselines": "make one with compressor=NAME and no run",
}


def own_problems(cfg: DictConfig, n: Any, output: Any) -> list[str]:
    """What is wrong with the keys of this command, a sentence each."""
    found = []
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        found.append(f"n={n}: must be a whole number of at least 1, e.g. n=20")
    if output is not None and Path(str(output)).is_dir():
        found.append(f"output={output}: is a folder; name a file, e.g. output={output}/map.html")
    found += [
        f"{key}={list(cfg[key])}: a map shows one reader; {instead}" for key, instead in ONE_READER.items() if cfg[key]
    ]
    return found


def asked_budget(cfg: DictConfig, requested_ratio: float | None) -> str:
    """The budget as the configuration says it."""
    if requested_ratio is not None:
        return f"{requested_ratio:g}x"
    slots = cfg.compressor.get("slots")
    return "nothing" if slots is None else f"{slots} slots"


def batch_cards(cfg: DictConfig, batch: Batch, answers: list[str], memory: Memory, asked: str) -> Iterator[Card]:
    """A card for each example of a batch."""
    for b, (example, answer) in enumerate(zip(batch.examples, answers)):
        real = batch.context.mask[b]
        offsets = tuple((start, end) for start, end in batch.offsets[b][real].tolist())
        gold = () if batch.evidence is None else tuple(batch.evidence[b][real].tolist())
        parts = spans_from_trace(
            len(offsets), trace_row(memory.trace, b, len(batch)), cfg.compressor.get("segment_size")
        )
        score = scores(answer, example.answers)
        yield Card(
            example.question,
            answer,
            example.answers,
            score["em"] == 1,
            score["f1"],
            example.context,
            offsets,
            gold,
            parts,
            int(memory.mask[b].sum()),
            asked,
        )


def make_map(cfg: DictConfig, n: int, output: str | None) -> Path:
    """Answers n questions with the reader of a settled configuration and writes the page.

    Raises ValueError (ConfigError) for everything that is wrong, before any weight is loaded.
    """
    cfg, problems = validate_keys(cfg)
    problems += own_problems(cfg, n, output)
    cfg.examples = n if isinstance(n, int) and n > 0 else 1
    cfg.variants, cfg.compare, cfg.baselines = [], [], []
    [cfg], examples = checked(cfg, problems)
    backbone = build_backbone(cfg)
    tokenizer = backbone.tokenizer()
    if not tokenizer.is_fast:
        raise ConfigError(
            [
                f"the tokenizer {tokenizer.name_or_path!r} gives no character offsets, by which a map finds its "
                "tokens in the text; use the fast tokenizer of this backbone"
            ]
        )
    if (own := compressor_class(cfg).translation(compressor_settings(cfg), backbone)) is not None:
        raise ConfigError(
            [
                f"compressor.encoder={cfg.compressor.encoder}: reads with another tokenizer, {own.target.name_or_path!r}, than the "
                "decoder's, in whose tokens a map is drawn; from Python, memory.token_spans() tells what became of a document"
            ]
        )
    checkpoint = checkpoint_of(cfg)
    reader = loaded(cfg, backbone, checkpoint).eval()
    reader.context_cache = reader.context_cache_class(cfg.eval_batch_size)  # answering and mapping read a context once
    items = tokenised(cfg, backbone, examples)
    say(f"{cfg.reader}: {items.report()}")
    cards = answered(cfg, reader, items, Collator(tokenizer.pad_token_id or 0))
    compressor = cfg.compressor
    settings = [f"{key}={compressor[key]}" for key in ("join", "ratio", "slots", "segment_size") if compressor.get(key)]
    facts = [
        ("Reader", " ".join([f"{cfg.reader}{'' if cfg.run else ' (untrained)'}", *settings])),
        ("Run", f"{cfg.run}, {checkpoint.name}" if cfg.run else "none: the untouched backbone"),
        ("Backbone", backbone.description),
        ("Data", f"{cfg.split} split of {source_of(cfg.dataset, cfg.split)}, first {len(cards)} questions"),
    ]
    default = Path(cfg.run) if cfg.run else Path(cfg.paths.outputs) / "reading_map"
    file = Path(output or default / ("reading_map.html" if cfg.run else f"{cfg.reader}.html"))
    write_text(file, page(facts, cards))
    return file


def answered(cfg: DictConfig, reader: CompressedReader, items: Any, collate: Collator) -> list[Card]:
    """A card for every item."""
    device = next(reader.parameters()).device
    asked = asked_budget(cfg, reader.requested_ratio)
    cards: list[Card] = []
    for start in range(0, len(items), cfg.eval_batch_size):
        batch = collate([items[i] for i in range(start, min(start + cfg.eval_batch_size, len(items)))]).to(device)
        answers = reader.answer(batch, Generation(**cfg.generation))
        cards += batch_cards(cfg, batch, answers, reader.memory(batch), asked)
        say(f"  {cfg.reader}: {len(cards)}/{len(items)} answered", end="\r")
    say("")
    return cards


@hydra.main(version_base="1.3", config_path=str(ROOT / "configs"), config_name="reading_map")
@report_user_errors
def main(cfg: DictConfig) -> None:
    """Writes the page and says where it is."""
    n, output = cfg.n, cfg.output
    file = make_map(from_command_line(cfg, OWN), n, None if output is None else str(output))
    say(f"reading map {file}")


def config_keys() -> list[str]:
    """Every key that the command line could have meant."""
    return known_keys("reading_map")


if __name__ == "__main__":
    run_cli(main, config_keys)
