"""How many gold segments a reader ranks first: recall of gold segments against the share of segments kept.

    python scripts/gold_recall.py latest
    python scripts/gold_recall.py outputs/ram_facts outputs/attention_nq_small --ratios 2 4 8 16 --output recall.json
    python scripts/gold_recall.py compressor=attention backbone=smollm2_135m dataset=hotpotqa --examples 60

RUN is a run of a reader that ranks segments (compressor=ram or attention); without one, the settings name an untrained
reader, and `variants` further ones. The table compares it with the same reader untrained, BM25 on the same segments,
chance, and the best possible ranking. A segment is gold if it contains a token of a gold
passage. For each ratio, floor(segments / ratio) segments are kept, at least one. Values are means over examples with
95% intervals, and paired differences of the trained reader from untrained and BM25. No answer is generated.

key=value are overrides as for eval.py, e.g. dataset=nq_gold4 split=validation.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime.checkout import quiet_libraries, require_checkout

require_checkout()
quiet_libraries()

from omegaconf import DictConfig
from rich.console import Console

from breviary.config.cli.run_names import FORMS
from breviary.config.cli.words import runs_and_settings
from breviary.config.errors import ConfigError, cli_errors, raise_problems
from breviary.evaluation.resolve import compose_evaluation
from breviary.evaluation.session import EvaluationSession
from breviary.evaluation.table import TABLE_WIDTH, print_block
from breviary.runs.environment import environment
from breviary.runtime.files import write_json
from breviary.runtime.spelling import command, next_line, setting
from data.text_pipeline import TEXT
from ram.recall import measure_recall


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", metavar="[RUN]|KEY=VALUE", help=f"{FORMS}; and overrides")
    parser.add_argument("--examples", type=int, default=100, help="number of examples, from the first (default 100)")
    parser.add_argument("--ratios", type=int, nargs="+", default=[2, 4, 8, 16], help="1 / kept share (2 4 8 16)")
    parser.add_argument("--output", metavar="FILE", help="JSON file")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures every run, prints one table; exits with code 2 on wrong input."""
    options = build_parser().parse_intermixed_args(arguments)
    session, rows = EvaluationSession(TEXT), []
    with cli_errors():
        runs, overrides, problems = runs_and_settings(options.words, needs_run=False)
        raise_problems(problems)
        for run in runs or [""]:
            cfgs, examples = session.check(run_config(run, [*overrides, f"examples={options.examples}"]))
            rows += measure_recall(session, cfgs, examples, options.ratios)
    show(rows, options.ratios)
    if options.output:
        content = {"schema": 1, "examples": options.examples, "rows": rows, "environment": environment()}
        write_json(options.output, content)
    print(next_line(command("scripts/reading_map.py", *runs[:1], *overrides)))


def run_config(run: str, overrides: Sequence[str]) -> DictConfig:
    """The configuration of a run with the overrides; "" = an untrained reader's.

    Raises: ConfigError where the reader ranks no segments.
    """
    cfg = compose_evaluation([*([setting("run", run)] if run else []), *overrides, "baselines=[]"])
    ranks = "keep" in cfg.compressor or ("window" in cfg.compressor and cfg.compressor.get("units") == "segments")
    if "segment_size" not in cfg.compressor or not ranks:
        problem = (
            f"{run or 'compressor'}: {cfg.compressor._target_} ranks no segments; give a run of compressor=ram or "
        )
        raise ConfigError([problem + "compressor=attention"])
    return cfg


def show(rows: Sequence[dict[str, Any]], ratios: Sequence[int]) -> None:
    """Prints the rows as one table; no line is wrapped."""
    lines = [[row["ranker"], str(row["n"]), *format_values(row["recall"].values())] for row in rows]
    for row in rows:
        for other, differences in row.get("over", {}).items():
            lines.append([f"{row['ranker']} minus {other}", str(row["n"]), *format_values(differences.values())])
    print("\nRecall of gold segments, 95% intervals")
    print_block(Console(width=TABLE_WIDTH), ["ranker", "n", *(f"1/{ratio} kept" for ratio in ratios)], lines)


def format_values(values: Iterable[dict[str, float]]) -> list[str]:
    """Each value with its interval."""
    return [f"{one['value']:.2f} [{one['low']:.2f}, {one['high']:.2f}]" for one in values]


if __name__ == "__main__":
    main()
