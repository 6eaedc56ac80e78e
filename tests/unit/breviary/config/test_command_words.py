"""Wrong words of a command line: each is answered with the right shell word, which Hydra reads as it was meant."""

import functools
import re
import shlex

import pytest
from calling import call
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

import eval as evaluation
import train as training
from breviary.config.cli import words as command_words
from breviary.config.cli.aliases import ALIASES, NAMES, nearest_choice, plain_name
from breviary.config.cli.choices import CONFIGS, config_groups, group_choices
from breviary.config.cli.messages import spelled
from breviary.config.cli.words import config_name, sort_words
from breviary.config.compose import compose_config
from breviary.config.keys import known_keys, suggest
from breviary.runtime.spelling import setting

# A word of a message that sets a key, as a shell reads it: quoted, or up to white space.
WRITTEN = re.compile(
    r"""(?:write|written|setting:) (?:-m )?('(?:[^']|'\\'')*'|"[^"]*"|\$'(?:[^'\\]|\\.)*'|\S+?)(?=[;,.]?(?:\s|$))"""
)


def written(message):
    """{key: value} of the words that a message suggests, as a shell and Hydra read them."""
    found = {}
    for word in WRITTEN.findall(message):
        if not word.endswith("VALUE") and "=" in word and not word.startswith("key="):
            [one] = shlex.split(word)
            read = OverridesParser.create().parse_override(one)
            found[read.key_or_group] = None if read.is_sweep_override() else read.value()
    return found


@pytest.fixture
def wrong(monkeypatch):
    """wrong(entry, *words) -> the messages before anything is composed; the keys are composed once for all tests."""
    monkeypatch.setattr(command_words, "known_keys", lambda config, words: keys_of(config))
    return lambda entry, *words: command_words.check_words(words, entry.CONFIG)[1]


@functools.cache
def keys_of(config):
    return known_keys(config, [])


# ------------------------------------------------------------------ words that are no settings

NO_SETTINGS = [
    (["--lr=1e-3"], "--lr: settings have no dashes; write train.learning_rate=1e-3", {"train.learning_rate": 1e-3}),
    (["--lr", "1e-3"], "--lr: settings have no dashes; write train.learning_rate=1e-3", {"train.learning_rate": 1e-3}),
    (["--train.steps", "3"], "--train.steps: settings have no dashes; write train.steps=3", {"train.steps": 3}),
    (["--batch-size"], "--batch-size: settings have no dashes; write train.batch_size=VALUE", {}),
    (["--model=tiny"], "--model: settings have no dashes; write backbone=tiny", {"backbone": "tiny"}),
    (["--quiet"], "--quiet: unknown option; settings are written key=value", {}),
    (["train.steps"], "train.steps: no value; write train.steps=VALUE", {}),
    (["lr"], "lr: no value; write train.learning_rate=VALUE", {}),
    (
        ["train.steps", "=", "3"],
        "train.steps = 3: no spaces around the equals sign; write train.steps=3",
        {"train.steps": 3},
    ),
    (["lr", "=3"], "lr = 3: no spaces around the equals sign; write train.learning_rate=3", {"train.learning_rate": 3}),
    (
        ["train.steps=", "3"],
        "3: no setting; if it belongs to the value of train.steps, quote the whole",
        {"train.steps": 3},
    ),
    (["nq"], "nq: settings are written key=value, e.g. train.steps=100; write dataset=nq", {"dataset": "nq"}),
    (["comi_facts"], "comi_facts: settings are written key=value", {"experiment": "comi_facts"}),
    (["mean_pool"], "mean_pool: settings are written key=value", {"compressor": "mean_pool"}),
    (["Qwen3-4B"], "Qwen3-4B: settings are written key=value", {"backbone": "qwen3_4b"}),
    (["whatever"], "whatever: no setting; settings are written key=value, e.g. train.steps=100", {}),
    (
        ["prompt.template=Q:", "{question}", "A:"],
        "{question}: no setting; if it belongs to the value of prompt.template, quote the whole setting: ",
        {"prompt.template": "Q: {question} A:"},
    ),
    (
        ["prompt.instruction=Read", "the", "text."],
        "the: no setting; if it belongs to the value of prompt.instruction, quote the whole setting: ",
        {"prompt.instruction": "Read the text."},
    ),
]


@pytest.mark.parametrize("words, start, meant", NO_SETTINGS, ids=[" ".join(words) for words, _, _ in NO_SETTINGS])
def test_a_word_that_is_no_setting(wrong, words, start, meant):
    [message] = wrong(training, *words)
    assert message.startswith(start) and written(message) == meant


def test_a_split_variant_of_eval(wrong):
    [message] = wrong(evaluation, "variants=[{compressor.ratio:", "8},", "{compressor.ratio:", "16}]")
    assert written(message) == {"variants": [{"compressor.ratio": 8}, {"compressor.ratio": 16}]}


def test_a_run_for_train(wrong, tmp_path):
    [message] = wrong(training, str(tmp_path))
    assert f"this command takes no RUN; init_from={tmp_path} starts from that run's weights" in message
    [message] = wrong(training, "latest")
    assert message.startswith("latest: this command takes no RUN")


def test_every_wrong_word_is_reported_at_once(refused):
    messages = refused(training, "--lr=1", "nq", "name='a", "generation.stop=a,b")
    assert len(messages) == 4


def test_words_in_any_order():
    found = sort_words(["a=1", "-m", "RUN", "--config-name", "study/sizes", "~b", "--lr", "3", "c=2"])
    assert found.flags == ["-m", "--config-name", "study/sizes"] and found.is_multirun
    assert found.settings == ["a=1", "~b", "c=2"] and found.bare == [("RUN", "a=1")] and found.foreign == ["--lr=3"]


# ------------------------------------------------------------------ settings that Hydra cannot read

UNREADABLE = [
    ("baselines=[full_context", "the [ is not closed", ["full_context"]),
    ("variants=[{compressor.ratio: 8}", "the [ is not closed", [{"compressor.ratio": 8}]),
    ("variants=[{compressor.ratio: 8", "the { is not closed", [{"compressor.ratio": 8}]),
    ("baselines=full_context]", "the ] closes nothing", "full_context]"),
    ("generation.stop=[a}", "the } closes nothing", "[a}"),
    ("name='a", "the ' is not closed", "'a"),
    ('prompt.instruction="it', 'the " is not closed', '"it'),
    ("prompt.instruction=it's", "the ' is not closed", "it's"),
    ("prompt.template=Q: {question}", "a text with : { } needs quotes", "Q: {question}"),
    ("dataset.train=a=b.jsonl", None, "a=b.jsonl"),
    ("prompt.instruction=(x)", None, "(x)"),
    ("name=a&b", "a text with & needs quotes", "a&b"),
    ("name=a;b", "a text with ; needs quotes", "a;b"),
    ("name=${", "the { is not closed", "${"),
    ("name=größe", None, "größe"),
]


@pytest.mark.parametrize("word, reason, value", UNREADABLE, ids=[word for word, _, _ in UNREADABLE])
def test_a_setting_that_hydra_cannot_read(wrong, word, reason, value):
    key, _, typed = word.partition("=")
    if reason is None:
        read = OverridesParser.create().parse_override(shlex.split(spelled(key, typed))[0])
        assert (read.key_or_group, read.value()) == (key, value)
        return
    entry = evaluation if key in ("baselines", "variants") else training
    [message] = wrong(entry, word)
    assert message.startswith(f"{word}: cannot be read ({reason}")
    assert {key: str(one).replace(r"\${", "${") for key, one in written(message).items()} == {key: str(value)}


@pytest.mark.parametrize("word", ["compressor.ratio=2,4", "dataset.train=a.jsonl,b.jsonl", "seed=range(3)"])
def test_several_values_without_m(wrong, word):
    [message] = wrong(training, word)
    assert message.startswith(f"{word}: several values are a sweep, a run for each, which needs -m: -m ")
    key, _, value = word.partition("=")
    assert shlex.split(message.partition("needs -m: ")[2].partition(";")[0]) == ["-m", word]
    text, as_list = re.search(r"is written (.*), a list (.*)$", message).groups()
    read = [OverridesParser.create().parse_override(shlex.split(one)[0]) for one in (text, as_list)]
    assert read[0].value() == value and isinstance(read[1].value(), list)


def test_a_list_where_a_sweep_is_meant(refused):
    [message] = refused(training, "compressor.ratio=[2,4]")
    assert message.endswith("; a sweep, a run for each value, is written -m compressor.ratio=2,4")


# ------------------------------------------------------------------ errors of Hydra and OmegaConf

LIBRARY = [
    (
        ["--config-name", "trian"],
        "--config-name trian: no such configuration; the nearest right one is train; there are: ",
    ),
    (["dataset=hotpot"], "no such configuration dataset/hotpot; the nearest right one is hotpotqa; there are: "),
    (["backbone=Qwen/Qwen3-4B"], "no such configuration backbone/Qwen/Qwen3-4B; the nearest right one is qwen3_4b; "),
    (
        ["backbone=SmolLM2-135M-Instruct"],
        "no such configuration backbone/SmolLM2-135M-Instruct; the nearest right one is smollm2_135m",
    ),
    (["experiment=comi-facts"], "no such configuration experiment/comi-facts; the nearest right one is comi_facts"),
    (["dataset=[nq,hotpotqa]"], "dataset"),
    (["+dataset=nq"], "+dataset: a choice exists; write dataset=CHOICE"),
    (["~dataset"], "dataset: missing; it must be a section of keys"),
    (["~train.stepps"], "~train.stepps: unknown key; the nearest right one is train.steps"),
    (["+train.steps=3"], "+train.steps: this key exists; write train.steps=VALUE"),
    (["dataset=null"], "dataset=null: must be one of 2wikimultihopqa, "),
    (["dataset="], "no such configuration dataset/; there are: 2wiki"),
    (["study=sizes"], "study: unknown key"),
    (["backbone.path=x"], "backbone.path: unknown key; it is a key of backbone=llama2_7b, backbone="),
    (["compressor=mean_pool", "+compressor.keep=x"], "compressor.keep: unknown key; it is a key of compressor="),
    (["train=3"], "train"),
    (["train.steps.x=3"], "train.steps"),
    (["compressor.=3"], "compressor.=3: 'compressor.' is no key; settings are written key=value, e.g. train.steps=100"),
    (["seed=${seed}"], "seed=${seed}: the value refers to itself"),
    (["name=${nam}"], "name: ${nam} names no key of the configuration; as a text it is written "),
    (["reader=${nam}"], "reader: ${nam} names no key of the configuration; as a text it is written "),
    (["seed=${oc.env:NO_SUCH_VARIABLE}"], "seed: the environment variable NO_SUCH_VARIABLE is not set"),
    (["seed=${what:1}"], "seed: ${what:...} is no function of the configuration; as a text it is written "),
    (["paths.outputs=${nam}"], "paths.outputs"),
    (["hydra.nothing=1"], "hydra.nothing"),
    (["hydra/launcher=nothing"], "hydra/launcher"),
    (["dataset@x=nq"], "dataset"),
    (["train.steps=int(x)"], "train.steps"),
    (["-m", "compressor.ratio=2,x,"], "compressor.ratio"),
    (["-m", "seed=interval(1,3)"], "seed=interval(1,3): no values to run; name them, e.g. -m seed=1,2,3"),
    (["-m", "seed=glob(*)"], "seed=glob(*): no values to run"),
    (["-m", "hydra/sweeper=nothing"], "no such configuration hydra/sweeper/nothing; there are: basic"),
]


@pytest.mark.parametrize("words, start", LIBRARY, ids=[" ".join(words) for words, _ in LIBRARY])
def test_no_traceback_and_no_text_of_hydra(refused, words, start):
    messages = refused(training, *words)
    assert messages[0].startswith(start), messages
    text = "\n".join(messages)
    assert not re.search(
        r"hydra\.cc|full_key|object_type|Traceback|HYDRA_FULL_ERROR|NoViableAlt|searchpath|\bstruct\b", text
    )


@pytest.mark.parametrize(
    "word, message",
    [
        ("compresor.ratio=2,4", "compresor.ratio: unknown key; the nearest right one is compressor.ratio"),
        ("dataset=nq,hotpot", "no such configuration dataset/hotpot; the nearest right one is hotpotqa; there are: "),
    ],
)
def test_a_wrong_value_of_a_sweep(monkeypatch, tmp_path, capsys, word, message):
    assert call(monkeypatch, tmp_path, training, "-m", word) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_a_dollar_sign_is_written_as_text(refused):
    [message] = refused(training, "name=${nam}")
    [word] = shlex.split(message.rpartition("is written ")[2])
    assert compose_config("train", [word]).name == "${nam}"
    assert compose_config("train", [setting("name", r"a\${b} ${c}")]).name == r"a\${b} ${c}"


# ------------------------------------------------------------------ other names of keys


def test_an_alias_is_the_name_of_one_key():
    names = [alias for aliases in NAMES.values() for alias in aliases.split()]
    assert len(names) == len(set(names)) == len(ALIASES) and [name for name in names if plain_name(name) != name] == []


@pytest.fixture(scope="module")
def all_keys():
    return {*known_keys("eval", []), *known_keys("train", ["dataset=jsonl", "backbone=smollm2_135m"])}


def test_every_alias_names_a_key_that_exists_and_is_none_itself(all_keys):
    assert [key for key in NAMES if key not in all_keys] == []
    assert [alias for alias in ALIASES if alias in all_keys] == []
    for key in NAMES:
        assert OverridesParser.create().parse_override(f"{key}=1").key_or_group == key


@pytest.mark.parametrize(
    "word, key",
    [
        ("lr=1e-3", "train.learning_rate"),
        ("bs=8", "train.batch_size"),
        ("batch_size=8", "train.batch_size"),
        ("epochs=3", "train.epochs"),
        ("max_length=512", "limits.max_context_tokens"),
        ("model=tiny", "backbone"),
        ("ratio=8", "compressor.ratio"),
        ("train.lr=1", "train.learning_rate"),
        ("+lr=1", "train.learning_rate"),
        ("data=nq", "dataset"),
        ("global_batch_size=64", "train.global_batch"),
        ("max_new_tokens=5", "generation.max_new_tokens"),
    ],
)
def test_another_name_of_a_key(word, key):
    assert suggest(word.lstrip("+").partition("=")[0], keys_of("train")) == f"; the nearest right one is {key}"


@pytest.mark.parametrize("word", ["lr=1", "+lr=1"])
def test_another_name_of_a_key_on_a_command_line(refused, word):
    assert refused(training, word) == ["lr: unknown key; the nearest right one is train.learning_rate"]


def test_another_name_of_a_key_of_a_run(refused, tmp_path, compose):
    cfg = compose(["compressor=ram"])
    (tmp_path / "run").mkdir()
    OmegaConf.save(cfg, tmp_path / "run" / "config.yaml")
    near = "+lr: no key of a run's configuration; the nearest right one is train.learning_rate".lstrip("+")
    assert refused(evaluation, str(tmp_path / "run"), "+lr=1") == [near]


@pytest.mark.parametrize(
    "name, choice",
    [
        ("Qwen/Qwen2-7B-Instruct", "qwen2_7b"),
        ("meta-llama/Llama-2-7b-hf", "llama2_7b"),
        ("SmolLM2-135M", "smollm2_135m"),
        ("zzz", None),
    ],
)
def test_the_choice_that_a_hub_name_means(name, choice):
    assert nearest_choice(name, group_choices("backbone")) == choice


def test_the_configuration_that_a_flag_names():
    assert config_name(["a=1"], "train") == "train" and config_name(["-cn", "eval.yaml"], "train") == "eval"
    assert config_name(["--config-name=study/data_gap"], "study/data_gap_smoke") == "study/data_gap"
    assert config_name(["--config-dir", "x", "-cn", "own"], "train") == "train"
    assert "dataset" in config_groups() and (CONFIGS / "train.yaml").is_file()
