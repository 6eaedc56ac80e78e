"""Prepares a public data set: converts its files into JSONL, one file per split, in the folder the configurations use.

    python scripts/prepare_data.py hotpotqa --train hotpot_train_v1.1.json --test hotpot_dev_distractor_v1.json
    python scripts/prepare_data.py narrativeqa --train REPO --validation REPO --test REPO --context summaries
    python scripts/prepare_data.py qmsum --test qmsum/test.jsonl --max-words 8000 --output my_data/qmsum

Download the files from the data set's own pages first: docs/data.md lists page, files, licence and command of each, and
`make data` states which are ready. A FILE may be gzipped (.gz), or a folder of such files.

nq               .jsonl.gz of lost-in-the-middle, or other lines with question, answers and ctxs
prompted         lines with input (the context), prompt and answer, as of COMI, RAM, GMSA and PwC; --name FOLDER
hotpotqa         the official JSON array, or the hub's rows as an array or lines
2wikimultihopqa  the official JSON array, or pandas' column format
musique          the official .jsonl, or an array of its rows
qmsum            a folder of meetings (.json), or lines of them (.jsonl)
contract_nli     the official .json
narrativeqa      the folder with documents.csv and qaps.csv, the same for each split. Contexts are stories
                 (<document_id>.content in FOLDER/tmp, FOLDER or --stories), or summaries with --context summaries
qasper           the official .json
multi_news       the .src file, with .tgt in the same folder
quality          the official lines without HTML (QuALITY.v1.0.1.htmlstripped.*)
fairytaleqa      a folder of questions, e.g. questions/train, with section-stories/train next to questions
kv_retrieval     .jsonl.gz of lost-in-the-middle; --name FOLDER, one for each number of keys
longbench        the .jsonl of a task; --name FOLDER, one for each task
longbench_v1     the folder with TASK.jsonl and TASK_e.jsonl (data.zip), or some of its files
longbench_v2     data.json
zero_scrolls     TASK.zip of any tasks, or a folder of them; its validation rows are test here
infinitebench    the folder with TASK.jsonl, or some of its files
scbench          the folder with scbench_TASK.jsonl, or some of its files
helmet           files of one length: json_kv/FILE, ruler/TASK/FILE, and of kilt/ a task's questions and its
                 demonstrations (k3)
scrolls          TASK.zip of one task or of all, as SCROLLS publishes them; --name scrolls_TASK, or scrolls. Test reads
                 its validation split, as the answers of its test split are hidden

Ids are unique within a split. No two splits share a context, or a question with the same gold passages: what test has
is removed from validation and train, what validation has from train. All splits are written, loaded and compared, and
then moved into place together. The suites (longbench_v1 to helmet) have a test split alone, one file for each task;
further tasks may be added later.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime.checkout import ROOT, require_checkout

require_checkout()

import argparse
from collections.abc import Iterable, Sequence

from breviary.runtime.spelling import command, next_line, setting
from data.checks import SPLITS
from data.converters import CONVERTERS
from data.converters.prepare import SplitCounts, data_folder, prepare, prepare_suite
from data.converters.suites import SUITES


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("format", metavar="FORMAT", help=f"one of: {', '.join((*CONVERTERS, *SUITES))}")
    for split in SPLITS:
        parser.add_argument(
            f"--{split}", nargs="+", default=[], metavar="FILE", help=f"the data set's files for {split}"
        )
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        help="default: NAME in BREVIARY_DATA, else in data/ of BREVIARY_CACHE, else in ~/.cache/breviary/data",
    )
    parser.add_argument("--name", metavar="NAME", help="of the folder; default: the format's, multinews for multi_news")
    parser.add_argument("--max-words", type=int, metavar="N", help="skip contexts of more words; default: no limit")
    parser.add_argument("--context", choices=("stories", "summaries"), default="stories", help="narrativeqa only")
    parser.add_argument("--stories", metavar="FOLDER", help="narrativeqa only: folder of <document_id>.content files")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line. Invalid arguments, files or rows: exit code 2, one line each."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    files = {split: getattr(args, split) for split in SPLITS}
    try:
        if args.format in SUITES:
            folder, counts = _prepare_suite(args, files)
        else:
            folder, counts = prepare(
                args.format, files, args.output, args.context, args.stories, args.max_words, args.name
            )
    except ValueError as error:
        parser.exit(2, "".join(f"error: {line}\n" for line in str(error).split("\n")))
    for split, split_counts in counts.items():
        print(f"{split}: {split_counts.report()}")
    print(f"{args.format}: ready: {folder} (loaded and compared)")
    if args.format in SUITES:
        words = [f"dataset={args.format}", f"dataset.task={next(iter(counts)).removesuffix('_e')}"]
        words += [setting("dataset.variant", "_e")] if next(iter(counts)).endswith("_e") else []
        words += [] if folder == data_folder() / args.format else [setting("dataset.folder", str(folder))]
        print(next_line(command("eval.py", "compressor=full_context", *words)))
        return
    use = ["train.py", "experiment=comi_facts"] if "train" in counts else ["eval.py", "compressor=full_context"]
    print(next_line(command(*use, *dataset_words(folder, counts))))


def _prepare_suite(args: argparse.Namespace, files: dict[str, Sequence[str]]) -> tuple[Path, dict[str, SplitCounts]]:
    """As `prepare_suite`. Raises: ValueError also for words that a suite does not have."""
    others = [f"--{split}" for split in ("train", "validation") if files[split]] + (["--name"] if args.name else [])
    if others:
        raise ValueError(
            f"{args.format} has a test split alone, in a folder of its name: leave out {', '.join(others)}"
        )
    return prepare_suite(args.format, files["test"], args.output, args.max_words)


def dataset_words(folder: Path, splits: Iterable[str]) -> list[str]:
    """The settings that choose a prepared data set: its configuration, or its files where it has none."""
    if folder.parent == data_folder() and (ROOT / "configs" / "dataset" / f"{folder.name}.yaml").is_file():
        return [f"dataset={folder.name}"]
    return ["dataset=jsonl", *(setting(f"dataset.{split}", str(folder / f"{split}.jsonl.gz")) for split in splits)]


if __name__ == "__main__":
    main()
