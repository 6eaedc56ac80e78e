"""Converters of public data sets' formats into the common one (data/jsonl.py), each a pure function of rows.

CONVERTERS  {format: function from rows of that format to examples, as objects of the common format, and Skipped}
UNPACKERS   {format: function from one JSON value to rows}, for files that hold one value instead of a list or lines

prepare.py uses them, files.py reads the files. A converter raises ValueError at a row that does not fit its format. It
has not consumed any later row by then, so calling it again on the same iterator continues after
the bad row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from data.converters.fields import Converted
from data.converters.meetings_and_contracts import contract_nli, contract_nli_rows, qmsum
from data.converters.multi_document import hotpotqa, musique, nq, rows_of_columns, two_wiki
from data.converters.scrolls import scrolls
from data.converters.stories_and_papers import fairytaleqa, narrativeqa, qasper, qasper_rows, quality
from data.converters.summaries_and_tasks import kv_retrieval, longbench, multi_news, prompted

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
    "scrolls": scrolls,
    "prompted": prompted,
}
UNPACKERS: dict[str, Callable[[Any], Iterator[Any]]] = {
    "hotpotqa": rows_of_columns,
    "2wikimultihopqa": rows_of_columns,
    "contract_nli": contract_nli_rows,
    "qasper": qasper_rows,
}
