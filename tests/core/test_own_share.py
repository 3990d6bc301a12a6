"""What a process holds of a tensor that several share."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmpetl.core.injection import own_share


@pytest.mark.parametrize(('rank', 'part'), [(0, [0, 1, 2]), (1, [3, 4, 9])])
def test_a_part_is_read_from_the_whole_where_that_is_there(
    rank: int, part: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed hangs a part at a parameter, which passes do not read then."""
    monkeypatch.setattr(torch.distributed, 'get_rank', lambda: rank)
    param = nn.Parameter(torch.arange(5.0))
    assert own_share(param) is param
    param.ds_tensor = torch.full((3,), 9.0)  # the last one is filled up
    assert own_share(param).tolist() == part
    param.data = torch.empty(0)
    assert own_share(param).tolist() == [9, 9, 9]
