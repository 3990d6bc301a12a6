"""Work in two processes that train together."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import torch

MEETING_THE_BASE = {
    'reads weights': {'type': 'DoRA', 'rank': 2},
    'turns weights': {'type': 'OFT', 'block_size': 8},
    'shares factors': {'type': 'FacTTT', 'rank': 2},
    'trains a block': {'type': 'PartialK', 'num_blocks': 1},
    'adds tokens': {'type': 'VPTDeep', 'drop_rate': 0.0},
}
"""Methods over a base that processes share, by what of it they meet."""


def in_two_processes(work: Callable[..., object], *args: Any) -> None:
    """Run ``work(rank, *args)`` in two processes that gloo joins.

    They are forked, and so have imported what this one has; not where an accelerator
    is, as autograd may have threads for it by now, which a fork has none of.
    """
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    method = 'spawn' if torch.accelerator.is_available() else 'fork'
    torch.multiprocessing.start_processes(
        _joined, (port, work, args), nprocs=2, start_method=method
    )


def _joined(
    rank: int, port: int, work: Callable[..., object], args: tuple[Any, ...]
) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)  # a fork has none of OpenMP's others
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    dist.init_process_group('gloo', rank=rank, world_size=2)
    try:
        work(rank, *args)
    finally:
        dist.destroy_process_group()
