"""Other people's file formats, turned into the common one (data/jsonl.py): a pure function of rows for each.

CONVERTERS  format -> rows of that format -> examples as objects of the common format, and a Skipped for what has none
UNPACKED    format -> one JSON value of its files -> rows, where a file holds one value and not a list or lines of rows

scripts/prepare_data.py is what people call, data/converters/files.py reads their files. A converter raises ValueError at a
row that is not of its format, and has read no further: called again on the same iterator, it goes on behind that row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from data.converters.fields import Converted
from data.converters.meetings_and_contracts import contract_nli, contract_nli_rows, qmsum
from data.converters.multi_document import hotpotqa, musique, nq, pivoted, two_wiki
from data.converters.stories_and_papers import fairytaleqa, narrativeqa, qasper, qasper_rows, quality
from data.converters.summaries_and_tasks import kv_retrieval, longbench, multi_news

CONVERTERS: dict[str, Callable[[Iterable[Any]], Iterator[Converted]]] = {
    "nq": nq,
    "hotpotqa": hotpotqa,
    "2wikimultihopqa": two_wiki,
    "musique": musique,
    "qmsum": qmsum,
    "contract_nli": contract_nli,
    "narrativeqa": narrativeqa,
    "qasper": qasper,
    "multi_news": multi_news,
    "quality": quality,
    "fairytaleqa": fairytaleqa,
    "kv_retrieval": kv_retrieval,
    "longbench": longbench,
}
UNPACKED: dict[str, Callable[[Any], Iterator[Any]]] = {
    "hotpotqa": pivoted,
    "2wikimultihopqa": pivoted,
    "contract_nli": contract_nli_rows,
    "qasper": qasper_rows,
}
