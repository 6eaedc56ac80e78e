"""Prepares a data set: the source's own files become our JSONL, one file a split, where the configurations look for it.

    python scripts/prepare_data.py hotpotqa --train hotpot_train_v1.1.json --test hotpot_dev_distractor_v1.json
    python scripts/prepare_data.py narrativeqa --train REPO --validation REPO --test REPO --context summaries

The files are downloaded by you, from the source's own pages. Every FILE may be gzipped (.gz) or a folder of such files.

nq               lost-in-the-middle's .jsonl.gz, or other lines with question, answers and ctxs
hotpotqa         the official JSON array, or the hub's rows as array or lines
2wikimultihopqa  the official JSON array, or the columns that pandas writes
musique          the official .jsonl, or an array of its rows
qmsum            a folder of meetings (.json), or lines of them (.jsonl)
contract_nli     the official .json
narrativeqa      the folder of documents.csv and qaps.csv, once for each split: lines know theirs. Contexts are stories
                 (FOLDER/tmp or FOLDER holds <document_id>.content; else --stories) or --context summaries
qasper           the official .json
multi_news       the .src file, .tgt beside it
quality          the official lines without HTML (QuALITY.v1.0.1.htmlstripped.*)
fairytaleqa      a folder of questions, such as questions/train, with section-stories/train beside it
kv_retrieval     lost-in-the-middle's .jsonl.gz, --output FOLDER for a number of keys
longbench        a task's .jsonl, --output FOLDER for the task

Ids differ within a split, and no split shares a context with another: what test has leaves validation and train, what
validation has leaves train (as does a question with the same gold passages). All splits are written, read back with
data.jsonl.Jsonl and compared, and only then put in place together.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime.checkout import require_checkout

require_checkout()

import argparse
import gzip
import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from breviary.contract import Example
from data.checks import SPLITS, raise_problems
from data.converters import CONVERTERS
from data.converters.fields import Skipped
from data.converters.files import BadFile, Rows
from data.jsonl import Jsonl

SHOWN = 10  # bad rows that a message shows
FOLDERS = {"multi_news": "multinews", "kv_retrieval": None, "longbench": None}  # else the format's name


@dataclass
class Counts:
    """What became of a split's rows."""

    examples: int = 0
    contexts: int = 0
    words: int = 0
    left_out: Counter[str] = field(default_factory=Counter)  # reason -> questions
    renamed: int = 0


def prepare(
    format: str,
    files: dict[str, Sequence[str | Path]],
    output: str | Path | None = None,
    context: str = "stories",
    stories: str | Path | None = None,
    max_words: int | None = None,
) -> tuple[Path, dict[str, Counts]]:
    """Writes a prepared data set; its folder, and what became of each split's rows.

    files      split -> files of the source (splits of SPLITS; what is missing or empty is not written)
    output     a folder that is not there or empty; None = the format's own below data_folder()
    context    of narrativeqa: stories or summaries; `stories` names their folder
    max_words  longer contexts are left out; None = no limit

    Raises ValueError: for arguments, files and rows that do not suit, each with a sentence naming file and row.
    """
    files = {split: [Path(file).expanduser() for file in files[split]] for split in SPLITS if files.get(split)}
    folder = _output(format, output)
    raise_problems(_problems(format, files, folder, max_words))
    folder.parent.mkdir(parents=True, exist_ok=True)
    taken: dict[bytes, str] = {}
    counts, digests = {}, {}
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temp:
        made = Path(temp) / "splits"
        made.mkdir()
        for split in reversed(files):
            rows = Rows(format, files[split], split, context, stories)
            counts[split], digests[split] = _write(made / f"{split}.jsonl.gz", rows, taken, max_words)
        names = {split: str(made / f"{split}.jsonl.gz") if split in files else None for split in SPLITS}
        for split in files:
            loaded = _digest(Jsonl(**names).examples(split))
            assert loaded == digests[split], f"{split}: read back {loaded}, written {digests[split]}"
        made.replace(folder)  # an empty folder gives way
    return folder, {split: counts[split] for split in files}


def data_folder() -> Path:
    """Where prepared data sets lie: BREVIARY_DATA, else data/ in BREVIARY_CACHE, else ~/.cache/breviary/data."""
    cache = os.environ.get("BREVIARY_CACHE") or "~/.cache/breviary"
    return Path(os.environ.get("BREVIARY_DATA") or f"{cache}/data").expanduser()


def _output(format: str, output: str | Path | None) -> Path:
    if format not in CONVERTERS:
        raise ValueError(f"format {format!r}: allowed are {', '.join(CONVERTERS)}")
    name = FOLDERS.get(format, format)
    if output is None and name is None:
        raise ValueError(
            f"{format} is the format of several data sets: say where this one goes, for example "
            f"--output {data_folder()}/{'kv_retrieval_75' if format == 'kv_retrieval' else 'gov_report'}"
        )
    return (Path(output).expanduser() if output is not None else data_folder() / name).resolve()


def _problems(format: str, files: dict[str, list[Path]], folder: Path, max_words: int | None) -> list[str]:
    found = [] if files else ["no file is given: name the source's files with --train, --validation and --test"]
    for split, paths in files.items():
        for path in paths:
            if not path.exists():
                found.append(f"--{split} {path}: no such file or folder")
            elif format == "narrativeqa" and not path.is_dir():
                found.append(f"--{split} {path}: narrativeqa takes the folder that holds documents.csv and qaps.csv")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        found.append(
            f"{folder} is there already: splits are checked against each other, so prepare them all at once; "
            "remove it or give another --output"
        )
    if max_words is not None and max_words < 1:
        found.append(f"--max-words {max_words}: must be a whole number of 1 or more")
    return found


# ------------------------------------------------------------------ writing


def _write(file: Path, rows: Rows, taken: dict[bytes, str], max_words: int | None) -> tuple[Counts, str]:
    """Writes a split and adds its contexts to `taken`; what became of the rows, and the digest of what is written."""
    counts, ids, contexts, own = Counts(), {}, set(), {}
    total = hashlib.sha256()
    with open(file, "wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
        for row in _converted(rows):
            if isinstance(row, Skipped):
                counts.left_out[row.reason] += 1
                continue
            keys, words = _keys(row), len(row["context"].split())
            other = next((taken[key] for key in keys if key in taken), None)
            content = hashlib.sha256(json.dumps([row["context"], row["question"], row["answers"]]).encode()).digest()
            if other is not None:
                counts.left_out[f"context or question with its gold passages in {other}"] += 1
            elif max_words is not None and words > max_words:
                counts.left_out[f"context above {max_words} words"] += 1
            elif ids.get(row["id"]) == content:
                counts.left_out["repeated"] += 1
            else:
                counts.renamed += row["id"] in ids
                row["id"] = _free(row["id"], ids)
                ids[row["id"]] = content
                contexts.add(hash(row["context"]))
                own |= dict.fromkeys(keys, rows.split)
                counts.examples, counts.words = counts.examples + 1, counts.words + words
                packed.write((json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8"))
                total.update(
                    _digest_part(
                        row["id"],
                        row["context"],
                        row["question"],
                        row["answers"],
                        [d["is_gold"] for d in row.get("documents", [])],
                    )
                )
    if not counts.examples:
        raise ValueError(f"--{rows.split}: no example is left ({_reasons(counts) or 'the files hold no row'})")
    counts.contexts = len(contexts)
    taken |= own
    return counts, total.hexdigest()


def _converted(rows: Rows) -> Iterator[dict[str, Any] | Skipped]:
    """The examples of all rows. Raises one ValueError naming the bad rows, the first SHOWN, after reading all."""
    bad = []
    while True:
        try:
            for row in CONVERTERS[rows.format](rows):
                if not bad:
                    yield row
            break
        except BadFile as error:  # nothing comes after it
            bad.append(str(error))
            break
        except ValueError as error:  # the converter is called again on the rows behind this one
            bad.append(f"{rows.where}: {error}")
    more = [f"... and {len(bad) - SHOWN} more bad rows"] if len(bad) > SHOWN else []
    raise_problems(bad[:SHOWN] + more)


def _free(id: str, ids: dict[str, bytes]) -> str:
    """The id, with the first of ~2, ~3, ... that makes it differ from `ids` where it is among them."""
    number, found = 1, id
    while found in ids:
        number += 1
        found = f"{id}~{number}"
    return found


def _keys(row: dict[str, Any]) -> list[bytes]:
    """What no two splits may share: context, whatever the order of its passages, and question with gold passages."""
    passages = row.get("documents", [])
    gold = sorted(passage["text"] for passage in passages if passage["is_gold"])
    texts = [sorted(passage["text"] for passage in passages) or row["context"]]
    texts += [[row["question"], gold]] if gold else []
    return [hashlib.sha256(json.dumps(text).encode()).digest() for text in texts]


def _digest(examples: Iterable[Example]) -> str:
    total = hashlib.sha256()
    for example in examples:
        total.update(
            _digest_part(
                example.id,
                example.context,
                example.question,
                list(example.answers),
                [document.is_gold for document in example.documents],
            )
        )
    return total.hexdigest()


def _digest_part(*parts: Any) -> bytes:
    return json.dumps(parts).encode()


def _reasons(counts: Counts) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.left_out.most_common())


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line; what does not suit ends with exit code 2 and a sentence each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("format", metavar="FORMAT", help=f"one of: {', '.join(CONVERTERS)}")
    for split in SPLITS:
        parser.add_argument(f"--{split}", nargs="+", default=[], metavar="FILE", help=f"the source's files for {split}")
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        help="default: the name of the format (multinews for multi_news) "
        "in BREVIARY_DATA, else in data/ of BREVIARY_CACHE, else in ~/.cache/breviary/data",
    )
    parser.add_argument("--max-words", type=int, metavar="N", help="leaves out contexts of more words; default: none")
    parser.add_argument("--context", choices=("stories", "summaries"), default="stories", help="of narrativeqa")
    parser.add_argument("--stories", metavar="FOLDER", help="of narrativeqa: where <document_id>.content files lie")
    given = parser.parse_args(arguments)
    try:
        folder, counts = prepare(
            given.format,
            {split: getattr(given, split) for split in SPLITS},
            given.output,
            given.context,
            given.stories,
            given.max_words,
        )
    except ValueError as error:
        parser.exit(2, "".join(f"error: {sentence}\n" for sentence in str(error).split("\n")))
    for split, found in counts.items():
        print(
            f"{split}: {found.examples:,} examples, {found.contexts:,} contexts, "
            f"{found.words / found.examples:,.0f} words on average"
            + (f"; left out: {_reasons(found)}" if found.left_out else "")
            + (f"; {found.renamed:,} repeated ids of other content got ~2, ~3, ..." if found.renamed else "")
        )
    print(f"{given.format}: ready: {folder} (read back and compared)")


if __name__ == "__main__":
    main()
