"""Answer metrics: one family a file, their registry, and the scores of a data set.

answers        exact match, containment, F1, in any script        rouge_scores   ROUGE of several packages
substrings     RULER, BABILong                                    choices        multiple choice, letters and likelihood
longbench      classes, counts, retrieval, code, Chinese          infinitebench  its own rules
orders         numbers, orders, rankings                          bertscore      with a model in a local folder
registry       names, versions, libraries; what a data set names  scripts        words of any script
"""

from data.metrics.answers import RULES, contains, exact_match, rules, token_f1
from data.metrics.registry import DEFAULT, METRICS, METRICS_VERSION, Scorer, metric_problems, scores
from data.metrics.rouge_scores import rouge, rouge_1, rouge_l
from data.metrics.scripts import fold, has_other_script, has_unspaced_script, normalise, separate, without_punctuation

__all__ = [
    "DEFAULT",
    "METRICS",
    "METRICS_VERSION",
    "RULES",
    "Scorer",
    "contains",
    "exact_match",
    "fold",
    "has_other_script",
    "has_unspaced_script",
    "metric_problems",
    "normalise",
    "rouge",
    "rouge_1",
    "rouge_l",
    "rules",
    "scores",
    "separate",
    "token_f1",
    "without_punctuation",
]
