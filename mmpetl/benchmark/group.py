"""One job in several processes of one machine, and what begins and ends them.

The process that holds the job, its leader, trains nothing. It begins the members, hands
on what asks it to stop, and ends them when one fails. They are what torchrun would
begin: gloo on CPUs, nccl on GPUs, one GPU for each. The leader then reads the test set
alone, so that a reading has each sample once, in order, whatever trained.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from mmpetl.benchmark.records import Job
from mmpetl.core import PETLError

POLL_S = 0.1
GRACE_S = 10.0
"""How long members may go on after one has failed, or after they were asked to stop."""


def train_in_processes(job: Job, folder: Path, processes: int) -> None:
    """Train a job in so many processes, from its newest checkpoint on.

    Raises:
        PETLError: A member failed with one.
        RuntimeError: A member failed otherwise, or died.
        mmpetl.engine.stopping.Stopped: A signal came, and the members have ended.
    """
    from mmpetl.engine.stopping import stop_on_signals

    with (
        tempfile.TemporaryDirectory() as notes,
        stop_on_signals(flag='') as stop,
        _members(job, folder, processes, Path(notes)) as members,
    ):
        # They are behind a step when they have ended.
        stop.stepping = True
        asked = False
        while any(code is None for code in _codes(members)):
            if stop.number is not None and not asked:
                asked = True
                for member in members:
                    member.send_signal(signal.SIGTERM)
            if not asked and any(_codes(members)):
                break
            time.sleep(POLL_S)
        if stop.number is not None:
            stop.leave('its processes were asked to save')
        failed = [i for i, code in enumerate(_codes(members)) if code]
        if failed:
            _raise(failed[0], members, Path(notes))


def _codes(members: Sequence[subprocess.Popen]) -> list[int | None]:
    return [member.poll() for member in members]


@contextlib.contextmanager
def _members(
    job: Job, folder: Path, processes: int, notes: Path
) -> Iterator[list[subprocess.Popen]]:
    """Begin the members; end those that are left."""
    import torch

    env = {
        **os.environ,
        'MASTER_ADDR': '127.0.0.1',
        'MASTER_PORT': str(_free_port()),
        'WORLD_SIZE': str(processes),
        'OMP_NUM_THREADS': str(torch.get_num_threads()),
    }
    members: list[subprocess.Popen] = []
    told = json.dumps({'job': asdict(job), 'folder': str(folder), 'notes': str(notes)})
    try:
        with open(folder / 'console.log', 'ab') as console:
            for rank in range(processes):
                number = str(rank)
                member = subprocess.Popen(
                    [sys.executable, '-m', 'mmpetl.benchmark.member'],
                    stdin=subprocess.PIPE,
                    stdout=console,
                    stderr=console,
                    env={**env, 'RANK': number, 'LOCAL_RANK': number},
                )
                members.append(member)
                # Left open: its end tells a member that the leader is gone.
                member.stdin.write(told.encode() + b'\n')
                member.stdin.flush()
        yield members
    finally:
        _end(members)


def _end(members: Sequence[subprocess.Popen]) -> None:
    for member in members:
        if member.poll() is None:
            member.terminate()
    deadline = time.monotonic() + GRACE_S
    for member in members:
        try:
            member.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            member.kill()
            member.wait()
        with contextlib.suppress(OSError):
            member.stdin.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def _raise(rank: int, members: Sequence[subprocess.Popen], notes: Path) -> None:
    """Raise what a member has noted; that of the first who has, if it has not."""
    found = [notes / f'{i}.json' for i in (rank, *range(len(members)))]
    note = next((path for path in found if path.is_file()), None)
    if note is None:
        code = members[rank].poll()
        raise RuntimeError(f'process {rank} of {len(members)} ended with code {code}')
    said = json.loads(note.read_text(encoding='utf-8'))
    if said['ours']:
        raise PETLError(said['text'])
    raise RuntimeError(f'process {note.stem} of {len(members)}: {said["text"]}')
