"""The page of a report: its numbers, its structure, foreign text in it, and what a browser makes of it."""

import base64
import csv
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from evaluated import CONDITIONS, prediction, write_reader

from breviary.evaluation.comparison import EvaluatedReader, paired_differences
from breviary.evaluation.results import find_results
from breviary.evaluation.statistics import holm_correction
from breviary.memory.trace import TokenSpan
from breviary.report.page import runs as page_runs
from breviary.report.page.breakdown import heat_map, joint_maps, length_bins, position_bins
from breviary.report.page.build import write_page
from breviary.report.page.charts import AXES, curve_chart, scatter, spread
from breviary.report.page.differences import check_reference, compare, reference_of
from breviary.report.page.measured_rows import group_rows
from breviary.report.page.provenance import NOT_RECORDED, provenance
from breviary.report.page.ranking import overview, ranking
from breviary.report.page.runs import reading_maps, training_curves
from breviary.report.reading_map_cards import CARDS, read_cards, write_cards
from breviary.report.reading_map_marks import Card
from breviary.report.reading_map_page import TEMPLATES
from breviary.report.report_files import make_report
from breviary.report.sweep import group_results, load_results
from breviary.runtime.html import visible_text
from tests.browser import Browser, find_browser

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


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    return write_readers(tmp_path_factory.mktemp("readers"))


def groups_of(root, metric=None):
    return group_rows(group_results(load_results(find_results([str(root)])))[0], metric)


def page_of(root, folder, **more):
    settings, _ = group_results(load_results(find_results([str(root)])))
    return write_page(folder, settings, None, "A title", "A caption.", **more)


@pytest.fixture(scope="module")
def written(readers, tmp_path_factory):
    """(the page's file, the page) of the four readers."""
    file = page_of(readers, tmp_path_factory.mktemp("page"), skipped=["a run: not finished"])
    return file, Page(file.read_text())


# ------------------------------------------------------------------ rows and tables


def test_the_ranking_is_by_the_metric_best_first(readers):
    [group] = groups_of(readers)
    table = ranking(group)
    assert (group.metric, group.title) == ("f1", "F1")
    assert [row["reader"].split(" (")[0] for row in table["rows"]] == [
        "full_context",
        "snapkv",
        "snapkv, ratio=8",
        "no_context",
    ]
    assert [row["rank"] for row in table["rows"]] == [1, 2, 3, 4]
    columns = [column["title"] for column in table["columns"]]
    assert columns[0] == "F1" and {"EM", "ratio", "memory", "first token", "decode", "n"} <= set(columns)
    first = dict(zip(columns, table["rows"][0]["cells"]))
    assert first["F1"]["text"] == ".88" and first["F1"]["sort"] == pytest.approx(0.875)
    assert re.fullmatch(r"\[\.\d\d, (\.\d\d|1\.00)\]", first["F1"]["spread"])
    assert first["first token"]["text"] == "121 ms" and first["first token"]["sort"] == 121
    orders = {column["title"]: column["first"] for column in table["columns"]}
    assert orders["F1"] == "descending" and orders["NLL/token"] == orders["memory"] == "ascending"


def test_lower_is_better_for_losses(readers):
    [group] = groups_of(readers, "nll")
    assert group.rows[0].row["reader"].startswith("full_context") and ranking(group)["ascending"]


def test_budgets_of_one_reader_are_one_line(readers):
    [group] = groups_of(readers)
    assert group.lines == ["full_context (untrained)", "snapkv (untrained)", "no_context (untrained)"]
    chart = scatter(group, AXES[0])
    assert [point["number"] for point in chart["points"]] == [2, 2] and len(chart["paths"]) == 1
    assert [level["number"] for level in chart["levels"]] == [1, 3]
    left, right = chart["points"]
    assert left["x"] < right["x"] and left["y"] < right["y"] and left["high"] <= left["y"] <= left["low"]
    assert "snapkv (untrained): F1 .62" in left["note"] and "4.0x" in left["note"]
    assert len(scatter(group, AXES[1])["points"]) == 3 and len(scatter(group, AXES[2])["points"]) == 4


def test_untrained_readers_of_other_settings_are_rows_of_their_own(tmp_path):
    """The newest does not stand for both; full context has no such settings."""
    for number, layer in enumerate((9, 18)):
        conditions = CONDITIONS | {"compressor": {"_target_": "pkg.Attention", "layer": layer, "ratio": 4}}
        for reader in ("attention", "full_context"):
            write_reader(tmp_path / f"{reader}{number}", reader, [prediction(0, number)], conditions=conditions)
    [group] = groups_of(tmp_path)
    assert sorted(one.row["reader"] for one in group.rows) == [
        "attention (untrained), layer=18",
        "attention (untrained), layer=9",
        "full_context (untrained)",
    ]


def test_points_are_moved_apart_as_little_as_needed():
    assert spread([10, 50], 13, 0, 100) == [10, 50]
    assert spread([50, 50, 10], 10, 0, 100) == [45, 55, 10]
    crowded = sorted(spread([0] * 20, 13, 0, 100))
    assert crowded[0] == 0 and crowded[-1] == 100 and min(np.diff(crowded)) > 5


def test_data_sets_have_a_table_of_readers_by_data_sets(tmp_path):
    for number, (data, value) in enumerate((("a", 0.5), ("b", 1.0))):
        dataset = {"_target_": "data.jsonl.Jsonl", "test": f"{data}.jsonl"}
        more = {"data_hash": data * 64, "conditions": CONDITIONS | {"dataset": dataset}}
        write_reader(tmp_path / data, "bm25", [prediction(i, value) for i in range(3)], **more)
        if number:
            write_reader(tmp_path / "other", "truncate", [prediction(i, 0.0) for i in range(3)], **more)
    groups = groups_of(tmp_path)
    assert [group.name for group in groups] == ["a.jsonl", "b.jsonl"]
    table = overview(groups)
    assert table["columns"] == ["mean of 2", "a.jsonl: F1", "b.jsonl: F1"]
    cells = {row["reader"]: [cell["text"] for cell in row["cells"]] for row in table["rows"]}
    assert cells == {"bm25 (untrained)": [".75", ".50", "1.00"], "truncate (untrained)": ["-", "-", ".00"]}
    assert "Readers by data sets" in Page(page_of(tmp_path, tmp_path / "page").read_text()).text
    assert overview(groups[:1]) is None
    groups[0].metric = "em"  # as in RULER: shares of 1 have a mean, whichever metric ranks each data set
    assert overview(groups)["columns"][0] == "mean of 2"
    groups[0].metric = "nll"
    assert overview(groups)["columns"][0] == "a.jsonl: NLL/token"


# ------------------------------------------------------------------ differences


def test_differences_are_those_of_compare_with_holms_correction(readers):
    [group] = groups_of(readers)
    found = compare(group)
    assert found["minus"] == "full_context (untrained)" and found["n"] == 8 and len(found["rows"]) == 3
    one, other = (EvaluatedReader("x", {}, group.rows[i].predictions[0]) for i in (1, 0))
    expected = paired_differences(one, other)["f1"]
    row = next(row for row in found["rows"] if row["reader"] == group.rows[1].label)
    assert {key: row[key] for key in expected} == expected
    assert [row["p_holm"] for row in found["rows"]] == holm_correction([row["p"] for row in found["rows"]])
    last = found["rows"][-1]  # no context: lower on all eight questions, two of the 256 swaps are as extreme
    assert last["p"] == pytest.approx(2 / 256) and last["p_holm"] == pytest.approx(6 / 256)
    assert last["verdict"] == "lower" and found["rows"][0]["verdict"] == "no difference shown"


def test_the_reference_can_be_chosen_and_others_questions_are_left_out(readers, tmp_path):
    [group] = groups_of(readers)
    assert reference_of(group, "snapkv").row["reader"].startswith("snapkv")
    with pytest.raises(ValueError, match="--against bm26: no reader has this name; there are: 'full_context"):
        check_reference([group], "bm26")
    assert reference_of(group, "bm26").row["reader"].startswith("full_context")  # another data set has it
    write_reader(tmp_path / "a", "bm25", [prediction(i, 1.0) for i in range(3)])
    write_reader(tmp_path / "b", "other", [prediction(i, 0.0) for i in range(1, 4)])
    [group] = groups_of(tmp_path)
    found = compare(group)
    assert found["minus"].startswith("bm25") and found["rows"] == [] and found["left_out"] == ["other (untrained)"]


# ------------------------------------------------------------------ heat maps


def test_scores_by_length_and_by_position_by_hand(readers):
    [group] = groups_of(readers)
    lengths, positions = length_bins(group), position_bins(group)
    assert [name for name, _ in lengths] == ["100 to 110", "120 to 130", "140 to 150", "160 to 170"]
    assert [(name, len(ids)) for name, ids in positions] == [
        ("0 to 20%", 2),
        ("20 to 40%", 1),
        ("40 to 60%", 2),
        ("60 to 80%", 1),
        ("80 to 100%", 2),
    ]
    found = heat_map(group, lengths)
    assert (found["worst"], found["best"]) == (".00", "1.00")
    values = {row["reader"]: [cell["value"] for cell in row["cells"]] for row in found["rows"]}
    assert values["snapkv (untrained)"] == [1.0, 0.25, 0.5, 0.75]
    levels = {row["reader"]: [cell["level"] for cell in row["cells"]] for row in found["rows"]}
    assert levels["full_context (untrained)"] == [7, 5, 7, 5] and levels["no_context (untrained)"] == [0, 0, 0, 2]
    grid = joint_maps(group, positions, lengths)[0]["rows"]
    assert [(cell["value"], cell["n"]) for cell in grid[0]["cells"]] == [(1.0, 2), (None, 0), (None, 0), (None, 0)]


def test_lengths_that_differ_much_have_bins_of_powers_of_two(tmp_path):
    sizes = (900, 1000, 2000, 4000, 4096, 16000)
    write_reader(tmp_path, "bm25", [prediction(i, 1.0, tokens) for i, tokens in enumerate(sizes)])
    [group] = groups_of(tmp_path)
    assert [name for name, _ in length_bins(group)] == ["900 to 1,000", "2,000", "4,000 to 4,096", "16,000"]
    assert position_bins(group) == [] and joint_maps(group, [], length_bins(group)) == []


# ------------------------------------------------------------------ runs: curves and reading maps


class Row:
    """A row of the page, as far as its runs need one."""

    def __init__(self, label):
        self.label = label


def test_curves_are_running_means_with_a_number_each(monkeypatch, tmp_path):
    logged = [{"kind": "training", "examples": 8 * i, "answer": 5.0 - i} for i in range(1, 4)]
    logged.append({"kind": "validation", "examples": 24, "eval_nll": 1.5})
    monkeypatch.setattr(page_runs, "read_curve", lambda run: logged if run.name == "a" else logged[:2])
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").touch()
    found = training_curves({tmp_path / name: Row("comi") for name in "ab"})
    assert [line["name"] for line in found["legend"]] == ["comi, a", "comi, b"]
    loss, validation = found["charts"]
    assert [point["number"] for point in loss["points"]] == [1, 2]
    assert [point["number"] for point in validation["points"]] == [1]
    assert "comi, a: nats per token 2.00 after 24 examples" in loss["description"]
    assert training_curves({tmp_path: Row("x")}) is None


def test_long_curves_keep_their_last_point():
    chart = curve_chart("t", "l", [("a", [(float(i), 1.0) for i in range(1001)])])
    assert chart["paths"][0]["d"].count("L") < 202 and "after 1,000 examples" in chart["description"]


def a_card(text="abcdef", question="Who?"):
    offsets = tuple((i, i + 1) for i in range(len(text)))
    spans = (TokenSpan("kept", 2, 1, relevance=0.5), TokenSpan("skimmed", len(text) - 2, 2, relevance=0.1))
    return Card(question, "x", ("y",), False, 0.5, text, offsets, (), spans, 3, "4x")


def test_cards_are_read_as_they_were_written(tmp_path):
    cards = [a_card(), a_card("\u00e9 <b>\U0001f600 \x00 \ud800 half")]
    write_cards(tmp_path / CARDS, [("Reader", "ram")], cards)
    assert read_cards(tmp_path / CARDS) == ([("Reader", "ram")], cards)
    for text in ("{", "[]", json.dumps({"schema": 9}), json.dumps({"schema": 1, "facts": [], "cards": [{}]})):
        (tmp_path / CARDS).write_text(text)
        with pytest.raises(ValueError, match=f"{CARDS} is no reading map"):
            read_cards(tmp_path / CARDS)


def test_maps_of_runs_are_shown_and_the_others_named(tmp_path):
    with_map, without = tmp_path / "a b", tmp_path / "c"
    for folder in (with_map, without):
        folder.mkdir()
    write_cards(with_map / CARDS, [("Reader", "ram")], [a_card()] * 5)
    found = reading_maps({with_map: Row("ram"), without: Row("comi")}, 3)
    assert [len(one["cards"]) for one in found["maps"]] == [3] and found["kinds"] == {"kept", "skimmed"}
    assert len(found["missing"]) == 1 and found["missing"][0].endswith(f"scripts/reading_map.py {without} n=3")


# ------------------------------------------------------------------ provenance


def test_what_is_not_recorded_is_said(tmp_path):
    write_reader(tmp_path / "a", "bm25", [prediction(0, 1.0)], commit=None, hardware={}, conditions={})
    [group] = groups_of(tmp_path)
    facts = dict(provenance(group.rows[0])[0])
    for name in ("Prompt", "Chat format", "Example prompt", "Stop rule", "Command", "Commit", "Hardware"):
        assert facts[name] == NOT_RECORDED, name
    assert facts["Truncation"] == f"0 of 1 prompts cut\nrule {NOT_RECORDED}"


def test_each_number_states_what_made_it(tmp_path):
    record = {
        "example": "q0",
        "first": "It begins",
        "last": "it ends",
        "characters": 900,
        "sha256": "ab12",
        "tokens": {"context": 1200, "all": 1250},
        "context_tokens": {"mean": 1100.4, "max": 1300},
    }
    scoring = {"names": ["f1"], "details": {"f1": {"rule": "SQuAD", "version": 2}}, "aggregates": {}}
    more = {"prompt": record, "scoring": scoring, "command": "python eval.py x"}
    write_reader(tmp_path / "a", "bm25", [prediction(0, 1.0)], **more)
    [group] = groups_of(tmp_path)
    facts = dict(provenance(group.rows[0])[0])
    assert facts["Prompt of q0"] == "It begins\n[...]\nit ends" and "context 1,200" in facts["Its tokens"]
    assert "template: '\\nQuestion: {question}'" in facts["Prompt"] and facts["Chat format"] == "yes"
    assert facts["Stop rule"] == "stop: ['\\n']\nmax_new_tokens: 16"
    assert facts["Truncation"] == "0 of 1 prompts cut\nmax_context_tokens: null\ntruncation: 'middle'"
    assert facts["Command"] == "python eval.py x" and facts["Commit"] == "0123abcd, no uncommitted changes"
    assert "f1: rule SQuAD, version 2" in facts["Metric versions"] and "cores: 2" in facts["Hardware"]


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


def test_foreign_text_adds_no_tag(tmp_path, monkeypatch):
    def pages(text, name):
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
        return Page(write_page(root / "page", settings, None, text, text, [text]).read_text())

    hostile, plain = pages(HOSTILE, "a"), pages("x" * len(HOSTILE), "b")
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


def test_the_browser_is_found_by_name(monkeypatch):
    monkeypatch.setattr("tests.browser.shutil.which", lambda name: name if name == "chrome" else None)
    assert find_browser() == "chrome"
    monkeypatch.setattr("tests.browser.shutil.which", lambda name: None)
    assert find_browser() is None
