"""Two processes stay in step: the same tensors after steps on different data."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
from torch import nn

# One of a family each: what runs inside of blocks, and what runs beside them.
METHODS = [
    {'type': 'Adapter', 'style': 'houlsby', 'hidden_dims': 4},
    {'type': 'LST', 'reduction': 4},
]


def _work(rank: int, port: int, configs: list[dict], folder: str) -> None:
    """Two steps per method in one of two processes; what it ends with goes to disk."""
    import torch.distributed as dist
    from tiny import Tuned, base, images

    from mmpetl.core import delta_state, inject

    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    dist.init_process_group('gloo', rank=rank, world_size=2)
    try:
        for i, config in enumerate(configs):
            x = images('timm_vit', batch=4)
            backbone = base('timm_vit')
            torch.manual_seed(4)
            model = Tuned(inject(backbone, config), x)
            model.train()
            wrapped = nn.parallel.DistributedDataParallel(
                model, find_unused_parameters=False
            )
            params = [p for p in model.parameters() if p.requires_grad]
            optimizer = torch.optim.SGD(params, lr=0.1)
            for _ in range(2):
                optimizer.zero_grad()
                ys = wrapped(x[2 * rank : 2 * rank + 2])
                sum((y**2).mean() for y in ys).backward()
                optimizer.step()
            torch.save(delta_state(model), Path(folder) / f'{i}-{rank}.pth')
    finally:
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def _alone(config: dict) -> dict[str, torch.Tensor]:
    """The same two steps in one process that sees both halves of the data."""
    from tiny import Tuned, base, images

    from mmpetl.core import delta_state, inject

    x = images('timm_vit', batch=4)
    backbone = base('timm_vit')
    torch.manual_seed(4)
    model = Tuned(inject(backbone, config), x)
    model.train()
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(params, lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        sum((y**2).mean() for y in model(x)).backward()
        optimizer.step()
    return delta_state(model)


@pytest.mark.skipif(not torch.distributed.is_available(), reason='torch has no gloo')
def test_two_processes_end_with_the_tensors_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(
        _work, args=(_free_port(), METHODS, str(tmp_path)), nprocs=2
    )
    for i, config in enumerate(METHODS):
        first, second = (
            torch.load(tmp_path / f'{i}-{rank}.pth', weights_only=True)
            for rank in range(2)
        )
        assert first.keys() == second.keys()
        for key, value in first.items():
            assert torch.equal(value, second[key]), key
        for key, value in _alone(config).items():
            torch.testing.assert_close(first[key], value, rtol=1e-4, atol=1e-6)
