"""The page of a report: its numbers, its structure, foreign text in it, and what a browser makes of it."""

import base64
import csv
import hashlib
import re
from dataclasses import replace

import pytest
from evaluated import CONDITIONS, prediction, write_reader
from report_pages import HOSTILE, Page, Row, a_card, page_of, write_readers

from breviary.evaluation.results import find_results
from breviary.report.page.build import write_page
from breviary.report.reading_map_cards import CARDS, write_cards
from breviary.report.reading_map_page import TEMPLATES, render_page
from breviary.report.report_files import make_report
from breviary.report.sweep import group_results, load_results
from breviary.report.tables.blocks import Block, Line
from breviary.report.tables.files import html_text
from breviary.runtime.html import visible_text
from tests.browser import Browser, find_browser

# ------------------------------------------------------------------ the page


def test_the_page_needs_no_other_file_and_runs_its_own_script_alone(written):
    file, page = written
    text = file.read_text()
    policy = next(one["content"] for one in page.named("meta") if one.get("http-equiv") == "Content-Security-Policy")
    [script] = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    links = [value for _, name, value in page.attributes if name in ("href", "src", "action", "data", "style")]
    assert links and all(link.startswith("#") and link[1:] in page.ids for link in links)
    assert not {"link", "img", "iframe", "object", "base", "form"} & {tag for tag, _ in page.tags}
    assert not re.search(r"url\(|@import|https?:", text)


def test_headings_tables_and_figures_can_be_read_aloud(written):
    _, page = written
    assert page.headings[0] == 1 and page.headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(page.headings, page.headings[1:]))
    assert len(page.ids) == len(set(page.ids))
    assert len(page.named("table")) == len(page.named("caption")) >= 4
    assert all(head["scope"] in ("row", "col") for head in page.named("th"))
    drawings = [one for one in page.named("svg") if one.get("role") == "img"]
    labels = [value for one in drawings for value in one["aria-labelledby"].split()]
    assert len(drawings) == 3 and set(labels) <= set(page.ids) and len(labels) == 6
    for region in (one for one in page.named("div") if one.get("class") == "scroll"):
        assert region["tabindex"] == "0" and region["role"] == "region" and region["aria-labelledby"] in page.ids
    assert "4 points with 95% intervals. Best: full_context (untrained): F1 .88" in page.text
    assert "a run: not finished" in page.text and "A caption." in page.text


def test_the_files_beside_the_page(readers, tmp_path):
    folder = make_report([str(readers)], tmp_path)
    names = {file.name for file in folder.iterdir()}
    assert names >= {"report.html", "report.csv", "figure.png", "figure.csv", "differences.csv", "breakdown.csv"}
    with open(folder / "differences.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["reader"] for row in rows][-1] == "no_context (untrained)" and float(rows[-1]["p_holm"]) < 0.05
    with open(folder / "breakdown.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["by"] for row in rows} == {"length", "position"} and len(rows) == 4 * (4 + 5)


@pytest.fixture
def page_with(tmp_path, monkeypatch):
    """page_with(text, name): the file of a page in which every text from outside is `text`."""

    def written_page(text, name):
        root = tmp_path / name
        conditions = CONDITIONS | {"prompt": {"template": text, "chat": False}}
        rows = [prediction(i, 1.0, 100 + i, 0.5, question=text, prediction=text) for i in range(3)]
        for reader in "ab":
            label = f"{text} {reader}"
            write_reader(
                root / reader, label, rows, backbone=text, command=text, conditions=conditions, commit=text, run=text
            )
        run = tmp_path / f"run {name}"
        write_cards(run / CARDS, [(text, text)], [a_card(text, question=text)])
        monkeypatch.setattr("breviary.report.page.build.run_folders", lambda groups: {run: Row(text)})
        settings, _ = group_results(load_results(find_results([str(root)])))
        return write_page(root / "page", settings, None, text, text, [text])

    return written_page


def test_foreign_text_adds_no_tag(page_with):
    hostile, plain = (Page(page_with(*one).read_text()) for one in ((HOSTILE, "a"), ("x" * len(HOSTILE), "b")))
    names = [tag for tag, _ in hostile.tags]
    assert names == [tag for tag, _ in plain.tags] and names.count("script") == 1
    assert not [name for _, name, _ in hostile.attributes if name.startswith("on") or name in ("src", "style")]
    assert hostile.text.count(visible_text(HOSTILE)) > 20


def test_every_line_of_a_figure_is_seen_in_both_schemes():
    """WCAG 1.4.11: graphical objects have a contrast of 3 on the card."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    style, base = ((TEMPLATES / name).read_text() for name in ("report.css", "reading_map.css"))
    cards = re.findall(r"--card: #([0-9a-f]{6})", base)
    light, dark, paper = (dict(re.findall(r"--(c\d): #([0-9a-f]{6})", part)) for part in re.split("@media", style)[:3])
    paper = dict(re.findall(r"--(c\d): #([0-9a-f]{6})", style.partition("@media print")[2]))
    assert light == paper and light.keys() == dark.keys() and len(light) == 7
    for colours, card in ((light, cards[0]), (dark, cards[1])):
        for name, colour in colours.items():
            low, high = sorted([luminance(colour), luminance(card)])
            assert (high + 0.05) / (low + 0.05) >= 3, (name, colour)


# ------------------------------------------------------------------ a real browser

BROWSER = find_browser()


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed (chromium, google-chrome or microsoft-edge)")
def test_a_browser_sorts_by_keyboard_fits_a_phone_and_reports_nothing(tmp_path):
    root = write_readers(tmp_path / "readers", name=lambda reader: f"{reader}<script>document.title='bad'</script>")
    file = page_of(root, tmp_path)
    first = "document.querySelector('.sortable tbody th').textContent"
    with Browser(BROWSER) as browser:
        browser.size(380, dark=True)
        browser.open(file)
        assert browser.value("document.documentElement.scrollWidth") <= 380
        assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(13, 16, 20)"
        assert browser.value(first).startswith("full_context")
        browser.value("document.querySelectorAll('.sortable thead button')[1].focus()")
        browser.press("Tab")  # from the reader's column to that of F1
        browser.press("Enter")
        assert browser.value("document.activeElement.parentElement.ariaSort") == "descending"
        browser.press("Enter")
        assert browser.value("document.activeElement.parentElement.ariaSort") == "ascending"
        assert browser.value(first).startswith("no_context")
        assert browser.value("document.getElementById('sorted').textContent") == "Sorted by F1, ascending"
        assert browser.value("document.querySelectorAll('[aria-sort]').length") == 1
        browser.value("location.hash = 'made-2'; new Promise(requestAnimationFrame)")
        assert browser.value("document.getElementById('made-2').open")
        browser.size(1280)
        assert browser.value("document.documentElement.scrollWidth") <= 1280
        assert browser.value("document.title") == "A title"
        assert browser.reports() == []


RUNS = "document.documentElement.dataset.ran = 1"  # what the hostile texts would do
ATTACKS = (
    f"<script>{RUNS}</script>",
    f"</script></style></title></textarea><svg onload='{RUNS}'>",
    f"<img src=x onerror='{RUNS}'>",
    f"' onmouseover='{RUNS}' x='",
    f'" autofocus onfocus="{RUNS}" tabindex=0 x="',
    f"<a href=\"javascript:{RUNS}\">x</a><iframe srcdoc='<script>parent.{RUNS}</script>'></iframe>",
    "--><!-- ]]> <style>@import 'x'; *{background:url(x)}</style><meta http-equiv=refresh content='0;url=data:,x'>",
)


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed (chromium, google-chrome or microsoft-edge)")
def test_a_browser_runs_nothing_of_hostile_text(tmp_path, page_with):
    attack = " ".join(ATTACKS)
    reading_map, table = tmp_path / "map.html", tmp_path / "table.html"
    card = a_card(attack, question=attack)
    reading_map.write_text(render_page([(attack, attack)], [replace(card, prediction=attack, references=(attack,))]))
    block = Block(attack, [attack, "F1"], [Line([attack, attack], attack, {attack: attack}, [attack])], [attack])
    table.write_text(html_text({"title": attack, "source": attack, "notes": [attack], "command": attack}, [block]))
    with Browser(BROWSER) as browser:
        for file in (page_with(attack, "attacked"), reading_map, table):
            browser.open(file)
            assert attack[:40] in browser.value("document.body.textContent")
            assert browser.value("document.documentElement.dataset.ran") is None
            assert browser.value("document.querySelectorAll('img, iframe, svg[onload], body script[src]').length") == 0
            assert browser.value("document.location.protocol") == "file:"
            assert browser.reports() == []


def test_the_browser_is_found_by_name(monkeypatch):
    monkeypatch.setattr("tests.browser.shutil.which", lambda name: name if name == "chrome" else None)
    assert find_browser() == "chrome"
    monkeypatch.setattr("tests.browser.shutil.which", lambda name: None)
    assert find_browser() is None
