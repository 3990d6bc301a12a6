"""One of the processes of a job; :mod:`mmpetl.benchmark.group` begins it."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path

from mmpetl.benchmark.records import Job
from mmpetl.core import PETLError


def main() -> None:
    """What a member does: train, and note what went wrong."""
    told = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_follow_leader, daemon=True).start()
    # The one at the keyboard is the runner, which ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    rank, code = int(os.environ['RANK']), 0
    try:
        _train(Job(**told['job']), Path(told['folder']))
    except Exception as error:
        traceback.print_exc()
        ours = isinstance(error, PETLError)
        text = str(error) if ours else f'{type(error).__name__}: {error}'
        part = Path(told['notes'], f'{rank}.part')
        part.write_text(json.dumps({'ours': ours, 'text': text}), encoding='utf-8')
        part.replace(part.with_suffix('.json'))
        code = 1
    except KeyboardInterrupt as error:
        print(f'process {rank}: {error}', file=sys.stderr)
        code = getattr(error, 'code', 130)
    sys.stdout.flush()
    sys.stderr.flush()
    # Others may wait for this process in vain: nothing here is worth a clean end.
    os._exit(code)


def _train(job: Job, folder: Path) -> None:
    import torch

    from mmpetl.benchmark import run_facts
    from mmpetl.benchmark.collect import LOG
    from mmpetl.benchmark.job import prepare, train_only
    from mmpetl.benchmark.job_config import compose_job
    from mmpetl.compat import init_dist_any
    from mmpetl.engine.hooks.run_log import RunLogHook

    torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))
    init_dist_any('pytorch')
    resting = run_facts.release_peak()
    config = compose_job(job, folder)
    config.work_dir = str(folder)
    config = prepare(config, folder)
    log = RunLogHook(str(folder / LOG))
    train_only(job, config, folder, [log], resting, launcher='pytorch')


def _follow_leader() -> None:
    """End with the leader."""
    while sys.stdin.buffer.read(1):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == '__main__':
    main()
