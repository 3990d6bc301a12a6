"""Windows against a loop over every token."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from mmpetl.core import (
    from_windows,
    relative_index,
    shift_mask,
    softmax_attention,
    split_heads,
    to_windows,
)

GRIDS = [
    ((4, 6), (2, 3), (0, 0)),
    ((5, 7), (2, 3), (0, 0)),
    ((5, 7), (4, 4), (2, 2)),
    ((4, 4), (4, 4), (2, 2)),
    ((3, 3), (4, 4), (2, 2)),
    ((2, 5, 6), (2, 4, 4), (0, 2, 2)),
    ((3, 5, 4), (2, 4, 4), (1, 2, 0)),
]


def _place(at: tuple, full: tuple, window: tuple, shift: tuple) -> tuple[int, int]:
    """Window and row of a cell, by the definition: roll, then cut."""
    moved = [(a - s) % f for a, s, f in zip(at, shift, full, strict=True)]
    number = row = 0
    for m, f, w in zip(moved, full, window, strict=True):
        number = number * (f // w) + m // w
        row = row * w + m % w
    return number, row


def _full(grid: tuple, window: tuple) -> tuple:
    return tuple(-(-g // w) * w for g, w in zip(grid, window, strict=True))


@pytest.mark.parametrize(('grid', 'window', 'shift'), GRIDS)
def test_windows_hold_the_cells_they_should(grid, window, shift) -> None:
    cells = list(product(*(range(g) for g in grid)))
    x = torch.arange(2 * len(cells) * 3).reshape(2, len(cells), 3).float() + 1
    windows = to_windows(x, grid, window, shift)
    full = _full(grid, window)
    expected = torch.zeros_like(windows)
    per_image = len(windows) // 2
    for b, (i, at) in product(range(2), enumerate(cells)):
        number, row = _place(at, full, window, shift)
        expected[b * per_image + number, row] = x[b, i]
    assert torch.equal(windows, expected)
    assert torch.equal(from_windows(windows, grid, window, shift), x)


@pytest.mark.parametrize(('grid', 'window', 'shift'), GRIDS)
def test_the_mask_parts_what_the_roll_brought_together(grid, window, shift) -> None:
    mask = shift_mask(grid, window, shift, torch.device('cpu'))
    if not any(shift):
        assert mask is None
        return
    full = _full(grid, window)
    cells = list(product(*(range(f) for f in full)))
    where = {_place(at, full, window, shift): at for at in cells}

    def wrapped(at: tuple) -> tuple:
        # A cell in the first `shift` rows was rolled to the far end of its axis.
        return tuple(a < s for a, s in zip(at, shift, strict=True))

    assert mask.shape[1:] == (len(mask[0]), len(mask[0]))
    for number in range(len(mask)):
        for i, j in product(range(mask.shape[1]), repeat=2):
            a, b = where[number, i], where[number, j]
            apart = wrapped(a) != wrapped(b)
            assert mask[number, i, j].item() == (-100.0 if apart else 0.0)


@pytest.mark.parametrize('window', [(4,), (2, 3), (4, 4), (2, 3, 4)])
def test_relative_positions_are_numbered_row_major(window) -> None:
    cells = list(product(*(range(w) for w in window)))
    index = relative_index(window)
    for (i, a), (j, b) in product(enumerate(cells), repeat=2):
        expected = 0
        for p, q, w in zip(a, b, window, strict=True):
            expected = expected * (2 * w - 1) + (p - q + w - 1)
        assert index[i, j].item() == expected
    count = 1
    for w in window:
        count *= 2 * w - 1
    assert index.min() == 0
    assert index.max() == count - 1


@pytest.mark.parametrize('extra', [(0, 0), (2, 2), (0, 3)], ids=['no', 'both', 'keys'])
@pytest.mark.parametrize('masked', [False, True])
def test_attention_is_the_formula(extra: tuple[int, int], masked: bool) -> None:
    heads, n, d, windows, images = 2, 4, 3, 3, 2
    more_q, more_k = extra
    q = torch.randn(images * windows, heads, n + more_q, d).double()
    k, v = torch.randn(2, images * windows, heads, n + more_k, d).double()
    bias = torch.randn(heads, n, n).double()
    mask = torch.randn(windows, n, n).double() if masked else None
    ours = softmax_attention(q, k, v, bias, mask)
    for b in range(images * windows):
        for h in range(heads):
            logits = q[b, h] @ k[b, h].T / d**0.5
            logits[more_q:, more_k:] += bias[h]
            if masked:
                logits[more_q:, more_k:] += mask[b % windows]
            expected = logits.softmax(-1) @ v[b, h]
            torch.testing.assert_close(ours[b, h], expected, rtol=1e-10, atol=1e-12)


def test_heads_are_contiguous_slices() -> None:
    x = torch.randn(2, 5, 12)
    heads = split_heads(x, 3)
    for h in range(3):
        assert torch.equal(heads[:, h], x[..., 4 * h : 4 * h + 4])
