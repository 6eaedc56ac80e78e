"""Runs tasks of lm-evaluation-harness on a trained reader; needs the package lm_eval (python -m pip install lm_eval).

    python scripts/lm_eval.py latest tasks=[babilong_qa1] lengths=4k limit=20
    python scripts/lm_eval.py run=outputs/comi_facts tasks=[longbench_hotpotqa,longbench_qasper] chat=true
    python scripts/lm_eval.py outputs/ram_facts tasks=[ruler_vt] lengths=[4096] batch_size=4 output=vt.json

Settings: tasks (list of names), limit (requests of a task), fewshot, chat, lengths (RULER: [4096], BABILong: 4k),
include (folder of task definitions), context_fields (fields of a task's document that hold the long text), batch_size,
device (auto | cpu | cuda[:i]), output (JSON file, in the form of the harness). Each prompt is split again at the long
text of the task's document: the reader compresses that text, and a context that several requests share is read once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# Not the first place, which is this folder: `import lm_eval` would find this file.
sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != Path(__file__).resolve().parent]
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime.checkout import quiet_libraries, require_checkout

require_checkout()
quiet_libraries()

import yaml

from breviary.config.cli.run_names import FORMS, find_run
from breviary.config.errors import cli_errors, raise_problems
from breviary.config.keys import suggest
from breviary.runtime.files import write_text
from breviary.runtime.spelling import command, next_line
from breviary.serving.lm_eval import CONTEXT_FIELDS, HarnessSettings, ReaderLM, require_lm_eval, run_tasks, split_notes
from breviary.serving.loading import load_reader

# {key: (types, example)}
KEYS: dict[str, tuple[tuple[type, ...], str]] = {
    "run": ((str,), "run=outputs/comi_facts"),
    "tasks": ((list, str), "tasks=[babilong_qa1]"),
    "limit": ((int,), "limit=20"),
    "fewshot": ((int,), "fewshot=0"),
    "chat": ((bool,), "chat=true"),
    "lengths": ((list, str, int), "lengths=[4096]"),
    "include": ((str,), "include=my_tasks"),
    "context_fields": ((list, str), "context_fields=[passage]"),
    "batch_size": ((int,), "batch_size=8"),
    "device": ((str,), "device=cpu"),
    "output": ((str,), "output=results.json"),
}
LISTS = ("tasks", "context_fields")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="+", metavar="RUN|KEY=VALUE", help=f"{FORMS}; settings as above")
    return parser


def read_settings(words: Sequence[str]) -> dict[str, Any]:
    """{key: value} of the words. Raises: ConfigError with a message for each wrong word."""
    found: dict[str, Any] = {}
    problems = []
    for word in words:
        key, mark, text = word.partition("=")
        if not mark:
            key, text = "run", word
        if key not in KEYS:
            problems.append(f"{word}: unknown key {key}{suggest(key, KEYS)}; allowed are {', '.join(KEYS)}")
            continue
        types, example = KEYS[key]
        value = text if types == (str,) else yaml.safe_load(text)
        if key in LISTS and isinstance(value, str):
            value = value.split(",")
        is_negative = isinstance(value, int) and value < 0
        if not isinstance(value, types) or (bool not in types and isinstance(value, bool)) or is_negative:
            problems.append(f"{word}: wrong value; e.g. {example}")
        elif key in found:
            problems.append(f"{word}: {key} is given twice")
        found[key] = value
    missing = [f"{key} is missing; e.g. {KEYS[key][1]}" for key in ("run", "tasks") if not found.get(key)]
    raise_problems([*problems, *missing])
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line; exits with code 2 on a user error."""
    words = build_parser().parse_args(arguments).settings
    with cli_errors():
        given = read_settings(words)
        require_lm_eval()
        run = find_run(given["run"])
        reader = load_reader(run, device=given.get("device"))
        lm = ReaderLM(reader, given.get("batch_size", 8), given.get("context_fields", CONTEXT_FIELDS))
        options = {key: given[key] for key in ("limit", "fewshot", "chat", "lengths", "include") if key in given}
        results = run_tasks(lm, HarnessSettings(tuple(given["tasks"]), **options))
    import lm_eval.utils

    name = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    file = Path(given.get("output") or run / "lm_eval" / f"{name}.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {**results, "breviary": results["breviary"] | {"run": str(run)}}
    write_text(file, json.dumps(content, indent=2, ensure_ascii=False, default=lm_eval.utils.handle_non_serializable))
    print(lm_eval.utils.make_table(results))
    for line in split_notes(lm.splits):
        print(line)
    if lm.truncated:
        print(f"{lm.truncated} contexts were cut in the middle, as they did not fit")
    print(f"results {file}")
    print(next_line(command("eval.py", run)))


if __name__ == "__main__":
    main()
