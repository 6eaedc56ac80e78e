"""scripts/reading_map.py on the tiny backbone: the page shows how the reader compressed the context."""

import json
import re
from html.parser import HTMLParser

import pytest
from calling import call

import train as training
from breviary.backbones.tiny import TinyBackbone
from breviary.contract import Example
from breviary.report import reading_map
from data.invented_facts import InventedFacts
from scripts import reading_map as script

SMALL = ["backbone.layers=4", "generation.max_new_tokens=2", "eval_batch_size=2"]
FORMS = {
    "ram-input": ["compressor=ram", "compressor.ratio=2", "compressor.segment_size=10", "compressor.encoder_layers=2"],
    "ram-depth": [
        "compressor=ram",
        "compressor.ratio=2",
        "compressor.segment_size=10",
        "compressor.encoder_layers=2",
        "compressor.join=depth",
    ],
    "ram-strict-drop": [
        "compressor=ram",
        "compressor.budget=strict",
        "compressor.skim=drop",
        "compressor.segment_size=7",
        "compressor.encoder_layers=2",
    ],
    "ram-whole": [
        "compressor=ram",
        "compressor.ratio=3",
        "compressor.read=whole",
        "compressor.segment_size=10",
        "compressor.encoder_layers=2",
    ],
    "ram-comi": [
        "compressor=ram_comi",
        "compressor.ratio=2",
        "compressor.segment_size=20",
        "compressor.encoder_layers=2",
    ],
    "comi": ["compressor=comi", "compressor.encoder_layers=2"],
    "comi-segments": [
        "compressor=comi",
        "compressor.join=depth",
        "compressor.segment_size=16",
        "compressor.encoder_layers=2",
    ],
    "mean_pool": ["compressor=mean_pool", "compressor.ratio=null", "compressor.slots=5", "compressor.encoder_layers=2"],
    "cache": ["compressor=snapkv", "compressor.ratio=2"],
    "full_context": ["compressor=full_context"],
    "truncate": ["compressor=truncate"],
}


class Page(HTMLParser):
    """The text of every document of a page; fails where tags do not balance."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.documents, self.text = [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag != "meta":
            self.open.append((tag, dict(attrs).get("class", "")))
        if dict(attrs).get("class") == "document":
            self.documents.append("")

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        self.text += data
        if any(classes == "document" for _, classes in self.open):
            self.documents[-1] += data


@pytest.fixture
def mapped(monkeypatch, tmp_path, capsys):
    """mapped(*words) -> (page, {"facts", "cards", "file"}) of a successful call."""

    def make(*words):
        seen = {}

        def recorded(facts, cards):
            seen["facts"], seen["cards"] = dict(facts), cards
            return render_page(facts, cards)

        render_page = reading_map.render_page
        with monkeypatch.context() as patch:
            patch.setattr(reading_map, "render_page", recorded)
            code = call(patch, tmp_path, script, *words)
        printed = capsys.readouterr()
        assert code == 0, printed.err
        [file] = re.findall(r"^reading map (.*)$", printed.out, re.MULTILINE)
        seen["file"] = file
        with open(file, encoding="utf-8", newline="") as written:
            return Page(written.read()), seen

    return make


def slots_of(card):
    """Slots according to the marks: kept tokens, and those of each skimmed segment and each group."""
    kept = sum(span.tokens for span in card.spans if span.kind == "kept")
    skimmed = sum(len(span.slot_sizes) or 1 for span in card.spans if span.kind == "skimmed")
    cached = sum(share for span in card.spans if span.kind == "cache" for share in span.weights)
    return kept + skimmed + len({span.number for span in card.spans if span.kind == "group"}) + round(cached)


@pytest.mark.parametrize("overrides", FORMS.values(), ids=FORMS)
def test_the_map_shows_as_many_slots_as_the_memory_has(mapped, overrides):
    page, seen = mapped(*overrides, *SMALL, "n=3")
    examples = InventedFacts().examples("test")[:3]
    assert page.documents == [example.context for example in examples]
    assert [card.question for card in seen["cards"]] == [example.question for example in examples]
    for card, example in zip(seen["cards"], examples):
        assert slots_of(card) == card.slots > 0
        assert f"{len(card.offsets)} context tokens in {card.slots} slots" in page.text
        gold = [example.context[start:end] for (start, end), gold in zip(card.offsets, card.gold) if gold]
        [document] = [document for document in example.documents if document.is_gold]
        assert "".join(gold).strip() == example.context[document.start : document.end]
        relevances = [span.relevance for span in card.spans if span.relevance is not None]
        if overrides[0].startswith("compressor=ram"):
            kept = [span.relevance for span in card.spans if span.kind == "kept"]
            assert min(kept) >= sorted(relevances)[-len(kept)] and len(set(relevances)) == len(relevances)
        else:
            assert relevances == []
    requested = {
        "ram-input": "2x",
        "ram-depth": "2x",
        "ram-comi": "2x",
        "mean_pool": "5 slots",
        "full_context": "1x",
        "ram-whole": "3x",
        "cache": "2x",
    }
    name = next(name for name, words in FORMS.items() if words is overrides)
    assert {card.requested for card in seen["cards"]} == {requested.get(name, "4x")}


@pytest.mark.parametrize("overrides", [FORMS["ram-input"], FORMS["comi-segments"]], ids=["ram", "comi"])
def test_cards_do_not_depend_on_the_batch_size(mapped, overrides):
    _, one = mapped(*overrides, *SMALL, "n=3", "eval_batch_size=1")
    _, all_at_once = mapped(*overrides, *SMALL, "n=3", "eval_batch_size=3")
    for alone, together in zip(one["cards"], all_at_once["cards"], strict=True):
        assert [(p.kind, p.tokens, p.number, p.size) for p in alone.spans] == [
            (p.kind, p.tokens, p.number, p.size) for p in together.spans
        ]
        for p, q in zip(alone.spans, together.spans):
            assert q.weights == pytest.approx(p.weights, rel=1e-4)
            assert p.relevance is None or q.relevance == pytest.approx(p.relevance, abs=1e-5)


def jsonl(tmp_path, *examples):
    rows = [{"id": e.id, "context": e.context, "question": e.question, "answers": list(e.answers)} for e in examples]
    file = tmp_path / "some.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return ["dataset=jsonl", f"dataset.test={file}"]


@pytest.mark.parametrize(
    "overrides", [FORMS["ram-input"], FORMS["ram-depth"], FORMS["comi"]], ids=["ram-input", "ram-depth", "comi"]
)
def test_empty_cut_and_foreign_contexts(mapped, tmp_path, overrides):
    foreign = '</div><script>x</script> "日本" 😀😀 Süß\n\n  שלום & more of it, so that it is cut for sure'
    given = jsonl(tmp_path, Example("1", "", "Empty <b>?", ("no",)), Example("2", foreign, "What?", ("<i>",)))
    page, seen = mapped(*overrides, *SMALL, *given, "limits.max_context_tokens=40")
    assert page.documents == [foreign] and "The context is empty." in page.text
    empty, cut = seen["cards"]
    assert empty.slots == 0 and empty.spans == () and len(cut.offsets) == 40 and slots_of(cut) == cut.slots
    assert f"of {len(foreign)} characters not read" in page.text and cut.gold == ()
    assert seen["facts"]["Data"] == "test split of some.jsonl, first 2 questions"


def test_a_trained_run_uses_its_own_weights_and_settings(mapped, monkeypatch, tmp_path, capsys):
    words = [
        *FORMS["ram-depth"],
        *SMALL,
        "train.steps=2",
        "train.batch_size=2",
        "train.eval_examples=0",
        "train.learning_rate=0.1",
        "decoder.train=full",
    ]
    assert call(monkeypatch, tmp_path, training, *words) == 0, capsys.readouterr().err
    capsys.readouterr()
    [run] = (tmp_path / "outputs" / "default").iterdir()
    page, seen = mapped(f"run={run}", "n=2", "split=validation")
    assert seen["file"] == f"{run}/reading_map.html"
    assert page.documents == [example.context for example in InventedFacts().examples("validation")[:2]]
    assert seen["facts"]["Run"] == f"default/{run.name}, checkpoint-2"
    assert seen["facts"]["Reader"] == "ram (2 steps, 4 examples) join=depth ratio=2 segment_size=10"
    _, untrained = mapped(*FORMS["ram-depth"], *SMALL, "n=2", "split=validation", f"output={tmp_path}/a/b.html")
    assert untrained["file"] == f"{tmp_path}/a/b.html"
    assert untrained["facts"]["Run"] == "none: weights as initialised"
    assert [p.relevance for p in seen["cards"][0].spans] != [p.relevance for p in untrained["cards"][0].spans]


def test_all_problems_are_reported_before_any_weight_is_loaded(monkeypatch, capsys, tmp_path):
    def loaded(*args, **kwargs):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(TinyBackbone, "load", loaded)
    code = call(
        monkeypatch,
        tmp_path,
        script,
        "n=0",
        f"output={tmp_path}",
        "baselines=[no_context]",
        "compare=[a/run]",
        "compressor.ratio=0",
    )
    assert code == 2
    assert capsys.readouterr().err.splitlines() == [
        f"error: {message}"
        for message in (
            "n=0: must be a whole number of at least 1, e.g. n=20",
            f"output={tmp_path}: is a folder; name a file, e.g. output={tmp_path}/map.html",
            "compare=['a/run']: a map shows one reader; make one map for each run",
            "baselines=['no_context']: a map shows one reader; make one with compressor=NAME and no run",
            "compressor.ratio=0: must be a whole number of at least 1, e.g. 4",
        )
    ]
    assert call(monkeypatch, tmp_path, script, *SMALL, "compressor=comet") == 2
    assert "compressor=Comet: has no slots that a map could show" in capsys.readouterr().err
    assert call(monkeypatch, tmp_path, script, "outptu=x") == 2
    assert capsys.readouterr().err == "error: outptu: unknown key; the nearest right one is output\n"
    assert call(monkeypatch, tmp_path, script, f"run={tmp_path}/none") == 2
    assert "none" in capsys.readouterr().err and not (tmp_path / "outputs").exists()
