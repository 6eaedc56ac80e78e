"""The generated data sets: invented facts and passkey."""

import inspect
import re

import pytest

from data import invented_facts
from data.checks import SPLITS
from data.invented_facts import HEADS, MIDDLES, RELATIONS, RESIDUES, TAILS, InventedFacts
from data.passkey import FILLER, OPENING, Passkey

FACTS = {"train_size": 300, "validation_size": 100, "test_size": 100}
KEYS = {"train_size": 20, "validation_size": 5, "test_size": 5}


def all_names() -> dict[str, list[str]]:
    names = {split: [] for split in SPLITS}
    for h, head in enumerate(HEADS):
        for m, middle in enumerate(MIDDLES):
            for t, tail in enumerate(TAILS):
                [split] = [s for s in SPLITS if (h + m + t) % 10 in RESIDUES[s]]
                names[split].append(head + middle + tail)
    return names


def test_names_are_distinct_and_splits_share_none():
    names = all_names()
    everything = [name for split in SPLITS for name in names[split]]
    assert len(set(everything)) == len(everything) == 24**3
    assert min(len(names[split]) for split in SPLITS) > invented_facts.MAX_FACTS


def test_each_drawn_name_belongs_to_its_split():
    names = {split: set(own) for split, own in all_names().items()}
    for split in SPLITS:
        drawn = {d.title for e in InventedFacts(**FACTS).examples(split) for d in e.documents}
        assert len(drawn) > 100 and drawn <= names[split]


def test_relations_have_twelve_one_word_values():
    assert len(RELATIONS) == 5
    for values in RELATIONS.values():
        assert len(set(values)) == len(values) == 12
        assert all(re.fullmatch("[a-z]+", value) for value in values)


def test_only_the_gold_sentence_answers_the_question():
    for example in InventedFacts(facts=6, **FACTS).examples("train"):
        which, relation, entity = re.fullmatch(r"What is the (\w+) (\w+) of (.+)\?", example.question).groups()
        sentences = [example.context[d.start : d.end] for d in example.documents]
        assert " ".join(sentences) == example.context and len(sentences) == 6
        assert len({d.title for d in example.documents}) == 6
        [gold] = [s for s, d in zip(sentences, example.documents) if d.is_gold]
        [answer] = example.answers
        assert answer in RELATIONS[relation] and f" {answer}" in gold
        assert f"{which} {relation}" in gold and entity.lower() in gold.lower()
        assert [s for s in sentences if entity.split()[-1] in s] == [gold]


def test_sentences_are_short_and_complete():
    for example in InventedFacts(**FACTS).examples("validation"):
        for d in example.documents:
            sentence = example.context[d.start : d.end]
            assert sentence[0].isupper() and sentence.endswith(".") and len(sentence.split()) <= 11


def test_answers_are_uniform_given_the_relation():
    counts = dict.fromkeys(RELATIONS["fruit"], 0)
    for example in InventedFacts(train_size=6000).examples("train"):
        if " fruit " in example.question:
            counts[example.answers[0]] += 1
    total = sum(counts.values())
    assert abs(total - 1200) < 155  # 6000/5, 5 standard deviations
    # chi-square with 11 degrees of freedom: 31.3 at p = 0.001
    assert sum((n - total / 12) ** 2 / (total / 12) for n in counts.values()) < 31.3


def test_the_gold_fact_is_at_every_place():
    places = [[d.is_gold for d in e.documents].index(True) for e in InventedFacts(train_size=2000).examples("train")]
    assert all(abs(places.count(i) - 500) < 97 for i in range(4))  # 5 standard deviations


@pytest.mark.parametrize(("build", "sizes"), [(InventedFacts, FACTS), (Passkey, KEYS)])
def test_examples_depend_on_seed_split_and_index_only(build, sizes):
    examples = {(seed, split): build(seed=seed, **sizes).examples(split) for seed in (0, 1) for split in SPLITS}
    assert examples[0, "train"] == build(seed=0, **sizes).examples("train")
    assert build(seed=0, train_size=7).examples("train") == examples[0, "train"][:7]
    contexts = [e.context for group in examples.values() for e in group]
    assert len(set(contexts)) == len(contexts)
    ids = [e.id for (seed, _), group in examples.items() if seed == 0 for e in group]
    assert len(set(ids)) == len(ids) == sum(sizes.values())


def test_the_first_examples_never_change():
    """Published results depend on these examples."""
    fact = InventedFacts(facts=2).examples("test")[0]
    assert (fact.context, fact.question, fact.answers) == GOLDEN_FACT
    key = Passkey().examples("test")[0]
    assert (key.answers, key.documents[0].start) == GOLDEN_KEY


GOLDEN_FACT = (
    "The ship Prapept has bell as lucky instrument. The town of Sylchask has banana as official fruit.",
    "What is the official fruit of the town of Sylchask?",
    ("banana",),
)
GOLDEN_KEY = (("75287",), 1407)


@pytest.mark.parametrize("words", [60, 300, 1000, 4001])
def test_passkey_has_its_length_and_its_key(words):
    for example in Passkey(context_words=words, **KEYS).examples("train"):
        assert abs(len(example.context.split()) - words) <= 10
        [gold], [key] = example.documents, example.answers
        assert example.context[gold.start : gold.end] == f"The pass key is {key}. Remember it. {key} is the pass key."
        lines = example.context.split("\n")
        assert lines[0] == OPENING and lines.count(FILLER) == len(lines) - 2
        assert gold.is_gold and re.fullmatch("[1-9][0-9]{4}", key)


def test_passkey_lengths_are_random_in_a_range():
    words = [
        len(e.context.split()) for e in Passkey(context_words=300, least_words=60, train_size=400).examples("train")
    ]
    assert 50 <= min(words) < 80 and 280 < max(words) <= 310
    assert 160 < sum(words) / 400 < 200
    same = Passkey(context_words=300, least_words=300, **KEYS).examples("train")
    assert {len(e.context.split()) for e in same} == {
        len(e.context.split()) for e in Passkey(context_words=300, **KEYS).examples("train")
    }


@pytest.mark.parametrize(("depth", "line"), [(0, 1), (0.0, 1), (0.5, 27), (1, 52), (1.0, 52)])
def test_passkey_depth_sets_the_place(depth, line):
    for example in Passkey(context_words=1000, depth=depth, **KEYS).examples("test"):
        lines = example.context.split("\n")
        assert len(lines) == 53  # opening, needle, round((1000 - 25 - 12) / 19) = 51 lines of filler
        assert [i for i, text in enumerate(lines) if "pass key" in text] == [line]


def test_passkey_depths_are_random_over_the_context():
    places = [e.documents[0].start / len(e.context) for e in Passkey(train_size=400).examples("train")]
    assert min(places) < 0.1 and max(places) > 0.9 and 0.43 < sum(places) / 400 < 0.57  # mean 0.5, deviation 0.0144


@pytest.mark.parametrize("digits", [1, 15])
def test_passkey_digits(digits):
    assert {len(e.answers[0]) for e in Passkey(digits=digits, **KEYS).examples("train")} == {digits}


BAD_VALUES = [
    (InventedFacts, "facts", (0, -1, 1.5, "4", True, 1001, None)),
    (InventedFacts, "train_size", (0, -3, None)),
    (InventedFacts, "seed", (-1, 0.5)),
    (Passkey, "context_words", (59, None, 100.0)),
    (Passkey, "least_words", (59, 1001, 70.0)),
    (Passkey, "depth", (-0.1, 1.1, "half")),
    (Passkey, "digits", (0, 16)),
    (Passkey, "train_size", (0,)),
    (Passkey, "seed", (-1,)),
]


@pytest.mark.parametrize(("build", "key", "value"), [(b, k, v) for b, k, values in BAD_VALUES for v in values])
def test_a_wrong_value_is_reported_with_its_key_and_a_valid_example(build, key, value):
    data = build(**{key: value})
    [message] = data.problems(["train"])
    assert message.startswith(f"dataset.{key} is {value!r}; it must be ")
    valid = re.search(rf"for example dataset\.{key}=([0-9.]+)$", message).group(1)
    assert build(**{key: float(valid) if "." in valid else int(valid)}).problems(["train"]) == []
    with pytest.raises(ValueError, match=re.escape(message)):
        data.examples("train")


def test_problems_are_reported_together_for_the_given_splits_only():
    data = InventedFacts(facts=0, train_size=0, test_size=0, seed=-1)
    assert [s.split()[0] for s in data.problems(["train", "validation"])] == [
        "dataset.facts",
        "dataset.train_size",
        "dataset.seed",
    ]
    with pytest.raises(ValueError, match="dataset.facts.*\ndataset.test_size.*\ndataset.seed"):
        data.examples("test")


@pytest.mark.parametrize("build", [InventedFacts, Passkey])
def test_an_unknown_split_is_an_error(build):
    with pytest.raises(ValueError, match="split is 'dev'; allowed: train, validation, test"):
        build().examples("dev")


@pytest.mark.parametrize("build", [InventedFacts, Passkey])
def test_defaults_are_valid(build):
    assert all(p.default is not inspect.Parameter.empty for p in inspect.signature(build).parameters.values())
    assert build().problems(list(SPLITS)) == []
