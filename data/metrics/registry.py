"""The metrics that a data set's YAML can name, with their versions and libraries, and their scores of one answer.

A name is one of METRICS, or bertscore:FOLDER[:LAYER]. NAME@VIEW scores a part of the answer (VIEWS).
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import data.metrics.answers as answers
import data.metrics.bertscore as bertscore
import data.metrics.choices as choices
import data.metrics.infinitebench as infinitebench
import data.metrics.longbench as longbench
import data.metrics.orders as orders
import data.metrics.rouge_scores as rouge_scores
import data.metrics.substrings as substrings
from breviary.contract import Example

# Increased when any score of DEFAULT changes, or one of data/restoration.py: results of another version are measured
# anew. 1: squad alone, for every text; 2: the rules of data/metrics/answers.py.
METRICS_VERSION = 2

DEFAULT = ("em", "em_contains", "f1", "rouge_l")  # of every answer, whatever the data set names

Score = Callable[[str, Sequence[str], Example], float]


@dataclass(frozen=True)
class Metric:
    """One metric.

    score    (prediction, references, example) -> value; None where the reader or all examples determine it
    source   the suite or paper whose rule it is
    library  the package that computes it; "" = this one
    version  increased when a score changes
    parts    scores of one answer that this metric of all examples is made of
    needs    field of an example that it reads: "" or "choices"
    """

    score: Score | None
    source: str
    library: str = ""
    version: int = 1
    parts: tuple[str, ...] = ()
    needs: str = ""


def _plain(score: Callable[[str, Sequence[str]], float]) -> Score:
    return lambda prediction, references, example: score(prediction, references)


def _of_choices(score: Callable[[str, Sequence[str], Sequence[str]], float]) -> Score:
    return lambda prediction, references, example: score(prediction, references, example.choices)


def _babilong(prediction: str, references: Sequence[str], example: Example) -> float:
    return substrings.babilong(prediction, references, example.choices, example.question)


def _rouge(type: str) -> Score:
    return lambda prediction, references, example: rouge_scores.rouge_n(prediction, references, type)


_LONGBENCH, _INFINITE, _ZERO = "LongBench", "InfiniteBench", "ZeroSCROLLS"

METRICS: dict[str, Metric] = {
    "em": Metric(_plain(answers.exact_match), "SQuAD, every script"),
    "em_contains": Metric(_plain(answers.contains), "lost in the middle, HELMET"),
    "f1": Metric(_plain(answers.token_f1), "SQuAD, every script"),
    "rouge_l": Metric(_plain(rouge_scores.rouge_l), "HELMET: stemmed; every script", "rouge-score"),
    "rouge1": Metric(_rouge("rouge1"), "SCROLLS: not stemmed", "rouge-score"),
    "rouge2": Metric(_rouge("rouge2"), "SCROLLS: not stemmed", "rouge-score"),
    "rougeL": Metric(_rouge("rougeL"), "SCROLLS: not stemmed", "rouge-score"),
    "rougeLsum": Metric(_rouge("rougeLsum"), "InfiniteBench: not stemmed, lines", "rouge-score"),
    "rouge_geometric": Metric(
        None, "SCROLLS: geometric mean of the means", "rouge-score", parts=("rouge1", "rouge2", "rougeL")
    ),
    "rougeL_longbench": Metric(_plain(rouge_scores.rouge_l_of_sentences), "LongBench: rouge 1.0.1"),
    "string_match_all": Metric(_plain(substrings.string_match_all), "RULER"),
    "string_match_part": Metric(_plain(substrings.string_match_part), "RULER"),
    "babilong": Metric(_babilong, "BABILong"),
    "choice_letter": Metric(_of_choices(choices.choice_letter), _ZERO),
    "choice_letter_v2": Metric(_of_choices(choices.choice_letter_v2), "LongBench v2"),
    "choice_likelihood": Metric(None, "lm-evaluation-harness: acc", needs="choices"),
    "choice_likelihood_norm": Metric(None, "lm-evaluation-harness: acc_norm", needs="choices"),
    "classification": Metric(_of_choices(longbench.classification), _LONGBENCH, needs="choices"),
    "count": Metric(_plain(longbench.number_share), _LONGBENCH),
    "retrieval": Metric(_plain(longbench.number_share), _LONGBENCH),
    "edit_similarity": Metric(_plain(longbench.edit_similarity), "LongBench: difflib", "python"),
    "zh_f1": Metric(_plain(longbench.zh_f1), _LONGBENCH, "jieba"),
    "zh_f1_characters": Metric(_plain(longbench.zh_f1_characters), _INFINITE),
    "zh_rougeL": Metric(_plain(longbench.zh_rouge_l), _LONGBENCH, "jieba"),
    "continuation_perplexity": Metric(None, "exp of nats a token, end token left out"),
    "exponential_similarity": Metric(_plain(orders.exponential_similarity), _ZERO),
    "concordance": Metric(_plain(orders.concordance), _ZERO),
    "ndcg10": Metric(_plain(orders.ndcg10), "HELMET"),
    "first_number": Metric(_plain(infinitebench.first_number), _INFINITE),
    "math_find": Metric(_plain(infinitebench.math_find), _INFINITE),
    "math_calc": Metric(_plain(infinitebench.math_calc), _INFINITE),
    "kv_word": Metric(_plain(infinitebench.kv_word), _INFINITE),
    "name_word": Metric(_plain(infinitebench.name_word), _INFINITE),
    "code_run": Metric(_plain(infinitebench.code_run), _INFINITE),
    "code_debug": Metric(_plain(infinitebench.code_debug), _INFINITE),
    "book_choice": Metric(_plain(infinitebench.book_choice), _INFINITE),
    "bertscore": Metric(None, "arXiv 1904.09675, no rescaling", "transformers"),
}

LIKELIHOODS = ("choice_likelihood", "choice_likelihood_norm")  # measured by the reader
PERPLEXITY = "continuation_perplexity"


# ------------------------------------------------------------------ views of an answer


def first_line(prediction: str) -> str:
    """The first line behind leading line breaks: lost in the middle; trec, triviaqa, samsum, lsht of LongBench."""
    return prediction.lstrip("\n").split("\n")[0]


def answer_line(prediction: str) -> str | None:
    """The rest of the line behind the first "Answer:"; None where there is none."""
    _, mark, rest = prediction.partition("Answer:")
    return rest.split("\n")[0].strip() if mark else None


# {name: texts of a prediction of which the best counts}
VIEWS: dict[str, Callable[[str], list[str]]] = {
    "first_line": lambda text: [first_line(text)],
    "answer_line": lambda text: [text, *([line] if (line := answer_line(text)) is not None else [])],  # HELMET
}


# ------------------------------------------------------------------ names


def split_name(name: str) -> tuple[str, str, str]:
    """(metric, argument, view) of a name: f1@first_line is ("f1", "", "first_line")."""
    base, _, view = name.rpartition("@") if name.rpartition("@")[2] in VIEWS else (name, "", "")
    metric, _, argument = base.partition(":")
    return metric, argument, view


def metric_problems(names: Sequence[str] | None) -> list[str]:
    """An error message for each wrong name of dataset.metrics; None = DEFAULT."""
    if names is None:
        return []
    if not names:
        return ["dataset.metrics is empty; name at least one, e.g. dataset.metrics=[f1,em]; null = em, f1 and others"]
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    problems = [f"dataset.metrics: {name} occurs twice" for name in repeated]
    for name in dict.fromkeys(names):
        metric, argument, view = split_name(name)
        if metric not in METRICS:
            near = difflib.get_close_matches(metric, METRICS, n=1)
            hint = f"the nearest right one is {near[0]}; " if near else ""
            problems.append(f"dataset.metrics: unknown metric {name}; {hint}allowed are {', '.join(METRICS)}")
        elif metric == "bertscore":
            problems += bertscore.folder_problems(argument)
        elif argument or (view and METRICS[metric].score is None):
            problems.append(f"dataset.metrics: {name}: {metric} takes no {'folder' if argument else 'view'}; {metric}")
        elif METRICS[metric].library == "jieba":
            problems += _call_problems(longbench.segmenter)
    return problems


def _call_problems(call: Callable[[], Any]) -> list[str]:
    try:
        call()
    except ValueError as error:
        return [f"dataset.metrics: {error}"]
    return []


def _scorer(name: str) -> Score:
    """The score of a name; None of METRICS as well where it is one of bertscore:FOLDER."""
    metric, argument, view = split_name(name)
    score = METRICS[metric].score
    if metric == "bertscore":
        model = bertscore.model_of(argument)
        score = _plain(model.f1)
    assert score is not None, name
    if not view:
        return score
    return functools.partial(_best_view, VIEWS[view], score)


def _best_view(
    view: Callable[[str], list[str]], score: Score, prediction: str, references: Sequence[str], example: Example
) -> float:
    return max(score(text, references, example) for text in view(prediction))


# ------------------------------------------------------------------ scores of a data set


class Scorer:
    """Scores of answers: DEFAULT, and what a data set's YAML names.

    names       the metrics that tables show, the first one is the headline
    further     {name: version} beyond DEFAULT: results without them lack a score
    likelihood  the reader measures the likelihood of each choice
    perplexity  the reader measures the likelihood of the answer without its end token
    aggregates  {name: its parts}: geometric means of mean scores
    Raises: ValueError with the messages of `metric_problems`.
    """

    def __init__(self, names: Sequence[str] | None = None) -> None:
        problems = metric_problems(names)
        if problems:
            raise ValueError("\n".join(problems))
        self.names: tuple[str, ...] = tuple(DEFAULT if names is None else names)
        bases = {name: METRICS[split_name(name)[0]] for name in self.names}
        self.further: Mapping[str, Any] = {name: _version(name) for name in self.names if name not in DEFAULT}
        self.aggregates: Mapping[str, Sequence[str]] = {
            name: metric.parts for name, metric in bases.items() if metric.parts
        }
        self.likelihood = any(name in LIKELIHOODS for name in self.names)
        self.perplexity = PERPLEXITY in self.names
        parts = [part for metric in bases.values() for part in metric.parts]
        texts = [name for name in self.names if not bases[name].parts and name not in (*LIKELIHOODS, PERPLEXITY)]
        self._scores = {name: _scorer(name) for name in dict.fromkeys((*DEFAULT, *texts, *parts))}

    def __call__(self, prediction: str, references: Sequence[str], example: Example | None = None) -> dict[str, float]:
        """{metric: value} of one answer, the best over the references.

        example  None = one without a question and choices
        """
        example = example or Example("", "", "", tuple(references))
        return {name: score(prediction, references, example) for name, score in self._scores.items()}

    def of_choices(self, nll: Sequence[float], example: Example) -> dict[str, float]:
        """Scores of the likelihood of each choice; nll: nats, end token left out."""
        found = choices.choice_likelihood(nll, example.choices, example.answers)
        return {name: value for name, value in found.items() if name in self.names}

    def rescored(self, row: Mapping[str, Any], example: Example) -> dict[str, float] | None:
        """Every score of a row of predictions.jsonl; None where the reader has to measure a likelihood."""
        lacks_perplexity = self.perplexity and "continuation_nll" not in row.get("ratios", {})
        if lacks_perplexity or (self.likelihood and "choice_nll" not in row):
            return None
        found = self(row["prediction"], row["references"], example)
        return found | (self.of_choices(row["choice_nll"], example) if self.likelihood else {})

    def example_problems(self, examples: Sequence[Example]) -> list[str]:
        """An error message where examples lack a field that a metric reads."""
        needing = [name for name in self.names if METRICS[split_name(name)[0]].needs == "choices"]
        lacking = next((example.id for example in examples if not example.choices), None) if needing else None
        if lacking is None:
            return []
        return [
            f"dataset.metrics: {', '.join(needing)} needs the choices of every example, which example {lacking!r} has "
            'not; "choices": ["yes", "no"] in its line, or name other metrics, e.g. dataset.metrics=[em]'
        ]

    def record(self) -> dict[str, Any]:
        """{"names", "details", "aggregates"} for results.json: rule, version and library of each metric."""
        details = {}
        for name in dict.fromkeys((*self.names, *self._scores)):
            metric = METRICS[split_name(name)[0]]
            details[name] = {"rule": metric.source, "version": _version(name)}
            if metric.library:
                details[name]["library"] = _library(metric.library)
        return {"names": list(self.names), "details": details, "aggregates": _lists(self.aggregates)}


def _lists(parts: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    return {name: list(values) for name, values in parts.items()}


def _version(name: str) -> Any:
    metric, argument, _ = split_name(name)
    number = METRICS_VERSION if metric in DEFAULT else METRICS[metric].version
    return f"{number} {bertscore.fingerprint(argument)}" if metric == "bertscore" else number


def _library(package: str) -> str:
    """ "rouge-score 0.1.2"."""
    if package == "python":
        return "difflib"
    return f"{package} {version(package)}"


def scores(prediction: str, references: Sequence[str], example: Example | None = None) -> dict[str, float]:
    """DEFAULT of one answer: em, em_contains, f1, rouge_l, each in [0, 1]."""
    return _default()(prediction, references, example)


@functools.cache
def _default() -> Scorer:
    return Scorer()
