"""Every setting that an error message suggests is read by Hydra as it is meant, after the shell has read it."""

import ast
import re
import subprocess
import sys

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

import eval as evaluation
import train as training
from breviary.config.checks import check_texts
from breviary.config.compose import compose_config
from breviary.config.keys import CONFIGS, validate_keys
from breviary.evaluation.resolve import compose_evaluation
from breviary.runtime.checkout import ROOT
from breviary.runtime.spelling import override

SECTIONS = "|".join(
    [folder.name for folder in CONFIGS.iterdir() if folder.is_dir()]
    + [str(key) for file in ("train.yaml", "eval.yaml") for key in OmegaConf.load(CONFIGS / file) if key != "defaults"]
)
KEY = rf"(?:\+\+)?(?:{SECTIONS})(?:\.[a-z_]+)*"
# A word of a sentence: quoted for the shell, or up to white space and the sentence's own punctuation.
QUOTED = rf"""\$'{KEY}=(?:[^'\\]|\\.)*'|"{KEY}=[^"]*"|'{KEY}=[^']*'"""
BARE = rf"""(?<![\w.'"]){KEY}=(?!['"])(?:\[[^\]\s]*\]|[^\s;`\[\]]*[^\s;,.:)'`\[\]])"""
SUGGESTION = re.compile(f"{QUOTED}|{BARE}")


def shell_words(suggestions):
    """What bash passes to the program for each of these words."""
    script = "printf '%s\\0' " + " ".join(suggestions)
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    return done.stdout.decode().split("\0")[:-1]


def parsed(suggestions):
    """{suggestion: (key, value)} as Hydra reads it."""
    parser = OverridesParser.create()
    found = {}
    for suggestion, word in zip(suggestions, shell_words(suggestions), strict=True):
        try:
            read = parser.parse_override(word)
        except Exception as error:
            raise AssertionError(f"{suggestion}: {error}") from error
        found[suggestion] = (read.key_or_group, read.value())
    return found


def texts_of_source():
    """Every string of the source; a formatted value becomes 1."""
    places = [ROOT / name for name in ("breviary", "comi", "ram", "comet", "data", "scripts", "train.py", "eval.py")]
    for place in places:
        for file in [place] if place.is_file() else sorted(place.rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(part.value if isinstance(part, ast.Constant) else "1" for part in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_suggestions_in_the_source():
    found = sorted({match[0] for text in texts_of_source() for match in SUGGESTION.finditer(text)})
    assert len(found) > 60
    for suggestion, (key, value) in parsed(found).items():
        assert re.match(KEY, key), suggestion
        assert not (isinstance(value, str) and re.search(r"\\[ntr]", value)), suggestion


MESSAGES = {
    'prompt.template="Q: {question}\\\\nA:"': ("prompt.template", "Q: {question}\nA:"),
    "prompt.instruction='Read.\\n'": ("prompt.instruction", "Read.\n"),
    "prompt.answer_template='{answer}\\t'": ("prompt.answer_template", "{answer}\t"),
    'generation.stop=["\\n"]': ("generation.stop", ["\n"]),
    'generation.stop=[x,"a\\n\\n"]': ("generation.stop", ["x", "a\n\n"]),
    "generation.stop=[\\r]": ("generation.stop", ["\r"]),
}


@pytest.mark.parametrize("word", MESSAGES)
@pytest.mark.parametrize("entry", [training, evaluation], ids=["train", "eval"])
def test_a_backslash_and_an_n_are_refused_with_the_right_spelling(refused, entry, word):
    word_read = word.replace("\\\\", "\\")
    [message] = refused(entry, word_read)
    key, value = MESSAGES[word]
    assert message.startswith(f"{key} holds a backslash and the letter ")
    [suggestion] = [match[0] for match in SUGGESTION.finditer(message)]
    assert parsed([suggestion]) == {suggestion: (key, value)}


def test_an_empty_stop_string(refused):
    [message] = refused(training, 'generation.stop=[x,""]')
    assert message.startswith("generation.stop holds an empty text, at which every answer would end before its first ")
    suggestions = [match[0] for match in SUGGESTION.finditer(message)]
    assert list(parsed(suggestions).values()) == [("generation.stop", []), ("generation.stop", ["\n"])]


@pytest.mark.parametrize("value", ["5", "text", "[1]", "[null]", "{a: 1}"])
def test_a_stop_string_that_is_no_list_of_texts(refused, value):
    [message] = refused(training, f"generation.stop={value}")
    assert re.match(r"generation.stop=.*: must be a list of texts or null, e.g. null$", message)


@pytest.mark.parametrize(
    "key, text, unknown",
    [
        ("template", "{context} Q: {question}", "{context}"),
        ("template", "{question} {Context}", "{Context}"),
        ("template", "{question} {title}", "{title}"),
        ("template", "{question} {}", "{}"),
        ("template", "{question} {0}", "{0}"),
        ("template", "{question} { context }", "{ context }"),
        ("template", "{question} {answer!r}", "{answer!r}"),
        ("template", "{{question}}", "{{question}}"),
        ("answer_template", "{answer} to {question}", "{question}"),
        ("instruction", "Read {context}.", "{context}"),
        ("instruction", "Answer {question}.", "{question}"),
    ],
)
def test_fields_that_a_template_does_not_have(refused, key, text, unknown):
    [message] = refused(training, f"prompt.{key}='{text}'")
    assert message.startswith(f"prompt.{key} holds {unknown}")
    [suggestion] = [match[0] for match in SUGGESTION.finditer(message)]
    [(name, value)] = parsed([suggestion]).values()
    cfg = validate_keys(compose_config("train", []))[0]
    cfg.prompt[name.removeprefix("prompt.")] = value
    assert name == f"prompt.{key}" and check_texts(cfg) == []


@pytest.mark.parametrize("text", ['{"q": "{question}"}', "{question} \\text{x} \\rho {a, b} { x }", "\n\t{question}"])
def test_braces_and_backslashes_that_are_no_fields(text):
    cfg = validate_keys(compose_config("train", []))[0]
    cfg.prompt.template = text
    assert check_texts(cfg) == []


def test_the_template_of_a_run_is_not_refused_but_a_new_one_is():
    stored = validate_keys(compose_config("train", []))[0]
    stored.prompt.template, stored.generation.stop = "{context}\\n{question}", ["\\n"]
    cfg = stored.copy()
    assert check_texts(cfg, stored) == [] and len(check_texts(cfg)) == 3
    cfg.generation.stop = [""]
    assert len(check_texts(cfg, stored)) == 1


@pytest.mark.parametrize("text", ["words", "{text} {context}", "{text}\\n"])
def test_the_question_of_a_generated_data_set(refused, text):
    messages = refused(
        training, "dataset=cloze", f"dataset.question='{text}'", "dataset.train=[]", "dataset.validation=[]"
    )
    [message] = [message for message in messages if message.startswith("dataset.question ")]
    [suggestion] = [match[0] for match in SUGGESTION.finditer(message)]
    [(key, value)] = parsed([suggestion]).values()
    assert key == "dataset.question" and "{text}" in value


def test_all_problems_of_the_texts_are_reported_at_once(refused):
    words = ["prompt.template='{context}'", 'generation.stop=["\\n"]', "prompt.date=today", "train.steps=0"]
    assert len("\n".join(refused(training, *words)).splitlines()) == 5


def test_the_default_of_a_key_is_suggested_in_its_spelling(refused):
    [message] = refused(training, "prompt.template=[1]")
    [suggestion] = [match[0] for match in SUGGESTION.finditer(message) if "[" not in match[0]]
    default = validate_keys(compose_config("train", []))[0].prompt.template
    assert parsed([suggestion]) == {suggestion: ("prompt.template", default)}


@pytest.mark.parametrize(
    "value",
    [
        "\n",
        ["\n", "x y"],
        "it's",
        'say "x"',
        "a\\",
        'a\\"b',
        "$HOME `x` !",
        "",
        [],
        None,
        True,
        1e-3,
        "null",
        "1",
        "Größe",
    ]
    + [{"compressor.ratio": 8}, "tab\there's \\n", "x'y\"z", "#x", "a=b, c", "26 Jul 2024"],
)
def test_a_value_is_spelled_for_shell_and_hydra(value):
    word = override("prompt.template", value)
    [(key, read)] = parsed([word]).values()
    assert key == "prompt.template" and type(read) is type(value) and read == value


# ------------------------------------------------------------------ quotes of Hydra, names of rows


@pytest.mark.parametrize(
    "words, name",
    [
        ([], "my ram"),
        (["compressor.ratio=2"], "my ram"),
        (["compressor=full_context"], "full_context"),
        (["compressor='truncate'"], "truncate"),
        (["compressor._target_=breviary.readers.mean_pool.MeanPool"], "MeanPool"),
        (["compressor=truncate", "reader=cut"], "cut"),
    ],
)
def test_a_row_is_named_by_the_compressor_that_was_run(tmp_path, words, name):
    cfg = compose_config("train", ["compressor=ram", "reader='my ram'"])
    OmegaConf.save(cfg, tmp_path / "config.yaml")
    assert compose_evaluation([f"run={tmp_path}", *words]).reader == name


def test_the_path_of_a_run_may_have_hydra_s_quotes(tmp_path, capsys, monkeypatch):
    run = tmp_path / "a run, with 'commas'"
    run.mkdir()
    cfg = compose_config("train", ["compressor=ram"])
    OmegaConf.save(cfg, run / "config.yaml")
    for quoted in (f'run="{run}"', f'++run="{run}"'):
        with pytest.raises(SystemExit):
            monkeypatch.setattr(sys, "argv", ["eval.py", quoted, "compressor.keep=none", "compressor.ratio=0"])
            training.run_cli(evaluation.main, evaluation.CONFIG)
        printed = capsys.readouterr().err
        assert "compressor.ratio=0: must be" in printed and "no run folder with a complete checkpoint" in printed
        assert "unknown key" not in printed and "Could not override" not in printed
