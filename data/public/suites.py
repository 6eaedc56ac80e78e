"""Tasks of suites that are read from files: LongBench, ZeroSCROLLS, InfiniteBench, SCBench, HELMET.

scripts/prepare_data.py writes one file for each task. A suite's YAML holds `tasks`: prompt, answer limit, stop rule and
metrics of each, which become the keys of the data set where those are null (breviary/config/defaults.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from breviary.contract import Example
from breviary.runtime.spelling import override
from data.checks import check_split, integer_problems, raise_problems
from data.jsonl import Jsonl
from data.public.sources import source_of_folder


class SuiteTask:
    """One task of a suite; it has a test split alone.

    folder   of the prepared files TASK.jsonl.gz
    task     a key of `tasks`
    variant  added to the task's name in the name of its file: _e = LongBench-E
    part     the examples whose id has this among its parts ID/ID/ID, such as 0-4k of LongBench-E; None = all
    tasks    {task: its values of the keys below}; None where they are filled in
    test_limit  the first n examples
    instruction, template, chat, truncation, max_new_tokens, stop  defaults of sections prompt, limits and generation
    metrics  scores of the table
    """

    def __init__(
        self,
        folder: str,
        task: str,
        variant: str = "",
        part: str | None = None,
        test_limit: int | None = None,
        instruction: str | None = None,
        template: str | None = None,
        chat: bool | None = None,
        truncation: str | None = None,
        max_new_tokens: int | None = None,
        stop: list[str] | None = None,
        metrics: list[str] | None = None,
        tasks: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.task, self.part, self.test_limit, self.tasks, self.metrics = task, part, test_limit, tasks, metrics
        self.template = template
        self.file = Path(folder) / f"{task}{variant}.jsonl.gz"

    def problems(self, splits: list[str]) -> list[str]:
        """An error message for each wrong argument; reads one character of the file."""
        for split in splits:
            check_split(split)
        if self.tasks is not None and self.task not in self.tasks:
            example = override("dataset.task", next(iter(self.tasks)))
            return [f"dataset.task is {self.task!r}; allowed are {', '.join(self.tasks)}, for example {example}"]
        problems = [
            f"dataset.{split}: a suite's task has a test split alone; train on another data set, and set split=test"
            for split in splits
            if split != "test"
        ]
        if self.test_limit is not None:
            problems += integer_problems("test_limit", self.test_limit, 1, None, 100)
        if not self.file.is_file():
            source = source_of_folder(self.file.parent.name)
            hint = (
                f": download {source.title} from {source.page} and run `{source.command()}` (docs/data.md)"
                if source
                else ""
            )
            return [*problems, f"dataset.task={self.task}: no file {self.file}{hint}"]
        return problems + Jsonl(None, None, str(self.file)).problems(["test"])

    def examples(self, split: str) -> list[Example]:
        """The examples of the task, or of its part. Raises: ValueError with the messages of `problems`."""
        raise_problems(self.problems([split]))
        examples = Jsonl(None, None, str(self.file)).examples("test")
        if self.part is not None:
            parts = dict.fromkeys(part for example in examples for part in example.id.split("/")[:-1])
            if self.part not in parts:
                allowed = f"allowed are {', '.join(parts)}, and null" if parts else "this file has none: set it to null"
                raise ValueError(f"dataset.part is {self.part!r}; {allowed}, for example dataset.part=null")
            examples = [example for example in examples if self.part in example.id.split("/")[:-1]]
        return examples[: self.test_limit]
