"""What the benchmark's tools have in common on the command line."""

from __future__ import annotations

import argparse

from mmpetl.benchmark.executors import NAMES, Executor, make_executor

TAKES = {
    'local': ('workers', 'per_gpu', 'memory_gb', 'pack', 'reuse'),
    'ray': ('workers', 'per_gpu', 'address'),
    'slurm': ('workers', 'slurm'),
}
"""Options that each executor takes."""


def add_executor_args(parser: argparse.ArgumentParser) -> None:
    """Where jobs run."""
    where = parser.add_argument_group('where jobs run')
    where.add_argument(
        '--executor', default='local', help=f'{", ".join(NAMES)}; default: local'
    )
    where.add_argument('--workers', type=int, help='jobs at a time')
    where.add_argument('--per-gpu', type=int, help='jobs that share a GPU (local, ray)')
    where.add_argument('--memory-gb', type=float, help='GPU memory of a job (local)')
    where.add_argument(
        '--pack',
        action='store_true',
        default=None,
        help='share GPUs by the memory that such jobs were measured to take (local)',
    )
    where.add_argument(
        '--reuse', type=int, help='jobs that a worker process does (local; default: 1)'
    )
    where.add_argument('--address', help='of a Ray cluster; default: RAY_ADDRESS')
    where.add_argument(
        '--slurm',
        nargs='+',
        metavar='KEY=VALUE',
        help='for submitit: slurm_partition=gpu timeout_min=240 cluster=local ...',
    )
    where.add_argument('--retries', type=int, default=1, help='of a failed job')


def executor_of(args: argparse.Namespace) -> Executor:
    """The executor that was asked for.

    Raises:
        PETLError: There is none of that name, or it does not take an option given.
    """
    from mmpetl.core import PETLError

    names = TAKES.get(args.executor, ())
    every = ('workers', 'per_gpu', 'memory_gb', 'pack', 'reuse', 'address', 'slurm')
    given = {n: getattr(args, n) for n in every if getattr(args, n) is not None}
    for name in given:
        if args.executor in NAMES and name not in names:
            flag = '--' + name.replace('_', '-')
            raise PETLError(f'the executor {args.executor} takes no {flag}')
    if 'slurm' in given:
        from mmpetl.benchmark.executors.slurm import parse_settings

        given |= parse_settings(given.pop('slurm'))
    return make_executor(args.executor, **given)
