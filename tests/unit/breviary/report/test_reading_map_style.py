"""The page of a reading map: foreign text is escaped, and its style sheet can be read by everyone."""

import re
from dataclasses import replace

import pytest
from reading_map_pages import HOSTILE, STYLE, TEXT, Parsed, byte_offsets, card, parsed

from breviary.memory.trace import TokenSpan, spans_from_trace
from breviary.report.reading_map_marks import LEVELS, Piece, TextRun
from breviary.report.reading_map_page import TEMPLATES, render_page, template_environment
from breviary.runtime.html import visible_text
from tests.traces import ram_trace

# ------------------------------------------------------------------ foreign text


@pytest.mark.parametrize("text", HOSTILE)
def test_foreign_text_is_escaped_everywhere(text):
    tokens = len(byte_offsets(text))
    segments = -(-tokens // 3)
    trace = ram_trace([i % 2 == 0 for i in range(segments)], [0.1 * i for i in range(segments)], tokens, 3)
    groups = {"groups": [[t // 2 for t in range(tokens)]], "weights": [[0.5] * tokens]}
    gold = tuple(t % 2 == 0 for t in range(tokens))
    cards = [
        card(text, spans=spans, question=text, prediction=text, references=(text, text), requested=text, gold=gold)
        for spans in (spans_from_trace(tokens, trace, 3), spans_from_trace(tokens, groups))
    ]
    html = render_page([(text, text)], cards)
    html.encode("utf-8")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", html)
    page = Parsed(html)
    assert not [name for _, name, _ in page.attributes if name.startswith("on") or name in ("src", "style")]
    if text.strip():
        plain = "x" * len(text)
        harmless = parsed(
            *[
                replace(c, question=plain, prediction=plain, references=(plain, plain), requested=plain, context=plain)
                for c in cards
            ],
            facts=[(plain, plain)],
        )
        assert page.tags == harmless.tags
    if text:
        assert page.document(0) == page.document(1) == visible_text(text)
    if text.strip():
        assert "".join(page.text).count(visible_text(text)) >= 2 * 6 + 3  # six per card; title, fact and its name


def test_attributes_are_escaped():
    hostile = "\"><script>' onclick=x \x1b &"
    macros = template_environment().get_template("reading_map_macros.html.jinja").module
    page = Parsed(macros.piece(Piece(hostile, hostile, [TextRun(hostile, hostile)])))
    visible = visible_text(hostile)
    assert [value for *_, value in page.attributes] == [visible, "0", "group", visible, visible]
    assert "".join(page.text) == visible_text(hostile)


def test_no_template_exempts_a_value_from_escaping():
    assert template_environment().autoescape is True
    for file in TEMPLATES.glob("*.jinja"):
        assert not re.search(r"\|\s*safe|\{%-?\s*autoescape", file.read_text()), file.name


def test_visible_text_changes_only_control_characters():
    for text in (*HOSTILE, TEXT, "\u2028\u200d\ufeffא"):
        assert len(visible_text(text)) == len(text)
    assert visible_text(TEXT) == TEXT and visible_text("\x00\r\t\n\x7f\x80") == "␀␍\t\n␡\ufffd"


def test_the_page_loads_no_resource_and_runs_no_script():
    page = Parsed(render_page([("Reader", "ram")], [card()]))
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(page.tags)
    links = [value for _, name, value in page.attributes if name in ("src", "href", "action", "data")]
    assert links == ["#question-1", "#end-1"] and ("h2", "id", "question-1") in page.attributes
    assert not re.search(r"url\(|@import|https?:", STYLE.read_text())
    assert ("meta", "content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
    assert ("meta", "content", "width=device-width, initial-scale=1") in page.attributes


# ------------------------------------------------------------------ the style sheet


def schemes():
    """The colours of both schemes, {name: (r, g, b)}."""
    light, dark = re.findall(r":root \{(.*?)\}", STYLE.read_text(), re.DOTALL)
    return {
        name: {
            key: tuple(int(value[i : i + 2], 16) for i in (0, 2, 4))
            for key, value in re.findall(r"--(\w+): #([0-9a-f]{6});", block)
        }
        for name, block in (("light", light), ("dark", dark))
    }


def contrast(one, other):
    """WCAG 2.2, relative luminance."""

    def luminance(colour):
        linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_marks_have_sufficient_contrast_on_every_background(scheme):
    colours = schemes()[scheme]
    assert schemes()["light"].keys() == schemes()["dark"].keys()
    pairs = [(ink, ground) for ink in ("ink", "dim", "skim") for ground in ("page", "card")]
    pairs += [("skim", f"r{i}") for i in range(LEVELS)] + [(f"i{i}", f"s{i}") for i in range(LEVELS)]
    for ink, ground in [*pairs, ("ink", "close"), ("page", "ink")]:
        assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
    for ground in ("page", "card", "close", *(f"{name}{i}" for name in "rs" for i in range(LEVELS))):
        assert contrast(colours["gold"], colours[ground]) >= 3, ground
    for ground in ("page", "card"):
        assert all(contrast(colours[name], colours[ground]) >= 4.5 for name in ("bar", "right", "partly", "wrong"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_was_read_closely_stands_out_and_skimmed_text_recedes(scheme):
    """Against the page's card: the ground of close reading differs more than any skim's, and its ink is stronger."""
    colours = schemes()[scheme]
    skims = [contrast(colours[f"r{i}"], colours["card"]) for i in range(LEVELS)]
    assert contrast(colours["close"], colours["card"]) > 1.15 * max(skims)
    close = contrast(colours["ink"], colours["close"])
    assert all(close > 1.25 * contrast(colours["skim"], colours[f"r{i}"]) for i in range(LEVELS))
    saturation = [max(colours[name]) - min(colours[name]) for name in ("close", *(f"r{i}" for i in range(LEVELS)))]
    assert saturation[0] > 3 * max(saturation[1:])
    rules = STYLE.read_text()
    assert "background: var(--close)" in re.search(r"^\.kept \{(.*?)\}", rules, re.MULTILINE)[1]
    assert "color: var(--skim); font-size: .9em" in re.search(r"^\.skimmed \{(.*?)\}", rules, re.MULTILINE)[1]


def test_paper_keeps_the_marks_and_leaves_out_what_works_on_a_screen_only():
    paper = STYLE.read_text().partition("@media print {")[2]
    assert "print-color-adjust: exact" in paper
    assert re.search(r"nav, \.hint, \.skip, details:not\(\[open\]\) \{ display: none; \}", paper)


def test_every_class_of_the_page_has_a_style_rule():
    trace = {"groups": [[0, 0, 1]], "weights": [[0.1, 0.9, 1.0]]}
    cards = [
        card("abc", spans=spans_from_trace(3, ram_trace([True, False], [0, 1], 3, 2), 2), gold=(True, False, True)),
        card("abc", spans=spans_from_trace(3, trace), exact=False, f1=0.5),
        card("", exact=False, f1=0.0),
        card("ab-cut-cd", ((0, 2), (7, 9)), (TokenSpan("kept", 1), TokenSpan("dropped", 1))),
    ]
    used = {name for _, key, value in parsed(*cards).attributes if key == "class" for name in value.split()}
    ruled = set(re.findall(r"\.([a-z][\w-]*)", STYLE.read_text()))
    assert used <= ruled, used - ruled
