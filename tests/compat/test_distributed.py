"""The process group, started on a machine without GPUs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from mmpetl.compat import distributed
from mmpetl.compat.distributed import init_dist_any

ROOT = Path(__file__).resolve().parents[2]
WORKER = """
    import torch, mmpetl
    from mmpetl.compat import init_dist_any
    backend = init_dist_any({launcher!r}, timeout_s=60)
    assert init_dist_any({launcher!r}) == backend
    from mmengine.dist import get_world_size, all_reduce, is_distributed
    assert is_distributed()
    total = torch.tensor([float(torch.distributed.get_rank() + 1)])
    all_reduce(total)
    print(backend, get_world_size(), total.item())
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize('launcher', ['pytorch', 'slurm', 'mpi'])
def test_two_processes_meet_over_gloo(launcher):
    names = distributed._NAMES[launcher]
    port = free_port()
    workers = []
    for rank in range(2):
        env = {k: v for k, v in os.environ.items() if k not in ('RANK', 'WORLD_SIZE')}
        env.update(zip(names, (str(rank), '2', str(rank)), strict=True))
        env.update(
            CUDA_VISIBLE_DEVICES='',
            MASTER_PORT=str(port),
            OMP_NUM_THREADS='1',
            PYTHONPATH=str(ROOT),
        )
        if launcher == 'slurm':
            env['SLURM_NODELIST'] = '127.0.0.1'
        code = textwrap.dedent(WORKER.format(launcher=launcher))
        workers.append(
            subprocess.Popen(
                [sys.executable, '-c', code],
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for worker in workers:
        out, err = worker.communicate(timeout=180)
        assert worker.returncode == 0, err[-2000:]
        assert out.split() == ['gloo', '2', '3.0']


def test_without_a_launcher_nothing_starts():
    assert init_dist_any('none') is None
    assert not torch.distributed.is_initialized()


def test_unknown_launcher_names_the_known_ones():
    with pytest.raises(ValueError, match="'k8s'; there are none, pytorch, slurm, mpi"):
        init_dist_any('k8s')


def test_missing_variables_are_named(monkeypatch):
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('RANK', '0')
    with pytest.raises(ValueError, match='lacks WORLD_SIZE, LOCAL_RANK'):
        init_dist_any('pytorch')


def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    for name, value in (('RANK', '3'), ('WORLD_SIZE', '4'), ('LOCAL_RANK', '3')):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    with pytest.raises(ValueError, match='needs GPU 3, but there are 2'):
        init_dist_any('pytorch')


@pytest.mark.parametrize(
    ('nodelist', 'host'),
    [
        ('node1', 'node1'),
        ('node1,node2', 'node1'),
        ('gpu[03-05,9]', 'gpu03'),
        ('gpu[7,9],cpu1', 'gpu7'),
        ('rack[1-2]-ib', 'rack1-ib'),
    ],
)
def test_first_host_of_a_slurm_list(nodelist, host):
    assert distributed._first_host(nodelist) == host
