"""One dense sequence from padded parts: order, positions, padding, and the way back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from breviary.memory.assembly import ROUND_TO, Layout, take_columns, token_index

MASKS = [
    torch.tensor([[1, 1, 0], [0, 1, 0]]).bool(),
    torch.tensor([[0, 1], [0, 0]]).bool(),
    torch.tensor([[1, 0], [1, 1]]).bool(),
]
IDS = [torch.tensor([[1, 2, 9], [9, 3, 9]]), torch.tensor([[9, 4], [9, 9]]), torch.tensor([[5, 9], [6, 7]])]


def test_right_padded():
    layout = Layout.of(MASKS)
    placed, rest = layout.pack(IDS).split([7, ROUND_TO - 7], 1)
    assert placed.tolist() == [[1, 2, 4, 5, 0, 0, 0], [3, 6, 7, 0, 0, 0, 0]] and not rest.any()
    assert layout.mask[:, :7].tolist() == [[True] * 4 + [False] * 3, [True] * 3 + [False] * 4]
    assert layout.mask.sum() == 7
    assert layout.positions()[0, :4].tolist() == [0, 1, 2, 3]
    assert layout.widths == (3, 2, 2)


@pytest.mark.parametrize("width", [1, ROUND_TO - 1, ROUND_TO, ROUND_TO + 1, 5 * ROUND_TO])
def test_widths_are_rounded_up(width):
    layout = Layout.of([torch.ones(2, width, dtype=torch.bool)])
    assert layout.mask.shape[1] % ROUND_TO == 0 and 0 <= layout.mask.shape[1] - width < ROUND_TO
    assert layout.mask.sum() == 2 * width


def test_parts_of_other_widths_are_our_own_mistake():
    with pytest.raises(AssertionError, match=r"parts of widths \(3, 2\), layout of \(3, 2, 2\)"):
        Layout.of(MASKS).pack(IDS[:2])


def test_states_are_placed_as_ids_are():
    layout = Layout.of(MASKS)
    states = [ids[..., None].expand(-1, -1, 4).float() for ids in IDS]
    assert torch.equal(layout.pack(states)[..., 2], layout.pack(IDS).float())


def test_padding_holds_zeros_whatever_the_parts_hold():
    states = [torch.full((*mask.shape, 2), torch.nan).masked_fill(mask[..., None], 1.0) for mask in MASKS]
    assert torch.equal(Layout.of(MASKS).pack(states)[..., 0].bool(), Layout.of(MASKS).mask)


@pytest.mark.parametrize("round_to, width", [(1, 0), (ROUND_TO, ROUND_TO)])
def test_parts_of_width_zero(round_to, width):
    """Layers process at least one column; a sequence that is packed again may have none."""
    layout = Layout.of([torch.zeros(2, 0, dtype=torch.bool)] * 2, round_to)
    packed = layout.pack([torch.zeros(2, 0, dtype=torch.long)] * 2)
    assert packed.shape == layout.positions().shape == (2, width)
    assert not layout.mask.any() and layout.unpack(packed[..., None], 1).shape == (2, 0, 1)


masks = st.lists(st.integers(0, 5), min_size=1, max_size=4).flatmap(
    lambda widths: st.tuples(
        *[st.lists(st.lists(st.booleans(), min_size=w, max_size=w), min_size=3, max_size=3) for w in widths]
    )
)


@settings(max_examples=60, deadline=None)
@given(masks)
def test_every_token_is_placed_once_and_found_again(rows):
    parts = [torch.tensor(part, dtype=torch.bool).view(3, -1) for part in rows]
    values = [torch.arange(part.numel()).view(part.shape) + 100 * (i + 1) for i, part in enumerate(parts)]
    layout = Layout.of(parts)
    placed = layout.pack(values)
    for b in range(3):
        real = [value for ids, mask in zip(values, parts) for value in ids[b][mask[b]].tolist()]
        assert placed[b][layout.mask[b]].tolist() == real
        assert layout.positions()[b][layout.mask[b]].tolist() == list(range(len(real)))
        valid = layout.mask[b].long()
        step = valid.diff()
        assert (step <= 0).all()  # one block of padding, at the end
    for i, (ids, mask) in enumerate(zip(values, parts)):
        assert torch.equal(placed.gather(1, layout.columns_of(i))[mask], ids[mask])
        assert torch.equal(layout.unpack(placed[..., None], i)[..., 0][mask], ids[mask])


def test_taking_passes_gradients_to_the_taken_rows_only():
    sequence = torch.zeros(1, 4, 2, requires_grad=True)
    take_columns(sequence, torch.tensor([[3, 1]])).sum().backward()
    assert sequence.grad[0, :, 0].tolist() == [0, 1, 0, 1]


def test_ranks_count_real_tokens():
    assert token_index(torch.tensor([[0, 1, 1, 0, 1], [0, 0, 0, 0, 0]]).bool()).tolist() == [[0, 0, 1, 1, 2], [0] * 5]
