"""repr and the HTML view of readers, encoded contexts and memories."""

import json
from html.parser import HTMLParser

import pytest
from tiny_runs import QUESTIONS, TEXT, tiny_run

from breviary import load_reader
from breviary.memory.trace import TokenSpan
from breviary.readers.views import MOST_SPANS, TEMPLATES, Described, reader_facts, span_style
from breviary.runtime.html import html_environment, visible_text

HOSTILE = "</span><script>alert(1)</script>\" onmouseover='x' &lt; \x00\x1b half \ud800 pair {{ 7 * 6 }}"


class Page(HTMLParser):
    """The text and the elements of a view; fails where tags do not balance."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        html.encode("utf-8")
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


class View(Described):
    def __init__(self, facts, spans=()):
        self._facts, self._spans = facts, spans

    def facts(self):
        return self._facts

    def shown_spans(self):
        return self._spans


SPANS = [
    TokenSpan("kept", 3, 1, relevance=0.5),
    TokenSpan("skimmed", 4, 2, relevance=0.25, slot_sizes=(2, 2)),
    TokenSpan("group", 2, 1, 5, weights=(0.25, 0.75)),
    TokenSpan("dropped", 1),
    TokenSpan("whole", 7),
]


def test_repr_is_one_line_of_the_facts():
    assert repr(View({"tokens read": "12", "slots": "3"})) == "View(tokens read: 12; slots: 3)"


def test_the_html_view_shows_facts_legend_and_the_whole_text():
    page = Page(View({"slots": "3"}, [(span, f"text {i}, ") for i, span in enumerate(SPANS)])._repr_html_())
    assert "slots" in page.text and "".join(f"text {i}, " for i in range(5)) in page.text
    assert page.tags.count("li") == 5 and [value for name, value in page.attributes if name == "title"] == [
        "segment 1; kept: 3 tokens, 3 slots; relevance 0.500",
        "segment 2; skimmed: 4 tokens, 2 slots; relevance 0.250",
        "group: 5 tokens, 1 slot; weights 0.25 to 0.75",
        "dropped: 1 tokens, 0 slots",
        "whole",
    ]


def test_a_view_without_spans_is_a_table():
    page = Page(View({"slots": "3"})._repr_html_())
    assert "details" not in page.tags and "What was kept" not in page.text


def test_foreign_text_is_escaped_and_visible():
    view, harmless = (View({word: word}, [(span, word) for span in SPANS]) for word in (HOSTILE, "word"))
    page = Page(view._repr_html_())
    assert page.tags == Page(harmless._repr_html_()).tags and "script" not in page.tags
    assert page.text.count(visible_text(HOSTILE)) == 2 + len(SPANS)
    assert html_environment(TEMPLATES).autoescape is True
    assert all("safe" not in file.read_text().partition("-#}")[2] for file in TEMPLATES.glob("*.jinja"))


def test_a_long_text_is_shown_up_to_a_limit():
    page = Page(View({}, [(TokenSpan("group", 4, i, 4), "x") for i in range(MOST_SPANS + 10)])._repr_html_())
    assert "40 further tokens are not shown" in page.text and "x" * MOST_SPANS in page.text


def test_the_fewer_tokens_share_a_slot_the_stronger_is_its_colour():
    opacity = [float(span_style(TokenSpan("group", n, 1, n)).rpartition(", ")[2].rstrip(")")) for n in (1, 4, 16)]
    assert opacity == sorted(opacity, reverse=True)


@pytest.fixture(scope="module")
def ram(tmp_path_factory):
    return load_reader(tiny_run(tmp_path_factory.mktemp("run"), "compressor=ram", "compressor.segment_size=16"))


def test_views_of_a_reader_a_document_and_a_memory(ram, tmp_path):
    own = "method: RAM; requested ratio: 4x; join: input; reader: x; backbone: tiny_llama; training: 2 steps"
    assert repr(ram) == f"TextReader({own}; computes: in float32 on cpu)"
    document = ram.read(TEXT)
    memory = ram.memory(document, QUESTIONS[0])
    sizes = f"bytes: {document.bytes:,}, the key/value cache of the same text {document.cache_bytes:,}"
    assert repr(document).startswith("EncodedDocument(begins: 'For the town") and repr(document).endswith(
        f" ...'; tokens read: {document.tokens_read}; slots: computed for each question; {sizes}; {own})"
    )
    each = document.tokens_read / len(memory)
    assert f"; slots: {len(memory)}, {each:.1f} tokens each; bytes: {memory.bytes:,}, " in repr(memory)
    page = Page(memory._repr_html_())
    assert TEXT in page.text and QUESTIONS[0] in page.text and "segment 1; " in json.dumps(page.attributes)
    memory.save(tmp_path / "memory")
    loaded = ram.load(tmp_path / "memory")
    assert repr(loaded) == repr(memory) and "What was kept" not in Page(loaded._repr_html_()).text


def test_a_memory_for_any_question_states_its_slots_once_it_has_them(tmp_path):
    reader = load_reader(tiny_run(tmp_path, "compressor=full_context", "decoder.train=frozen"))
    own = "requested ratio: 1x; reader: x; backbone: tiny_llama; training: untrained"
    assert own in repr(reader)
    document = reader.read(TEXT)
    assert "slots: computed at the first question" in repr(document)
    reader.answer_from(document, QUESTIONS[0])
    assert f"slots: {document.tokens_read}, 1.0 tokens each" in repr(document)


def test_the_view_of_a_session(tmp_path):
    reader = load_reader(tiny_run(tmp_path, "compressor=comet"))
    session = reader.read(TEXT)
    assert repr(session).startswith(f"Session(tokens read: {session.tokens_read}; slots: ") and "Comet" in repr(session)
    Page(session._repr_html_())


def test_a_reader_built_in_code_states_its_method(build):
    assert reader_facts(build(["compressor=mean_pool", "decoder.train=frozen"])) == {
        "method": "MeanPool",
        "requested ratio": "4x",
    }
