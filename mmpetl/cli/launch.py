"""One command in several processes, one for each GPU."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn


def torchrun(count: int, command: str, argv: Sequence[str]) -> list[str]:
    """What starts ``mmpetl <command>`` in ``count`` processes of this machine.

    The variables are those of ``tools/dist_train.sh``: on several machines ``NNODES``,
    ``NODE_RANK``, ``MASTER_ADDR`` and ``PORT`` are set on each.
    """
    environ = os.environ.get
    return [
        *(sys.executable, '-m', 'torch.distributed.run'),
        f'--nnodes={environ("NNODES", "1")}',
        f'--node_rank={environ("NODE_RANK", "0")}',
        f'--master_addr={environ("MASTER_ADDR", "127.0.0.1")}',
        f'--master_port={environ("PORT", "29500")}',
        f'--nproc_per_node={count}',
        *('-m', 'mmpetl', command, *argv, '--launcher', 'pytorch'),
    ]


def in_processes(count: int, command: str, argv: Sequence[str]) -> NoReturn:
    """Go on as ``count`` processes, which take the place of this one.

    Without a GPU they talk through gloo.
    """
    # Each gets its share of the cores, where the user has not decided.
    share = -(-(os.cpu_count() or 1) // count)
    os.environ.setdefault('OMP_NUM_THREADS', str(share))
    sys.stdout.flush()
    os.execv(sys.executable, torchrun(count, command, argv))
