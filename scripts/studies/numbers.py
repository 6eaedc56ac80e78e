"""Writes the studies' numbers from the committed tables into docs/, between two marks.

    python scripts/studies/numbers.py
    python scripts/studies/numbers.py --check
    python scripts/studies/sizes.py tables=true       # the tables themselves, from the measurements

Every number of docs/autoencoder_study.md, and the part about sizes of docs/guidelines.md. --check writes nothing; the
exit code is 1 where a document differs from the tables. A test does the same.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from breviary.runtime.checkout import ROOT, quiet_libraries, require_checkout

require_checkout()
quiet_libraries()

from breviary.runtime.files import write_text
from breviary.runtime.spelling import command, next_line
from breviary.studies.data_gap.numbers import gap_correlations, mitigation_numbers, pair_accuracies
from breviary.studies.input_entropy.numbers import input_entropy_numbers
from breviary.studies.markdown import replace_numbers
from breviary.studies.sizes.numbers import size_numbers

TABLES = ROOT / "results" / "autoencoder_study"


def study_numbers(tables: Path) -> str:
    """The numbers of docs/autoencoder_study.md."""
    gap, longer = tables / "gap_small", tables / "gap_small_longer"
    return "\n\n".join(
        [
            input_entropy_numbers(tables),
            pair_accuracies(gap),
            gap_correlations(gap),
            pair_accuracies(longer),
            mitigation_numbers(gap),
        ]
    )


DOCUMENTS = {ROOT / "docs" / "autoencoder_study.md": study_numbers, ROOT / "docs" / "guidelines.md": size_numbers}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where numbers differ")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes or checks the documents."""
    options = build_parser().parse_args(arguments)
    for document, numbers in DOCUMENTS.items():
        text = document.read_text(encoding="utf-8")
        expected = replace_numbers(text, numbers(TABLES))
        if options.check and text != expected:
            print(
                f"error: {document.name} differs from the tables; run python scripts/studies/numbers.py",
                file=sys.stderr,
            )
            sys.exit(1)
        if not options.check:
            write_text(document, expected)
    print(next_line(command("scripts/check_links.py") if options.check else shlex.join(["git", "diff", "docs"])))


if __name__ == "__main__":
    main()
