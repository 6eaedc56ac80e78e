"""Where each public data set comes from: page, files, licence, and the command that prepares it.

docs/data.md, `make data` and the message about a missing file are made from SOURCES.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from data.checks import SPLITS


@dataclass(frozen=True)
class Source:
    """One public data set.

    format    key of data.converters.CONVERTERS, or of data.converters.suites.SUITES
    title     its name in papers
    page      address of its own page, where the files are downloaded
    files     names of the files on that page, and what they are in
    licence   of the data
    splits    {split: files for --SPLIT}, in the folder that holds the download
    folder    below the folder of prepared data sets
    datasets  names in configs/dataset that read the folder
    options   further words of the command
    note      what a user must know; "" for nothing
    """

    format: str
    title: str
    page: str
    files: str
    licence: str
    splits: Mapping[str, tuple[str, ...]]
    folder: str
    datasets: tuple[str, ...]
    options: tuple[str, ...] = field(default=())
    note: str = ""

    def command(self) -> str:
        """The command line that prepares the data set from files in the working folder."""
        words = ["python", "scripts/prepare_data.py", self.format]
        for split, files in self.splits.items():
            words += [f"--{split}", *files]
        return shlex.join([*words, *self.options])


LITM = "https://github.com/nelson-liu/lost-in-the-middle"
GOLD = tuple(f"nq-open-20_total_documents_gold_at_{place}.jsonl.gz" for place in (0, 4, 9, 14, 19))

SCROLLS_TASKS = ("gov_report", "summ_screen_fd", "qmsum", "qasper", "narrative_qa", "quality", "contract_nli")


ZERO_SCROLLS = (
    *("gov_report", "summ_screen_fd", "qmsum", "squality", "qasper", "narrative_qa", "quality", "musique"),
    *("space_digest", "book_sum_sort"),
)
HELMET_RAG = (("nq", 6), ("triviaqa", 6), ("hotpotqa", 3))
HELMET_8K = (
    "data/json_kv/test_k105_dep6.jsonl",
    *(f"data/ruler/niah_{task}/validation_8192.jsonl" for task in ("multikey_2", "multikey_3", "multivalue")),
    *(f"data/kilt/{task}-dev-multikilt_1000_k50_dep{depths}.jsonl" for task, depths in HELMET_RAG),
    *(f"data/kilt/{task}-train-multikilt_1000_k3_dep{depths}.jsonl" for task, depths in HELMET_RAG),
    *(f"data/kilt/popqa_test_1000_k{passages}_dep6.jsonl" for passages in (50, 3)),
)


def _scrolls(folder: str, *tasks: str) -> Source:
    files = tuple(f"{task}.zip" for task in tasks)
    return Source(
        "scrolls",
        "SCROLLS, seven tasks",
        "https://www.scrolls-benchmark.com",
        "`TASK.zip`: " + ", ".join(f"`{task}`" for task in SCROLLS_TASKS),
        "of each task's source",
        {"train": files, "test": files},
        folder,
        (folder,),
        ("--name", folder),
        note="its test answers are hidden: its validation split is test here",
    )


SOURCES = (
    Source(
        "nq",
        "NaturalQuestions, 20 passages (Lost in the Middle)",
        LITM,
        "`qa_data`: `nq-open-20_total_documents_gold_at_{0,4,9,14,19}.jsonl.gz`",
        "CC BY-SA 3.0",
        {"test": GOLD},
        "nq",
        ("nq", "nq_gold4", "nq_plain"),
        note="test questions only; for train and validation give files of the same fields (question, answers, ctxs)",
    ),
    Source(
        "nq",
        "NaturalQuestions, as RAM's and COMI's authors publish it",
        "https://huggingface.co/datasets/Twwilght/RAM-NQ",
        "lines with `question`, `answers` and `ctxs`, as RAM's code reads them; the name of the file is not known here",
        "not stated; CC BY-SA 3.0 for Wikipedia's text",
        {"test": ("test-NQ.jsonl",)},
        "ram_nq",
        ("ram_nq",),
        ("--name", "ram_nq"),
        note="its test questions; files of `input`, `prompt`, `answer` are read by `prompted --name ram_nq`",
    ),
    Source(
        "prompted",
        "PwC, prompts with contexts (ICAE)",
        "https://github.com/getao/icae",
        "`PwC_train.jsonl`, `PwC_test.jsonl`",
        "research only",
        {"train": ("PwC_train.jsonl",), "test": ("PwC_test.jsonl",)},
        "pwc",
        ("pwc",),
        ("--name", "pwc"),
        note="241,564 and 18,146 questions on contexts of about 500 tokens; no validation split",
    ),
    Source(
        "hotpotqa",
        "HotpotQA, distractor setting",
        "https://hotpotqa.github.io",
        "`hotpot_train_v1.1.json`, `hotpot_dev_distractor_v1.json`",
        "CC BY-SA 4.0",
        {"train": ("hotpot_train_v1.1.json",), "test": ("hotpot_dev_distractor_v1.json",)},
        "hotpotqa",
        ("hotpotqa",),
        note="its test answers are hidden: dev is test here",
    ),
    Source(
        "2wikimultihopqa",
        "2WikiMultihopQA",
        "https://github.com/Alab-NII/2wikimultihop",
        "`data.zip`: `train.json`, `dev.json`",
        "Apache-2.0",
        {"train": ("train.json",), "test": ("dev.json",)},
        "2wikimultihopqa",
        ("2wikimultihopqa",),
        note="its test answers are hidden: dev is test here",
    ),
    Source(
        "musique",
        "MuSiQue (answerable)",
        "https://github.com/StonyBrookNLP/musique",
        "`musique_ans_v1.0_train.jsonl`, `musique_ans_v1.0_dev.jsonl`",
        "CC BY 4.0",
        {"train": ("musique_ans_v1.0_train.jsonl",), "test": ("musique_ans_v1.0_dev.jsonl",)},
        "musique",
        ("musique",),
        note="its test answers are hidden: dev is test here",
    ),
    Source(
        "qmsum",
        "QMSum",
        "https://github.com/Yale-LILY/QMSum",
        "`data/ALL/{train,val,test}`, folders of meetings",
        "MIT",
        {"train": ("data/ALL/train",), "validation": ("data/ALL/val",), "test": ("data/ALL/test",)},
        "qmsum",
        ("qmsum",),
    ),
    Source(
        "contract_nli",
        "ContractNLI",
        "https://stanfordnlp.github.io/contract-nli",
        "`train.json`, `dev.json`, `test.json`",
        "CC BY 4.0",
        {"train": ("train.json",), "validation": ("dev.json",), "test": ("test.json",)},
        "contract_nli",
        ("contract_nli",),
    ),
    Source(
        "narrativeqa",
        "NarrativeQA",
        "https://github.com/google-deepmind/narrativeqa",
        "the repository: `documents.csv`, `qaps.csv`, `third_party/wikipedia/summaries.csv`; stories by its "
        "`download_stories.sh`",
        "Apache-2.0; stories: as their own pages state",
        dict.fromkeys(SPLITS, ("narrativeqa",)),
        "narrativeqa",
        ("narrativeqa",),
        ("--max-words", "24000"),
        note="without stories: `--context summaries`",
    ),
    Source(
        "qasper",
        "Qasper",
        "https://allenai.org/data/qasper",
        "`qasper-{train,dev,test}-v0.3.json`",
        "CC BY 4.0",
        {
            "train": ("qasper-train-v0.3.json",),
            "validation": ("qasper-dev-v0.3.json",),
            "test": ("qasper-test-v0.3.json",),
        },
        "qasper",
        ("qasper",),
    ),
    Source(
        "multi_news",
        "Multi-News",
        "https://github.com/Alex-Fabbri/Multi-News",
        "`{train,val,test}.src`, each with its `.tgt` in the same folder",
        "non-commercial research and education",
        {"train": ("train.src",), "validation": ("val.src",), "test": ("test.src",)},
        "multinews",
        ("multinews",),
    ),
    Source(
        "quality",
        "QuALITY 1.0.1",
        "https://github.com/nyu-mll/quality",
        "`QuALITY.v1.0.1.zip`: `QuALITY.v1.0.1.htmlstripped.{train,dev}`",
        "CC BY 4.0",
        {"train": ("QuALITY.v1.0.1.htmlstripped.train",), "test": ("QuALITY.v1.0.1.htmlstripped.dev",)},
        "quality",
        ("quality",),
        note="its test answers are hidden: dev is test here",
    ),
    Source(
        "fairytaleqa",
        "FairytaleQA",
        "https://github.com/uci-soe/FairytaleQAData",
        "`data-by-train-split/questions/{train,val,test}`, with `section-stories` beside `questions`",
        "Apache-2.0",
        {
            "train": ("data-by-train-split/questions/train",),
            "validation": ("data-by-train-split/questions/val",),
            "test": ("data-by-train-split/questions/test",),
        },
        "fairytaleqa",
        ("fairytaleqa",),
    ),
    Source(
        "kv_retrieval",
        "Key-value retrieval (Lost in the Middle)",
        LITM,
        "`kv_retrieval_data`: `kv-retrieval-75_keys.jsonl.gz`",
        "MIT",
        {"test": ("kv-retrieval-75_keys.jsonl.gz",)},
        "kv_retrieval_75",
        ("kv_retrieval",),
        ("--name", "kv_retrieval_75"),
        note="`make data` draws pairs of its own instead, which are not comparable with published scores",
    ),
    Source(
        "longbench",
        "GovReport, as a task of LongBench",
        "https://github.com/THUDM/LongBench",
        "`data.zip`: `gov_report.jsonl`, likewise the other tasks",
        "US government works; other tasks: their own",
        {"test": ("gov_report.jsonl",)},
        "gov_report",
        ("gov_report",),
        ("--name", "gov_report"),
        note="test questions only; give each task a name of its own",
    ),
    Source(
        "longbench_v1",
        "LongBench v1 and LongBench-E, 21 tasks",
        "https://huggingface.co/datasets/THUDM/LongBench",
        "`data.zip`: `data/TASK.jsonl`, `data/TASK_e.jsonl`",
        "MIT; texts: of each task's source (SAMSum non-commercial)",
        {"test": ("data",)},
        "longbench_v1",
        ("longbench_v1",),
        note="unpack data.zip; `dataset.task=TASK`, LongBench-E with `dataset.variant=_e`",
    ),
    Source(
        "longbench_v2",
        "LongBench v2",
        "https://huggingface.co/datasets/THUDM/LongBench-v2",
        "`data.json`",
        "Apache-2.0",
        {"test": ("data.json",)},
        "longbench_v2",
        ("longbench_v2",),
    ),
    Source(
        "zero_scrolls",
        "ZeroSCROLLS, ten tasks",
        "https://huggingface.co/datasets/tau/zero_scrolls",
        "`TASK.zip`: " + ", ".join(f"`{task}`" for task in ZERO_SCROLLS),
        "of each task's source",
        {"test": tuple(f"{task}.zip" for task in ZERO_SCROLLS)},
        "zero_scrolls",
        ("zero_scrolls",),
        note="its test answers are hidden: about 20 validation rows a task are test here",
    ),
    Source(
        "infinitebench",
        "InfiniteBench, twelve tasks",
        "https://huggingface.co/datasets/xinrongzhang2022/InfiniteBench",
        "`TASK.jsonl`",
        "MIT; books: not stated",
        {"test": ("InfiniteBench",)},
        "infinitebench",
        ("infinitebench",),
    ),
    Source(
        "scbench",
        "SCBench, nine tasks of shared contexts",
        "https://huggingface.co/datasets/microsoft/SCBench",
        "`data/scbench_TASK.jsonl`",
        "MIT",
        {"test": ("data",)},
        "scbench",
        ("scbench",),
        note="without RepoQA and the two mixed tasks, which need RepoQA's scorer",
    ),
    Source(
        "helmet",
        "HELMET, recall and RAG",
        "https://huggingface.co/datasets/princeton-nlp/HELMET",
        "`data.tar.gz` (34 GB): `data/json_kv`, `data/ruler`, `data/kilt`",
        "MIT; texts: of each task's source",
        {"test": HELMET_8K},
        "helmet",
        ("helmet",),
        note="files of one length: here 8,192 tokens; those of kilt with k3 hold the demonstrations",
    ),
    _scrolls("scrolls", *SCROLLS_TASKS),
    *(_scrolls(f"scrolls_{task}", task) for task in SCROLLS_TASKS),
)


def source_of_folder(folder: str) -> Source | None:
    """The source that fills this folder of the prepared data sets; None for any other name."""
    return next((source for source in SOURCES if source.folder == folder), None)


def missing_hint(file: str | Path) -> str:
    """How a missing file of a public data set is made; "" where its name is none of theirs."""
    source = source_of_folder(Path(file).parent.name)
    if source is None or Path(file).name not in [f"{split}.jsonl.gz" for split in SPLITS]:
        return ""
    split = Path(file).name.partition(".")[0]
    if split not in source.splits:
        without = "set train.eval_examples=0, or " if split == "validation" else ""
        return (
            f"{source.title} has {' and '.join(source.splits)} here, and no {split} files of its own: {without}prepare "
            f"files of yours with --{split} (docs/data.md)"
        )
    return f"download {source.title} from {source.page} and run `{source.command()}` (docs/data.md)"


def markdown_table() -> str:
    """The table of docs/data.md."""
    lines = ["| data set | `dataset=` | page | files | licence |", "|---|---|---|---|---|"]
    for title, group in groupby(SOURCES, key=lambda source: source.title):
        sources = list(group)
        source, names = sources[0], ", ".join(f"`{name}`" for one in sources for name in one.datasets)
        address = source.page.removeprefix("https://")
        lines.append(f"| {title} | {names} | [{address}]({source.page}) | {source.files} | {source.licence} |")
    return "\n".join(lines) + "\n"


def commands() -> str:
    """The commands of docs/data.md, one for each source, with its note."""
    lines = []
    for title, group in groupby(SOURCES, key=lambda source: source.title):
        sources = list(group)
        lines += [f"# {title}: {sources[0].note}"] if sources[0].note else []
        lines += [source.command() for source in sources]
    return "\n".join(lines) + "\n"
