"""A trained reader as a model of lm-evaluation-harness (package lm_eval 0.4.13, optional).

The harness makes one prompt of a document and a question. Here the prompt is split again, at the field of the task's
document that holds the long text, so that the reader compresses that text and nothing else.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from breviary.contract import Batch, Generation
from breviary.runtime.distributed import print_rank0
from breviary.serving.text_interface import TextReader

try:
    from lm_eval.api.model import LM
except ImportError:  # reported by `require_lm_eval`, before a reader is loaded
    LM = object

CONTEXT_FIELDS = ("context", "text", "input", "passage", "document", "article", "story")
QUESTION_FIELDS = ("question", "query")
# Where the question of a prompt begins that has no field of its own for the context: RULER. The last one counts.
QUESTION_MARKS = ("\nQuestion:", "\nWhat are all the special magic", "\nWhat is the special magic")
MAX_NEW_TOKENS = 256  # of the harness, where a task sets no max_gen_toks
_CONTENT = "BREVIARYCONTENT"


def require_lm_eval() -> None:
    """Raises ValueError where the package lm_eval is not installed."""
    if LM is object:
        raise ValueError(
            "the package lm_eval is not installed, which has the tasks of lm-evaluation-harness; "
            'python -m pip install "lm_eval==0.4.13"'
        )


@dataclass(frozen=True)
class SplitPrompt:
    """A prompt in three parts that together are the prompt; `field` states how it was split."""

    before: str
    context: str
    after: str
    question: str  # alone, for encoders
    field: str


def split_prompt(prompt: str, doc: Any, header: str = "", fields: Sequence[str] = CONTEXT_FIELDS) -> SplitPrompt:
    """A prompt split at its long text.

    doc     the task's document: the first of `fields` whose text, or stripped text, stands in the prompt and is not
            all of it; its last occurrence, as few-shot examples stand before it. A text that holds the question as
            well, in a document without a field for it, is not taken
    header  of a chat template: never part of the context
    Without such a field the context ends where the last of QUESTION_MARKS begins; without one the context is empty.
    """
    values: Mapping[str, Any] = doc if isinstance(doc, Mapping) else {}
    question = next((values[key] for key in QUESTION_FIELDS if isinstance(values.get(key), str)), "")
    start = len(header) if header and prompt.startswith(header) else 0
    for field in fields:
        for text in _forms(values.get(field)):
            at = prompt.rfind(text)
            holds_question = not question and any(mark in text for mark in QUESTION_MARKS)  # RULER
            if at >= start and prompt[at + len(text) :].strip() and not holds_question:
                after = prompt[at + len(text) :]
                return SplitPrompt(prompt[:at], text, after, question or after.strip(), field)
    at = max(prompt.rfind(mark) for mark in QUESTION_MARKS)
    if at > start:
        return SplitPrompt(
            prompt[:start], prompt[start:at], prompt[at:], question or prompt[at:].strip(), "question mark"
        )
    return SplitPrompt(prompt[:start], "", prompt[start:], question or prompt[start:].strip(), "none")


def _forms(value: Any) -> list[str]:
    return [text for text in (value, value.strip()) if text.strip()] if isinstance(value, str) else []


class ReaderLM(LM):  # type: ignore[misc, valid-type]
    """A reader to which the harness sends its requests.

    reader         as of `load_reader`
    batch_size     requests at a time; requests on one context are adjacent, and it is encoded once
    fields         fields of a task's document that may hold the context
    splits         {task: {field: requests}}: how prompts were split, for the results
    truncated      requests whose context was cut in the middle, as it did not fit
    contexts_read  distinct contexts
    """

    def __init__(self, reader: TextReader, batch_size: int = 8, fields: Sequence[str] = CONTEXT_FIELDS) -> None:
        super().__init__()
        self.texts, self.reader, self.tokenizer = reader, reader.reader, reader.reader.tokenizer
        self.batch_size, self.fields = batch_size, tuple(fields)
        self.splits: dict[str, dict[str, int]] = {}
        self.truncated = 0
        self._contexts: set[str] = set()
        self._header = ""

    @property
    def contexts_read(self) -> int:
        """As the class states."""
        return len(self._contexts)

    # -------------------------------------------------------------- the interface of lm_eval

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The decoded text of each request (prompt, settings), cut before the first of its `until` texts."""
        answers: dict[int, str] = {}
        for places, splits in self._batches(requests):
            generations = [_generation(requests[place].args[1]) for place in places]
            for generation in dict.fromkeys(generations):
                rows = [i for i, other in enumerate(generations) if other == generation]
                batch = self._batch([splits[i] for i in rows], [""] * len(rows), generation.max_new_tokens)
                for i, text in zip(rows, self.reader.answer(batch, generation)):
                    answers[places[i]] = text
        return [answers[place] for place in range(len(requests))]

    @torch.no_grad()
    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log likelihood in nats, whether greedy decoding yields it) of each request (prompt, continuation)."""
        found: dict[int, tuple[float, bool]] = {}
        for places, splits in self._batches(requests):
            pairs = [_move_blanks(split, requests[place].args[1]) for place, split in zip(places, splits)]
            batch = self._batch([split for split, _ in pairs], [text for _, text in pairs])
            for place, value in zip(places, self._likelihoods(batch)):
                found[place] = value
        return [found[place] for place in range(len(requests))]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Raises NotImplementedError: a text without a question has nothing to compress."""
        raise NotImplementedError(
            "tasks that score whole texts (loglikelihood_rolling) have no context and question, so a reader has "
            "nothing to compress; choose tasks of output_type generate_until, loglikelihood or multiple_choice"
        )

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The messages as one text; without a generation prompt the last message stays open."""
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            enable_thinking=False,
        )

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The tokenizer's template. Raises: ValueError where it has none."""
        if not chat_template:
            return None
        if not self.tokenizer.chat_template:
            raise ValueError(f"chat=true, but the tokenizer {self.tokenizer.name_or_path!r} has no chat template")
        self._header = self.apply_chat_template([{"role": "user", "content": _CONTENT}]).partition(_CONTENT)[0]
        return self.tokenizer.chat_template

    @property
    def tokenizer_name(self) -> str:
        """For the harness's cache of requests."""
        return self.tokenizer.name_or_path.replace("/", "__")

    # -------------------------------------------------------------- batches

    def _batches(self, requests: Sequence[Any]) -> Iterator[tuple[list[int], list[SplitPrompt]]]:
        """Places of requests and their prompts, by context: the reader's context cache is on meanwhile."""
        splits = [split_prompt(r.args[0], getattr(r, "doc", None), self._header, self.fields) for r in requests]
        for request, split in zip(requests, splits):
            counts = self.splits.setdefault(str(getattr(request, "task_name", None)), {})
            counts[split.field] = counts.get(split.field, 0) + 1
        order = sorted(range(len(requests)), key=lambda place: (splits[place].before, splits[place].context))
        if self.reader.context_cache_class is not None:
            self.reader.context_cache = self.reader.context_cache_class(self.batch_size)
        try:
            for start in range(0, len(order), self.batch_size):
                places = order[start : start + self.batch_size]
                self._contexts |= {splits[place].context for place in places}
                yield places, [splits[place] for place in places]
                print_rank0(f"  {min(start + self.batch_size, len(order))}/{len(order)} requests")
        finally:
            self.reader.context_cache = None

    def _batch(self, splits: Sequence[SplitPrompt], answers: Sequence[str], new_tokens: int = 0) -> Batch:
        """The prompts as tokens; a context that does not fit is cut in the middle."""
        device = next(self.reader.parameters()).device
        batch, cut = self.texts.split_batch(splits, answers, new_tokens)
        self.truncated += cut
        return batch.to(device)

    def _likelihoods(self, batch: Batch) -> list[tuple[float, bool]]:
        output = self.reader.loss(batch)
        if output.supervised is not None and output.token_hits is not None:
            greedy = (output.token_hits | ~output.supervised.mask).all(1).tolist()
        else:  # a reader without losses of single tokens
            width = int(batch.answer.lengths.max())
            decoded = self.reader.decode(batch, Generation(max_new_tokens=width))
            rows = zip(decoded, batch.answer.ids, batch.answer.mask)
            greedy = [one.ids[: int(mask.sum())] == ids[mask].tolist() for one, ids, mask in rows]
        return [(-nll, bool(is_greedy)) for nll, is_greedy in zip(output.nll.tolist(), greedy)]


def _generation(settings: Mapping[str, Any]) -> Generation:
    """Decoding settings of a request: until, max_gen_toks, do_sample and temperature."""
    until = settings.get("until") or []
    stop = tuple(text for text in ([until] if isinstance(until, str) else until) if text)
    temperature = float(settings.get("temperature") or 0) if settings.get("do_sample") else 0.0
    return Generation(max_new_tokens=settings.get("max_gen_toks", MAX_NEW_TOKENS), stop=stop, temperature=temperature)


def _move_blanks(split: SplitPrompt, continuation: str) -> tuple[SplitPrompt, str]:
    """Blanks at the end of a prompt belong to the continuation, as in the harness's own models."""
    blanks = split.after[len(split.after.rstrip()) :]
    return replace(split, after=split.after.rstrip()), blanks + continuation


@dataclass(frozen=True)
class HarnessSettings:
    """What scripts/lm_eval.py passes on to the harness.

    tasks    names of its tasks, groups and tags
    limit    first requests of each task; None = all
    fewshot  examples before each prompt; None = as the task states
    chat     with the tokenizer's chat template
    lengths  max_seq_lengths of RULER (a list of numbers) and BABILong (a text such as 4k); None = of the task
    include  a folder with further task definitions
    """

    tasks: tuple[str, ...]
    limit: int | None = None
    fewshot: int | None = None
    chat: bool = False
    lengths: Any = None
    include: str | None = None


def run_tasks(lm: ReaderLM, settings: HarnessSettings) -> dict[str, Any]:
    """Runs the harness's tasks on a reader; returns its results, with `breviary`: how prompts were split.

    Raises: ValueError for unknown tasks, and where a task needs a package that is not installed.
    """
    import lm_eval
    from lm_eval.tasks import TaskManager

    metadata: dict[str, Any] = {"tokenizer": lm.tokenizer.name_or_path}
    if settings.lengths is not None:
        metadata["max_seq_lengths"] = settings.lengths
    tasks = TaskManager(include_path=settings.include, metadata=metadata, include_defaults=settings.include is None)
    if settings.include is not None and not set(settings.tasks) <= set(tasks.all_tasks):
        tasks = TaskManager(include_path=settings.include, metadata=metadata)  # reads thousands of definitions
    unknown = [name for name in settings.tasks if name not in tasks.all_tasks]
    if unknown:
        near = {name: difflib.get_close_matches(name, tasks.all_tasks, n=3) for name in unknown}
        found = "; ".join(f"{name}, near: {', '.join(others) or 'none'}" for name, others in near.items())
        raise ValueError(f"tasks: the harness has no task {found}; `python -m lm_eval ls tasks` lists all")
    try:
        results = lm_eval.simple_evaluate(
            model=lm,
            tasks=list(settings.tasks),
            task_manager=tasks,
            num_fewshot=settings.fewshot,
            limit=settings.limit,
            apply_chat_template=settings.chat,
            metadata=metadata,
        )
    except ImportError as error:  # of a task's own code
        raise ValueError(f"tasks={list(settings.tasks)}: a task needs another package: {error}") from error
    assert results is not None, "one process"
    facts = {"splits": lm.splits, "truncated": lm.truncated, "contexts_read": lm.contexts_read}
    return {**results, "breviary": facts}


def split_notes(splits: Mapping[str, Mapping[str, int]]) -> list[str]:
    """One line for each task: which field its contexts came from, and what was read without compression."""
    notes = []
    for task, counts in splits.items():
        parts = [f"{count} by {field}" for field, count in counts.items() if field != "none"]
        if whole := counts.get("none"):
            parts.append(f"{whole} with no context: nothing was compressed; context_fields=[FIELD] names another field")
        notes.append(f"{task}: prompts split, {', '.join(parts)}")
    return notes
