"""comet.inference.stream: however tokens come, and while the reader writes, memory and logits are those of the slow twin.

fp64, 1e-10: sums of tens of terms in another order. Chunks of 16 tokens; a chunk is closed by the token that finds it full.
"""

import itertools
import random

import pytest
import torch
from comet_helpers import B, C, G, K, comet, drawn_ids, twin_logits

from breviary.contract import Generation
from breviary.memory.assembly import ROUND_TO
from comet.layers import BACKENDS
from comet.inference.stream import Stream
from tests.tiny import compose_tiny, recorded_ids, row_ids, tiny_reader

LENGTHS = [71, 5, 48]  # the last one fills three chunks


@pytest.fixture(scope="module")
def readers():
    return {backend: comet(f"compressor.backend={backend}") for backend in BACKENDS}


@pytest.fixture(params=BACKENDS)
def reader(request, readers):
    return readers[request.param]


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


def after(reader, rows):
    """The twin's logits after the last token of each text, (B, V)."""
    with torch.no_grad():
        return torch.stack([twin_logits(reader, torch.as_tensor(row))[-1] for row in rows])


def deferred_gradients(reader, ids, lengths):
    stream = Stream(reader, len(ids))
    return stream, stream.read(ids, torch.tensor(lengths))


def read_pieces(stream, ids, lengths, sizes):
    """Reads `sizes(row, left)` tokens of each row at a time; gives the logits after the last piece."""
    at, logits = [0] * len(ids), None
    while any(done < length for done, length in zip(at, lengths)):
        now = [min(sizes(row, length - done), length - done) for row, (done, length) in enumerate(zip(at, lengths))]
        piece = torch.zeros(len(ids), max(now), dtype=torch.int64)
        for row, (done, size) in enumerate(zip(at, now)):
            piece[row, :size] = ids[row, done : done + size]
        logits = stream.read(piece, torch.tensor(now))
        at = [done + size for done, size in zip(at, now)]
    return logits


def remembered(stream):
    """Each row's carried slots and queue in every layer, without pads, and the text of its open chunk."""
    memory = stream.memory
    rows = []
    for row, filled in enumerate(stream.filled):
        layers = [
            (
                layer.carried[row][memory.started[row].expand(layer.carried.shape[1])],
                layer.queue[row][memory.queue_mask[row]],
            )
            for layer in memory.layers
        ]
        rows.append((filled, [x for layer in layers for x in layer]))
    return rows


def same_memory(one, other):
    for (filled, tensors), (expected_filled, expected) in zip(remembered(one), remembered(other), strict=True):
        assert filled == expected_filled
        for found, wanted in itertools.zip_longest(
            tensors, expected, fillvalue=torch.zeros(0, one.reader.decoder.width)
        ):
            close(found.double(), wanted.double())


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
def test_ragged_rows_read_at_once_are_the_twin_s(settings):
    reader, ids = comet(*settings), drawn_ids(3, max(LENGTHS))
    close(deferred_gradients(reader, ids, LENGTHS)[1], after(reader, [row[:n] for row, n in zip(ids, LENGTHS)]))


def test_token_by_token_odd_pieces_and_at_once_are_the_same(reader):
    ids = drawn_ids(3, max(LENGTHS))
    stream, logits = deferred_gradients(reader, ids, LENGTHS)
    assert [filled for filled, _ in remembered(stream)] == [7, 5, 16]
    for seed in range(4):
        rng, pieces = random.Random(seed), Stream(reader, 3)
        close(read_pieces(pieces, ids, LENGTHS, lambda row, left: rng.randint(0, 21)), logits)
        same_memory(pieces, stream)
    single = Stream(reader, 3)
    close(read_pieces(single, ids, LENGTHS, lambda row, left: 1), logits)
    same_memory(single, stream)


def test_a_row_waits_in_an_open_chunk_while_others_read_on(reader):
    ids = drawn_ids(2, 200, seed=3)
    expected, logits = deferred_gradients(reader, ids, [14, 190])
    stream = Stream(reader, 2)
    stream.read(ids[:, :9], torch.tensor([9, 9]))
    for start in range(9, 184, 5):
        stream.read(torch.stack([ids[0, :5], ids[1, start : start + 5]]), torch.tensor([0, 5]))
    close(
        stream.read(torch.stack([ids[0, 9:14], ids[1, 184:189]]), torch.tensor([5, 5])),
        deferred_gradients(reader, ids, [14, 189])[1],
    )
    close(stream.read(torch.stack([ids[0, :1], ids[1, 189:190]]), torch.tensor([0, 1])), logits)
    same_memory(stream, expected)


def test_rows_without_a_token_keep_their_logits(reader):
    ids = drawn_ids(2, 20)
    stream = Stream(reader, 2)
    assert stream.read(ids[:, :0], torch.tensor([0, 0])) is None
    first = stream.read(ids, torch.tensor([20, 0]))
    assert first[0].any() and not first[1].any()
    second = stream.read(ids, torch.tensor([0, 7]))
    assert torch.equal(second[0], first[0])
    close(second[1], after(reader, [ids[1, :7]])[0])


def test_a_batch_is_read_as_its_rows_alone(reader):
    ids = drawn_ids(3, max(LENGTHS))
    together = deferred_gradients(reader, ids, LENGTHS)[1]
    for row, length in enumerate(LENGTHS):
        close(deferred_gradients(reader, ids[row : row + 1], [length])[1][0], together[row])


# ---- writing ----


def test_every_step_of_decoding_is_the_twin_s_reading_of_prompt_and_answer(reader):
    """40 tokens: every row comes to ten compression tokens and to two chunks' ends or more, at other steps than the others."""
    ids = drawn_ids(3, max(LENGTHS))
    texts = [row[:n].tolist() for row, n in zip(ids, LENGTHS)]
    stream, logits = deferred_gradients(reader, ids, LENGTHS)
    for _ in range(40):
        expected = after(reader, texts)
        close(logits, expected)
        chosen = logits.argmax(-1)
        assert torch.equal(chosen, expected.argmax(-1))
        texts = [[*text, token] for text, token in zip(texts, chosen.tolist())]
        logits = stream.step(chosen)
    same_memory(
        stream,
        deferred_gradients(
            reader, torch.tensor([text + [0] * (111 - len(text)) for text in texts]), [len(text) for text in texts]
        )[0],
    )


def test_answers_are_what_the_twin_would_write(reader, ragged):
    """Through Comet.answer: prefix and context are read first, then the prompt."""
    with recorded_ids(reader) as recorder:
        reader.answer(ragged, Generation(max_new_tokens=9, min_new_tokens=9))
    for row, ids in enumerate(recorder.ids):
        text = row_ids(ragged, row, "prefix", "context", "prompt").tolist()
        for token in ids[:-1]:  # the end token is barred until the last
            logits = after(reader, [text])[0]
            logits[reader.tokenizer.eos_token_id] = -torch.inf
            assert token == int(logits.argmax())
            text.append(token)
        assert len(ids) == 9


# ---- copies ----


def test_a_fork_changes_nothing_of_its_origin(reader):
    ids = drawn_ids(2, 90)
    for length in (3, 16, 37):
        stream, _ = deferred_gradients(reader, ids, [length, length])
        fork = stream.fork()
        fork.read(ids[:, 40:80], torch.tensor([40, 40]))
        for token in ids[:, 80:].T:
            fork.step(token)
        same_memory(stream, deferred_gradients(reader, ids, [length, length])[0])
        close(stream.step(ids[:, length]), deferred_gradients(reader, ids, [length + 1, length + 1])[1])
        assert fork.filled == [(length + 50 - 1) % C + 1] * 2


# ---- what is kept ----


def kept_columns(stream):
    return 0 if stream.chunk is None else stream.chunk.mask.shape[1]


def test_kept_bytes_are_bounded_while_writing():
    reader = tiny_reader(compose_tiny(["compressor=comet", "backbone.layers=2"])).eval()
    stream, kept = Stream(reader, 1), []
    logits = stream.read(drawn_ids(1, 1), torch.tensor([1]))
    for _ in range(400):
        logits = stream.step(logits.argmax(-1))
        kept.append(stream.bytes)
        assert kept_columns(stream) <= C + K
    assert max(kept[4 * C :]) <= max(kept[: 4 * C])
    per_column = 2 * 2 * 2 * 16 * 4  # layers, keys and values, heads, width, bytes
    memory = 2 * (G + B) * 64 * 4
    assert max(kept) == memory + (G + B + C + K) * per_column + 2 * K * 64 * 4  # and the entries that wait


@pytest.mark.parametrize("lengths", [[150], [150, 140], [150, 9]], ids=str)
@pytest.mark.parametrize("size", [2, 3, 7])
def test_kept_bytes_do_not_depend_on_the_pieces(lengths, size):
    """Pieces are padded to a round width; those pads are dropped again, also where rows are at different places."""
    reader = tiny_reader(compose_tiny(["compressor=comet", "backbone.layers=1"])).eval()
    stream, ids, kept = Stream(reader, len(lengths)), drawn_ids(len(lengths), 150), []
    for start in range(0, 150, size):
        now = torch.tensor([max(min(size, length - start), 0) for length in lengths])
        stream.read(ids[:, start : start + size], now)
        kept.append(kept_columns(stream))
    assert 0 < max(kept) <= C + K + ROUND_TO
