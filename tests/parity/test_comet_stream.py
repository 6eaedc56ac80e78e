"""comet.inference.stream: memory and logits equal the reference's for any pieces of text and while decoding.

fp64, 1e-10: sums of tens of terms in another order. Chunks of 16 tokens; a chunk ends when
the next token arrives.
"""

import itertools
import random

import pytest
import torch
from comet_helpers import B, C, G, K, expected_logits, random_ids, tiny_comet

from breviary.contract import Generation
from breviary.memory.assembly import ROUND_TO
from comet.inference.stream import Stream
from comet.layers import BACKENDS
from tests.tiny import compose_tiny, recorded_ids, row_ids, tiny_reader

LENGTHS = [71, 5, 48]  # the last one fills three chunks


@pytest.fixture(scope="module")
def readers():
    return {backend: tiny_comet(f"compressor.backend={backend}") for backend in BACKENDS}


@pytest.fixture(params=BACKENDS)
def reader(request, readers):
    return readers[request.param]


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-10, rtol=1e-10)


def expected_last_logits(reader, rows):
    """The reference's logits after the last token of each text, (B, V)."""
    with torch.no_grad():
        return torch.stack([expected_logits(reader, torch.as_tensor(row))[-1] for row in rows])


def read_at_once(reader, ids, lengths):
    stream = Stream(reader, len(ids))
    return stream, stream.read(ids, torch.tensor(lengths))


def read_pieces(stream, ids, lengths, sizes):
    """Reads `sizes(row, remaining)` tokens of each row at a time; returns the logits after the last piece."""
    at, logits = [0] * len(ids), None
    while any(done < length for done, length in zip(at, lengths)):
        now = [min(sizes(row, length - done), length - done) for row, (done, length) in enumerate(zip(at, lengths))]
        piece = torch.zeros(len(ids), max(now), dtype=torch.int64)
        for row, (done, size) in enumerate(zip(at, now)):
            piece[row, :size] = ids[row, done : done + size]
        logits = stream.read(piece, torch.tensor(now))
        at = [done + size for done, size in zip(at, now)]
    return logits


def valid_memory(stream):
    """For each row the length of its open chunk, and global state and queue of every layer, without padding."""
    memory = stream.memory
    rows = []
    for row, filled in enumerate(stream.open_tokens):
        layers = [
            (
                layer.global_state[row][memory.initialized[row].expand(layer.global_state.shape[1])],
                layer.queue[row][memory.queue_mask[row]],
            )
            for layer in memory.layers
        ]
        rows.append((filled, [x for layer in layers for x in layer]))
    return rows


def assert_same_memory(one, other):
    for (length, tensors), (expected_length, expected) in zip(valid_memory(one), valid_memory(other), strict=True):
        assert length == expected_length
        for actual, expected_tensor in itertools.zip_longest(
            tensors, expected, fillvalue=torch.zeros(0, one.reader.decoder.width)
        ):
            close(actual.double(), expected_tensor.double())


# ---- reading ----


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["compressor.global_slots=0"],
        ["compressor.queue_budget=0"],
        ["compressor.global_slots=0", "compressor.queue_budget=0"],
    ],
    ids=" ".join,
)
def test_ragged_rows_read_at_once_equal_the_reference(settings):
    reader, ids = tiny_comet(*settings), random_ids(3, max(LENGTHS))
    close(
        read_at_once(reader, ids, LENGTHS)[1], expected_last_logits(reader, [row[:n] for row, n in zip(ids, LENGTHS)])
    )


def test_single_tokens_and_random_pieces_equal_one_call(reader):
    ids = random_ids(3, max(LENGTHS))
    stream, logits = read_at_once(reader, ids, LENGTHS)
    assert [filled for filled, _ in valid_memory(stream)] == [7, 5, 16]
    for seed in range(4):
        rng, pieces = random.Random(seed), Stream(reader, 3)
        close(read_pieces(pieces, ids, LENGTHS, lambda row, left, rng=rng: rng.randint(0, 21)), logits)
        assert_same_memory(pieces, stream)
    single = Stream(reader, 3)
    close(read_pieces(single, ids, LENGTHS, lambda row, left: 1), logits)
    assert_same_memory(single, stream)


def test_a_row_without_new_tokens_keeps_its_open_chunk(reader):
    ids = random_ids(2, 200, seed=3)
    expected, logits = read_at_once(reader, ids, [14, 190])
    stream = Stream(reader, 2)
    stream.read(ids[:, :9], torch.tensor([9, 9]))
    for start in range(9, 184, 5):
        stream.read(torch.stack([ids[0, :5], ids[1, start : start + 5]]), torch.tensor([0, 5]))
    close(
        stream.read(torch.stack([ids[0, 9:14], ids[1, 184:189]]), torch.tensor([5, 5])),
        read_at_once(reader, ids, [14, 189])[1],
    )
    close(stream.read(torch.stack([ids[0, :1], ids[1, 189:190]]), torch.tensor([0, 1])), logits)
    assert_same_memory(stream, expected)


def test_rows_without_a_token_keep_their_logits(reader):
    ids = random_ids(2, 20)
    stream = Stream(reader, 2)
    assert stream.read(ids[:, :0], torch.tensor([0, 0])) is None
    first = stream.read(ids, torch.tensor([20, 0]))
    assert first[0].any() and not first[1].any()
    second = stream.read(ids, torch.tensor([0, 7]))
    assert torch.equal(second[0], first[0])
    close(second[1], expected_last_logits(reader, [ids[1, :7]])[0])


def test_a_batch_equals_its_rows_alone(reader):
    ids = random_ids(3, max(LENGTHS))
    together = read_at_once(reader, ids, LENGTHS)[1]
    for row, length in enumerate(LENGTHS):
        close(read_at_once(reader, ids[row : row + 1], [length])[1][0], together[row])


# ---- decoding ----


def test_every_decoding_step_equals_the_reference_on_prompt_and_answer(reader):
    """40 tokens: every row reaches ten compression tokens and two or more chunk ends, at different steps."""
    ids = random_ids(3, max(LENGTHS))
    texts = [row[:n].tolist() for row, n in zip(ids, LENGTHS)]
    stream, logits = read_at_once(reader, ids, LENGTHS)
    for _ in range(40):
        expected = expected_last_logits(reader, texts)
        close(logits, expected)
        chosen = logits.argmax(-1)
        assert torch.equal(chosen, expected.argmax(-1))
        texts = [[*text, token] for text, token in zip(texts, chosen.tolist())]
        logits = stream.step(chosen)
    assert_same_memory(
        stream,
        read_at_once(
            reader, torch.tensor([text + [0] * (111 - len(text)) for text in texts]), [len(text) for text in texts]
        )[0],
    )


def test_answers_equal_the_reference_s(reader, ragged):
    """Comet.answer: prefix and context are read first, then the prompt."""
    with recorded_ids(reader) as recorder:
        reader.answer(ragged, Generation(max_new_tokens=9, min_new_tokens=9))
    for row, ids in enumerate(recorder.ids):
        text = row_ids(ragged, row, "prefix", "context", "prompt").tolist()
        for token in ids[:-1]:  # the end token is suppressed until the last
            logits = expected_last_logits(reader, [text])[0]
            logits[reader.tokenizer.eos_token_id] = -torch.inf
            assert token == int(logits.argmax())
            text.append(token)
        assert len(ids) == 9


# ---- forks ----


def test_a_fork_does_not_change_its_origin(reader):
    ids = random_ids(2, 90)
    for length in (3, 16, 37):
        stream, _ = read_at_once(reader, ids, [length, length])
        fork = stream.fork()
        fork.read(ids[:, 40:80], torch.tensor([40, 40]))
        for token in ids[:, 80:].T:
            fork.step(token)
        assert_same_memory(stream, read_at_once(reader, ids, [length, length])[0])
        close(stream.step(ids[:, length]), read_at_once(reader, ids, [length + 1, length + 1])[1])
        assert fork.open_tokens == [(length + 50 - 1) % C + 1] * 2


# ---- bytes ----


def open_columns(stream):
    return 0 if stream.open_chunk is None else stream.open_chunk.mask.shape[1]


def test_bytes_are_bounded_while_decoding():
    reader = tiny_reader(compose_tiny(["compressor=comet", "backbone.layers=2"])).eval()
    stream, sizes = Stream(reader, 1), []
    logits = stream.read(random_ids(1, 1), torch.tensor([1]))
    for _ in range(400):
        logits = stream.step(logits.argmax(-1))
        sizes.append(stream.bytes)
        assert open_columns(stream) <= C + K
    assert max(sizes[4 * C :]) <= max(sizes[: 4 * C])
    per_column = 2 * 2 * 2 * 16 * 4  # layers, keys and values, heads, width, bytes
    memory = 2 * (G + B) * 64 * 4
    assert max(sizes) == memory + (G + B + C + K) * per_column + 2 * K * 64 * 4  # pending queue entries


@pytest.mark.parametrize("lengths", [[150], [150, 140], [150, 9]], ids=str)
@pytest.mark.parametrize("size", [2, 3, 7])
def test_the_open_chunk_does_not_grow_with_padding(lengths, size):
    """Pieces are padded to a multiple of ROUND_TO. This padding is removed, also where rows have different lengths."""
    reader = tiny_reader(compose_tiny(["compressor=comet", "backbone.layers=1"])).eval()
    stream, ids, columns = Stream(reader, len(lengths)), random_ids(len(lengths), 150), []
    for start in range(0, 150, size):
        now = torch.tensor([max(min(size, length - start), 0) for length in lengths])
        stream.read(ids[:, start : start + size], now)
        columns.append(open_columns(stream))
    assert 0 < max(columns) <= C + K + ROUND_TO
