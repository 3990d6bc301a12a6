"""Starting the process group on machines with and without GPUs."""

from __future__ import annotations

import atexit
import datetime
import os
import re

import torch
import torch.distributed as dist

# rank, world size, rank on this machine: what each launcher calls them
_NAMES = {
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    'mpi': (
        'OMPI_COMM_WORLD_RANK',
        'OMPI_COMM_WORLD_SIZE',
        'OMPI_COMM_WORLD_LOCAL_RANK',
    ),
}


def _read(launcher: str) -> tuple[int, int, int]:
    """(rank, world size, local rank) from the launcher's environment."""
    missing = [name for name in _NAMES[launcher] if name not in os.environ]
    if missing:
        raise ValueError(
            f'launcher {launcher!r} was asked for, but the environment lacks '
            f'{", ".join(missing)}; start with the launcher (mmpetl train --gpus N), '
            'or use --launcher none for a single process'
        )
    rank, world_size, local_rank = (int(os.environ[n]) for n in _NAMES[launcher])
    return rank, world_size, local_rank


def _first_host(nodelist: str) -> str:
    """First host of a slurm node list: ``node[03-05,9],x1`` gives ``node03``."""
    match = re.match(r'([^\[,]+)(?:\[([^\],-]+)[^\]]*\]([^,]*))?', nodelist)
    if match is None:
        raise ValueError(f'cannot read a host from SLURM_NODELIST={nodelist!r}')
    return ''.join(part or '' for part in match.groups())


def init_dist_any(launcher: str, timeout_s: float | None = None) -> str | None:
    """Start the process group so that MMEngine's Runner finds it running.

    MMEngine's own start selects a GPU unasked. Here a machine without one uses gloo;
    with GPUs, nccl, after checking that this process has one. Call it before the
    Runner is built; a process group that runs already is left as it is.

    Args:
        launcher: ``none``, ``pytorch`` (torchrun), ``slurm`` or ``mpi``.
        timeout_s: How long a collective may wait, in seconds; torch's default if None.

    Returns:
        The backend in use, or None without a launcher.

    Raises:
        ValueError: The launcher is unknown, its variables are missing, or there are
            more processes on this machine than GPUs.
    """
    if launcher == 'none':
        return None
    if launcher not in _NAMES:
        known = ', '.join(['none', *_NAMES])
        raise ValueError(f'unknown launcher {launcher!r}; there are {known}')
    if dist.is_initialized():
        return dist.get_backend()

    rank, world_size, local_rank = _read(launcher)
    backend = 'gloo'
    if torch.cuda.is_available():
        backend = 'nccl'
        if local_rank >= torch.cuda.device_count():
            raise ValueError(
                f'process {local_rank} of this machine needs GPU {local_rank}, but '
                f'there are {torch.cuda.device_count()}; start fewer processes, or '
                "set CUDA_VISIBLE_DEVICES='' to train on CPU"
            )
        torch.cuda.set_device(local_rank)

    if launcher == 'slurm' and 'MASTER_ADDR' not in os.environ:
        nodelist = os.environ.get('SLURM_NODELIST', '127.0.0.1')
        os.environ['MASTER_ADDR'] = _first_host(nodelist)
    os.environ.setdefault('MASTER_ADDR', '127.0.0.1')
    os.environ.setdefault('MASTER_PORT', '29500')
    # MMEngine and torch read these names, whatever started the processes.
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(local_rank)
    )
    options = {}
    if timeout_s is not None:
        options['timeout'] = datetime.timedelta(seconds=timeout_s)
    dist.init_process_group(backend, rank=rank, world_size=world_size, **options)
    if backend == 'gloo':
        # Its threads must have ended before the interpreter unloads them; otherwise the
        # process aborts now and then after its work is done.
        atexit.register(_close)
    return backend


def _close() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
