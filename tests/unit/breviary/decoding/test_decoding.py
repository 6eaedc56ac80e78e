"""The decode loop on known logits: greedy, sampling, repetition penalty, stop strings, streaming."""

from collections import Counter

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from breviary.contract import Generation
from breviary.decoding.loop import decode_stream, decode_texts

VOCABULARY = 512


def scripted(rows):
    """First logits, a step function under which row b decodes rows[b][n] as its n-th token, and the steps' ids."""
    steps = []

    def at(n):
        logits = torch.zeros(len(rows), VOCABULARY)
        for b, row in enumerate(rows):
            logits[b, row[min(n, len(row) - 1)]] = 9.0
        return logits

    def step(ids):
        steps.append(ids.tolist())
        return at(len(steps))

    return at(0), step, steps


def constant(probabilities, rows=1):
    """The same next-token distribution at every step."""
    logits = torch.full((rows, VOCABULARY), -torch.inf)
    for token, p in probabilities.items():
        logits[:, token] = torch.tensor(p).log()
    return logits, lambda ids: logits.clone()


@pytest.fixture
def words(tokenizer):
    """Ids of the words, which are one token each."""

    def ids(*names):
        rows = [tokenizer(f" {name}")["input_ids"] for name in names]
        assert all(len(one) == 1 for one in rows), rows
        return [one[0] for one in rows]

    return ids


def test_rows_end_at_their_own_end_token(words, tokenizer):
    red, pink, green = words("red", "pink", "green")
    end = tokenizer.eos_token_id
    logits, step, steps = scripted([[red, end, pink], [red, pink, green, end], [end]])
    assert decode_texts(logits, step, Generation(max_new_tokens=9), tokenizer) == ["red", "red pink green", ""]
    assert len(steps) == 3


def test_rows_that_ended_leave_the_batch(words, tokenizer):
    """When a quarter of the batch has ended; `step` then maps the ids of the others."""
    red, pink, green = words("red", "pink", "green")
    end = tokenizer.eos_token_id
    rows = [[red, end], [pink, pink, pink, end], [red, green, pink, red, end], [green, green, end]]
    logits, _, _ = scripted(rows)
    present, seen = list(range(4)), []

    def step(ids):
        seen.append(ids.tolist())
        return torch.stack([9.0 * torch.eye(VOCABULARY)[rows[row][len(seen)]] for row in present])

    def keep(index):
        present[:] = [present[place] for place in index.tolist()]

    texts = decode_texts(logits, step, Generation(max_new_tokens=9), tokenizer, keep_rows=keep)
    assert texts == ["red", "pink pink pink", "red green pink red", "green green"]
    assert seen == [[red, pink, red, green], [pink, green, green], [pink, pink], [red]]


def test_decoding_stops_at_max_new_tokens(words, tokenizer):
    [red] = words("red")
    logits, step, steps = scripted([[red]])
    assert decode_texts(logits, step, Generation(max_new_tokens=3), tokenizer) == ["red red red"]
    red = int(logits[0].argmax())
    assert decode_texts(logits, step, Generation(max_new_tokens=3), tokenizer, end_ids=(red,)) == ["red"]
    assert len(steps) == 2  # nothing is computed after the last token


def test_all_steps_runs_every_step_and_leaves_the_text_unchanged(words, tokenizer):
    red, pink = words("red", "pink")
    logits, step, steps = scripted([[red, tokenizer.eos_token_id, pink]])
    generation = Generation(max_new_tokens=6)
    text = decode_texts(logits, step, generation, tokenizer)
    few = len(steps)
    logits, step, steps = scripted([[red, tokenizer.eos_token_id, pink]])
    assert decode_texts(logits, step, generation, tokenizer, all_steps=True) == text == ["red"]
    assert (few, len(steps)) == (1, 5)


def test_the_end_token_is_suppressed_before_min_new_tokens(words, tokenizer):
    red, end = words("red") + [tokenizer.eos_token_id]
    logits, step = constant({end: 0.9, red: 0.1})
    assert decode_texts(logits, step, Generation(max_new_tokens=5), tokenizer) == [""]
    assert decode_texts(logits, step, Generation(max_new_tokens=5, min_new_tokens=3), tokenizer) == ["red red red"]


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        (("pink",), "red"),
        (("green", "pink"), "red"),
        (("d pi",), "re"),
        (("violet",), "red pink green red"),
        ((), "red pink green red"),
    ],
)
def test_answers_end_before_the_first_stop_string(words, tokenizer, stop, text):
    red, pink, green = words("red", "pink", "green")
    logits, step, steps = scripted([[red, pink, green, red]])
    assert decode_texts(logits, step, Generation(max_new_tokens=4, stop=stop), tokenizer) == [text]
    assert len(steps) == (1 if len(text) <= 3 else 3)


def test_a_stopped_row_does_not_stop_the_others(words, tokenizer):
    red, pink, green = words("red", "pink", "green")
    logits, step, _ = scripted([[red, pink, green], [green, red, red]])
    assert decode_texts(logits, step, Generation(max_new_tokens=3, stop=("pink",)), tokenizer) == [
        "red",
        "green red red",
    ]


def test_repetition_penalty_lowers_the_scores_of_decoded_tokens(words, tokenizer):
    """Positive scores are divided, others multiplied, for tokens that the row has decoded."""
    red, pink, green = words("red", "pink", "green")
    scores = torch.full((2, VOCABULARY), -10.0)
    scores[0, [red, pink, green]] = torch.tensor([3.0, 2.5, 1.4])
    scores[1, [red, pink, green]] = torch.tensor([-1.0, -1.2, -1.4])

    def run(penalty):
        return decode_texts(
            scores.clone(),
            lambda ids: scores.clone(),
            Generation(max_new_tokens=3, repetition_penalty=penalty),
            tokenizer,
        )

    assert run(1.0) == ["red red red"] * 2
    assert run(1.3) == ["red pink red", "red pink red"]  # 3/1.3, 2.5/1.3 > 1.4; -1.3, -1.56 against -1.4: red
    assert run(2.0) == ["red pink red", "red pink green"]


def test_sampling_is_reproducible_by_seed(words, tokenizer):
    red, pink, green = words("red", "pink", "green")
    logits, step = constant({red: 0.4, pink: 0.3, green: 0.3}, rows=3)

    def run(seed):
        return decode_texts(logits, step, Generation(max_new_tokens=12, temperature=1.0, seed=seed), tokenizer)

    assert run(0) == run(0) != run(1)
    assert len(set(run(0))) == 3  # rows are sampled independently
    before = torch.random.get_rng_state()
    run(0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_sampled_row_depends_on_its_id_alone(words, tokenizer):
    red, pink, green = words("red", "pink", "green")
    generation = Generation(max_new_tokens=12, temperature=1.0, seed=5)

    def run(*ids):
        logits, step = constant({red: 0.4, pink: 0.3, green: 0.3}, rows=len(ids))
        return decode_texts(logits, step, generation, tokenizer, example_ids=ids)

    a, b, c = run("a", "b", "c")
    assert len({a, b, c}) == 3
    assert (run("b"), run("c", "a"), run("x", "a", "b")[1:]) == ([b], [c, a], [a, b])
    logits, step = constant({red: 0.4, pink: 0.3, green: 0.3})
    assert "".join(decode_stream(logits, step, generation, tokenizer, example_ids=["b"])) == b


@pytest.mark.parametrize("top_p", [1.0, 0.75])
def test_sampled_frequencies_are_the_probabilities(words, tokenizer, top_p):
    red, pink, green = words("red", "pink", "green")
    logits, step = constant({red: 0.2, pink: 0.3, green: 0.5}, rows=20)
    texts = decode_texts(logits, step, Generation(max_new_tokens=200, temperature=1.0, top_p=top_p), tokenizer)
    counts = Counter(" ".join(texts).split())
    total = 1 if top_p == 1 else 0.8  # red is outside the nucleus
    for word, p in {"red": 0.2 * (top_p == 1), "pink": 0.3, "green": 0.5}.items():
        assert counts[word] / 4000 == pytest.approx(p / total, abs=0.03)


def sampled_counts(logits, step, tokenizer, **settings):
    [text] = decode_texts(logits, step, Generation(max_new_tokens=400, seed=0, **settings), tokenizer)
    return Counter(text.split())


def test_temperature_flattens_and_sharpens(words, tokenizer):
    red, pink = words("red", "pink")
    logits, step = constant({red: 0.8, pink: 0.2})
    assert sampled_counts(logits, step, tokenizer, temperature=1.0)["red"] == pytest.approx(320, abs=25)
    assert sampled_counts(logits, step, tokenizer, temperature=2.0)["red"] == pytest.approx(400 * 2 / 3, abs=30)
    assert sampled_counts(logits, step, tokenizer, temperature=0.1)["red"] == 400


@pytest.mark.parametrize(
    ("top_p", "nucleus"), [(0.45, {"red"}), (0.6, {"red", "pink"}), (1.0, {"red", "pink", "green"}), (1e-6, {"red"})]
)
def test_top_p_samples_from_the_nucleus(words, tokenizer, top_p, nucleus):
    red, pink, green = words("red", "pink", "green")
    logits, step = constant({green: 0.2, red: 0.5, pink: 0.3})
    assert set(sampled_counts(logits, step, tokenizer, temperature=1.0, top_p=top_p)) == nucleus


# ---- streaming ----


@pytest.mark.parametrize(
    "text, stop",
    [
        ("red, green and blue", ()),
        ("  the sun is  yellow ", ()),
        ("red\ngreen", ("\n",)),
        ("sea\u00f1or \u4e2d\u6587 \U0001f600!", ()),
        ("one, two. three", (". three",)),
        ("one. two", (". three",)),
        ("ends in a", ("a stop",)),
        ("\n", ("\n",)),
        ("", ()),
    ],
)
def test_streamed_pieces_join_to_the_answer(text, stop, tokenizer):
    """Pieces are final: no incomplete character, no beginning of a stop string, no trailing white space."""
    row = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    generation = Generation(max_new_tokens=40, stop=stop)
    [whole] = decode_texts(*scripted([row])[:2], generation, tokenizer)
    pieces = list(decode_stream(*scripted([row])[:2], generation, tokenizer))
    assert "".join(pieces) == whole == text.split(stop[0] if stop else "\0")[0].strip() and all(pieces)
    assert text != "red, green and blue" or len(pieces) >= 5


def test_pieces_are_yielded_during_decoding(words, tokenizer):
    logits, step, steps = scripted([[*words("red", "pink", "green"), tokenizer.eos_token_id]])
    pieces = decode_stream(logits, step, Generation(max_new_tokens=9), tokenizer)
    assert (next(pieces), len(steps)) == ("red", 0) and (next(pieces), len(steps)) == (" pink", 1)


def test_gradients_are_enabled_between_two_pieces(words, tokenizer):
    logits, step, _ = scripted([words("red", "pink", "green")])
    for _ in decode_stream(logits, step, Generation(max_new_tokens=3), tokenizer):
        assert torch.is_grad_enabled()


@pytest.fixture(scope="module")
def byte_fallback():
    """A tokenizer as Llama 2's: characters outside the vocabulary are byte tokens."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581red", "\u2581pink", "!"]
    model = models.BPE({name: i for i, name in enumerate(names)}, [], unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


RED, PINK, MARK, BOS, EOS = 259, 260, 261, 1, 2


def byte_ids(text):
    return [3 + byte for byte in text.encode()]


@pytest.mark.parametrize(
    "row, stop",
    [
        ([RED, *byte_ids("\u4e2d\u6587"), PINK, EOS], ()),
        ([RED, *byte_ids("\u4e2d\u6587")[:-1], EOS], ()),  # incomplete at the end: the whole run is unreadable
        ([*byte_ids("\u4e2d")[:2], PINK, EOS], ()),
        ([*byte_ids("\u4e2d"), byte_ids("\u6587")[0]], ()),  # cut at max_new_tokens
        ([*byte_ids("\U0001f600a"), BOS, *byte_ids("\u4e2d")[:1], RED], ()),  # special tokens are skipped in the run
        ([RED, *byte_ids(" \u4e2d\u6587"), PINK], ("\u4e2d\u6587",)),
        ([RED, *byte_ids("\u4e2d"), MARK, *byte_ids("\u6587"), PINK], ("!\u6587",)),
    ],
)
def test_streams_of_tokenizers_with_byte_fallback(row, stop, byte_fallback):
    generation = Generation(max_new_tokens=len(row), stop=stop)
    [whole] = decode_texts(*scripted([row])[:2], generation, byte_fallback)
    assert "".join(decode_stream(*scripted([row])[:2], generation, byte_fallback)) == whole


def test_a_stop_string_may_continue_with_an_incomplete_character(tokenizer):
    row = [*tokenizer("a \u4e2d\u6587 b")["input_ids"], tokenizer.eos_token_id]
    generation = Generation(max_new_tokens=40, stop=("\u4e2d\u6587",))
    assert list(decode_stream(*scripted([row])[:2], generation, tokenizer)) == ["a"]
