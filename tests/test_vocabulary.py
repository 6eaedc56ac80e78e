"""The words that the project does not use, in sources, configurations and pages (CONTRIBUTING.md, house rule 7)."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("breviary", "comet", "comi", "configs", "data", "docs", "ram", "scripts", "tests")
SUFFIXES = {".py", ".md", ".yaml", ".toml", ".j2", ".html", ".css", ".js"}

# {words separated by commas: what to write}
WORDS = {
    "told, tell, tells, telling": "report, state, specify",
    "said, says": "state, report",
    "asked ratio, asked_ratio, reached ratio, reached_ratio": "requested ratio, achieved ratio",
    "what is asked": "question",
    "what is kept of": "encoded context, saved memory, selected entries",
    "readings": "encoded contexts, passes",
    "settle, settles, settled, settling": "resolve",
    "share out, shares out, shared out, sharing out": "shard, distribute",
    "left-over, left-overs, leftover, leftovers": "extra keys, unused keys",
    "how long still": "elapsed, remaining",
    "without a word": "silently",
    "a sentence for people, was ever on main": "clear error message, schema version",
    "others_nll, run_for_people, tells_mistakes, is_said": "shuffled-context loss, run_cli, ConfigError",
}
BANNED = [word for words in WORDS for word in words.split(", ")]
# Files that quote other texts, or name a key of an old schema.
ALLOWED = {"breviary/evaluation/results.py": {"asked_ratio"}, "tests/unit/data/test_cloze_spans.py": {"said"}}


def banned_words(text):
    """The banned words of a text, in any case; a word within a longer one or within an identifier is none."""
    text = " ".join(text.lower().split())
    return {word for word in BANNED if word in text and re.search(rf"(?<!\w){word}(?!\w)", text)}


def texts():
    """(name, text) of all sources, configurations and pages; of results the README files alone."""
    found = [path for path in ROOT.iterdir() if path.suffix in (".py", ".md", ".toml") or path.name == "Makefile"]
    found += [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    for path in [*found, *(ROOT / "results").rglob("README.md")]:
        if path != Path(__file__):
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def test_no_text_has_a_banned_word():
    found, count = {}, 0
    for name, text in texts():
        count += 1
        words = banned_words(text) - ALLOWED.get(name, set())
        if words:
            found[name] = sorted(words)
    assert count > 500, f"{count} files"
    assert not found, f"{found}; write instead: {WORDS}"


@pytest.mark.parametrize(
    "text, words",
    [
        ("it Tells that", {"tells"}),
        ("`asked_ratio`, work shared out", {"asked_ratio", "shared out"}),
        ("intel, foretold, unsaid, settlement, the hub cannot be reached", set()),
    ],
)
def test_banned_words_are_found_as_words(text, words):
    assert banned_words(text) == words
