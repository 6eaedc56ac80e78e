"""The data set of RULER's tasks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from breviary.contract import Example
from breviary.runtime.draws import seeded_rng
from breviary.runtime.spelling import override
from data.checks import SPLITS, integer_problems, raise_problems
from data.public.sources import missing_hint
from data.ruler.questions import FORMATS, SQUAD_PAGE
from data.ruler.task import Draft, Task
from data.ruler.tasks import TASKS, Settings
from data.synthetic.haystack import haystack_problems
from data.synthetic.suite import GeneratedSuite
from data.synthetic.tokens import TokenCounter, most_units

MIN_LENGTH = 256


@dataclass(kw_only=True, eq=False)
class Ruler(GeneratedSuite):
    """One task of RULER at one length.

    task      one of TASKS
    length    tokens of the backbone's tokenizer for prompt, answer prefix and answer limit together, as RULER counts;
              a chat header is not counted. Each example is as long as its whole units (lines, words) allow
    haystack  text file of the tasks whose haystack RULER fills with essays that may not be passed on; alice = the
              built-in public-domain book. Repeated where used up
    documents file of qa_1 (SQuAD v2.0) and qa_2 (HotpotQA), see FORMATS; its questions are taken in order, those of
              test first, then validation and train
    note      printed with the data set's name; None = nothing
    Instruction, template and limit of the answer are the task's, and count in `length`.
    Needles, statements of a chain and paragraphs are documents of an example, gold where the answer depends on them.
    Example i of a split depends only on (task, seed, split, i), the length and the text of the haystack.
    """

    task: str | None
    length: int
    haystack: str | None
    documents: str | None
    note: str | None = None

    def problems(self, splits: list[str]) -> list[str]:
        """An error message for each wrong argument and missing file; sizes are checked for `splits` only."""
        if self.task not in TASKS:
            return [
                f"dataset.task is {self.task!r}; choose a task of RULER with its prompt, such as "
                f"dataset=ruler_niah_single_1; there are: {', '.join(f'ruler_{name}' for name in TASKS)}"
            ]
        problems = integer_problems("length", self.length, MIN_LENGTH, None, 4096)
        return problems + self.size_problems(splits) + self._file_problems(TASKS[self.task].reads)

    def _file_problems(self, reads: str | None) -> list[str]:
        problems = [
            f"dataset.{key} is {value!r}, but task {self.task} reads none; set dataset.{key}=null"
            for key, value in (("haystack", self.haystack), ("documents", self.documents))
            if value is not None and reads != key
        ]
        if reads == "haystack":
            problems += haystack_problems("haystack", self.haystack)
        if reads == "documents" and (self.documents is None or not Path(self.documents).is_file()):
            squad = f"download dev-v2.0.json from {SQUAD_PAGE}" if self.task == "qa_1" else ""
            hint = missing_hint(self.documents or "") or squad
            example = override("dataset.documents", "path/to/dev-v2.0.json")
            problems.append(
                f"dataset.documents is {self.documents!r}, which is not a file; {f'{hint}, or ' if hint else ''}name a "
                f"file of {FORMATS}, for example {example}"
            )
        return problems

    def examples(self, split: str) -> list[Example]:
        """The examples of `split`.

        Raises: ValueError with the messages of `problems`, or where not even the shortest example fits `length`.
        """
        raise_problems(self.problems([split]))
        assert self.task is not None
        count = TokenCounter(self.counter.tokenizer())
        keys = ("length", "template", "max_new_tokens", "seed", "haystack", "documents")
        task = TASKS[self.task].build(Settings(**{key: vars(self)[key] for key in keys}, count=count))
        first = self._first_index(split)

        def fits(units: int) -> bool:
            return self._tokens(count, self._draft(task, split, 0, first, units)) <= self.length

        units = most_units(fits, task.least, task.most)
        return [self._example(count, task, split, i, first + i, units or task.least) for i in range(self.sizes[split])]

    def _first_index(self, split: str) -> int:
        """Examples of the splits before this one in test, validation, train."""
        order = SPLITS[::-1]
        return sum(self.sizes[name] for name in order[: order.index(split)])

    def _draft(self, task: Task, split: str, index: int, number: int, units: int) -> Draft:
        return task.draft(seeded_rng("ruler", str(self.task), self.seed, split, index), units, number)

    def _tokens(self, count: TokenCounter, draft: Draft) -> int:
        prompt = self.template.replace("{question}", draft.question) + draft.answer_prefix
        return count(self.instruction, draft.context, prompt) + self.max_new_tokens

    def _example(self, count: TokenCounter, task: Task, split: str, index: int, number: int, units: int) -> Example:
        draft = self._draft(task, split, index, number, units)
        while self._tokens(count, draft) > self.length:
            if units <= task.least:
                raise ValueError(
                    f"dataset.length is {self.length}; the shortest example of task {self.task} takes "
                    f"{self._tokens(count, draft)} tokens here, for example dataset.length=4096"
                )
            units = max(units - task.step, task.least)
            draft = self._draft(task, split, index, number, units)
        name = f"{self.task}-{split}-{self.seed}-{index}"
        return Example(
            name, draft.context, draft.question, draft.answers, draft.documents, answer_prefix=draft.answer_prefix
        )
