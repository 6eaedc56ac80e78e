"""Evaluated readers and their page for tests."""

import re
from html.parser import HTMLParser

from evaluated import prediction, write_reader

from breviary.evaluation.results import find_results
from breviary.memory.trace import TokenSpan
from breviary.report.page.build import write_page
from breviary.report.page.measured_rows import group_rows
from breviary.report.reading_map_marks import Card
from breviary.report.sweep import group_results, load_results

HOSTILE = "<script>alert(1)</script>\"' onclick=x &lt; </style></svg> \x1b {{ 1 }}"

VOID = {"meta", "br"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails where tags do not balance."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.text, self.headings = [], [], [], "", []
        self.feed(text)
        assert self.open == []
        self.ids = [value for _, name, value in self.attributes if name == "id"]

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.attributes += [(tag, name, value) for name, value in attrs]
        if re.fullmatch(r"h\d", tag):
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def write_readers(root, name=str, **more):
    """Four readers on eight questions: full context and no context, snapkv at 4x and 8x."""
    lengths, places = (100, 110, 120, 130, 140, 150, 160, 170), (0.0, 0.1, 0.3, 0.45, 0.5, 0.7, 0.9, 0.99)
    scores = {
        "full_context": (1.0, 1, 1, 0.5, 1, 1, 0.5, 1),
        "snapkv": (1.0, 1, 0, 0.5, 1, 0, 0.5, 1),
        "snapkv, ratio=8": (0.5, 0, 0, 0.5, 1, 0, 0, 0),
        "no_context": (0.0, 0, 0, 0, 0, 0, 0, 0.5),
    }
    slots = {"full_context": 1, "snapkv": 4, "snapkv, ratio=8": 8}
    for number, (reader, values) in enumerate(scores.items()):
        rows = []
        for i, value in enumerate(values):
            kept = lengths[i] // slots[reader] if reader in slots else 0
            footprint = {"memory_slots": kept, "memory_bytes": 8 * kept}
            rows.append(prediction(i, float(value), lengths[i], places[i], **footprint))
        write_reader(root / str(number), name(reader), rows, slots.get(reader), **more)
    return root


def groups_of(root, metric=None):
    return group_rows(group_results(load_results(find_results([str(root)])))[0], metric)


def page_of(root, folder, **more):
    settings, _ = group_results(load_results(find_results([str(root)])))
    return write_page(folder, settings, None, "A title", "A caption.", **more)


class Row:
    """A row of the page with the fields that its runs use."""

    def __init__(self, label):
        self.label = label


def a_card(text="abcdef", question="Who?"):
    offsets = tuple((i, i + 1) for i in range(len(text)))
    spans = (TokenSpan("kept", 2, 1, relevance=0.5), TokenSpan("skimmed", len(text) - 2, 2, relevance=0.1))
    return Card(question, "x", ("y",), False, 0.5, text, offsets, (), spans, 3, "4x")
