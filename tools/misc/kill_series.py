"""Kill runs in many places, let them go on, and compare their ends.

Examples:
    python tools/misc/kill_series.py --out work_dirs/kills
    python tools/misc/kill_series.py --out work_dirs/kills --only GPS 'inside epochs'
    python tools/misc/kill_series.py --out work_dirs/kills --table --write

Every scenario runs once without a kill. Then it is killed by SIGKILL: behind a step,
in a validation, right before and right after a file is renamed to its final name. It
goes on from its folder, and must end with the same weights, optimizer, schedules and
best checkpoint, bit for bit. Results are appended to kills.jsonl in the folder; the
same command goes on with what is left, and --again forgets what did not end equal.
--only and --kills run a part. One end that differs, and the exit code is 1.

Runs are forked from this process, which has imported all that they need, so that a kill
costs the seconds of its steps.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kill_scenarios import (
    DATA,
    MINI,
    ROOT,
    SCENARIOS,
    SUPERNET,
    Scenario,
    run_end,
    train,
)

from mmpetl.core import PETLError

TIMEOUT = 900.0
"""Seconds after which a run counts as one that hangs, on a machine that is busy."""
PAGE = ROOT / 'docs' / 'reliability.md'


@dataclass(frozen=True)
class Kill:
    """Where a run is killed.

    Attributes:
        at: ``step``, ``val``, ``before`` or ``after`` (the renaming of a file).
        number: Which of these, counted from 1.
    """

    at: str
    number: int

    def rank(self, processes: int) -> int:
        """Which of several processes is killed: the first one writes the files."""
        return self.number % processes if self.at in ('step', 'val') else 0

    def __str__(self) -> str:
        said = {
            'none': 'not at all',
            'step': 'behind step',
            'val': 'in validation, batch',
            'before': 'before file',
            'after': 'after file',
        }
        return f'{said[self.at]} {self.number}'


class Counter:
    """Counts what happens in a run, and kills its process where it is told to."""

    def __init__(self, folder: Path, kill: Kill | None) -> None:
        self.folder, self.kill = folder, kill
        self.seen = {'step': 0, 'val': 0, 'before': 0, 'after': 0}

    def count(self, what: str) -> None:
        self.seen[what] += 1
        if self.kill == Kill(what, self.seen[what]):
            os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        """Watch hooks of any run, and files below the folder."""
        from mmengine.runner import Runner

        call, replace = Runner.call_hook, os.replace
        names = {'after_train_iter': 'step', 'after_val_iter': 'val'}

        def call_hook(runner: Any, name: str, **kwargs: Any) -> None:
            call(runner, name, **kwargs)
            if name in names:
                self.count(names[name])

        def counted(source: Any, target: Any, **kwargs: Any) -> None:
            ours = str(target).startswith(f'{self.folder}{os.sep}')
            if ours:
                self.count('before')
            replace(source, target, **kwargs)
            if ours:
                self.count('after')

        Runner.call_hook = call_hook
        os.replace = counted


def places(
    seen: dict[str, int], number: int, at: Sequence[tuple[str, int]] = ()
) -> list[Kill]:
    """Places to kill a run at.

    Args:
        seen: What an unkilled run has counted.
        number: How many.
        at: Places that come first; others are spread over what was counted.
    """
    found = [Kill(*place) for place in at[:number]]
    number -= len(found)
    kinds = [k for k in ('step', 'before', 'after', 'val') if seen[k]]
    kinds = ['step', 'val', 'after', 'before'] if seen['val'] else kinds
    rounds = -(-number // len(kinds))
    for index in range(number):
        kind, turn = kinds[index % len(kinds)], index // len(kinds)
        # Later than the first checkpoint for the most part, and never the last thing.
        share = (turn + 0.55 + 0.1 * (index % len(kinds))) / rounds
        found.append(Kill(kind, min(seen[kind], max(1, round(share * seen[kind])))))
    return found


def in_children(
    scenario: Scenario, folder: Path, resume: bool, kill: Kill | None
) -> tuple[list[int], dict[str, int]]:
    """Run a scenario in as many forked processes as it has.

    Returns:
        How they ended, as of :func:`os.waitstatus_to_exitcode`, and what the first one
        has counted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    pids = []
    for rank in range(scenario.processes):
        # Other processes are killed when the one that is chosen has gone.
        chosen = kill is not None and rank == kill.rank(scenario.processes)
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            _child(scenario, folder, resume, kill if chosen else None, rank, port)
        pids.append(pid)
    ends: dict[int, int] = {}
    deadline = time.monotonic() + TIMEOUT
    while len(ends) < len(pids):
        for pid in pids:
            if pid not in ends:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    ends[pid] = os.waitstatus_to_exitcode(status)
        late = time.monotonic() > deadline
        if late or any(code != 0 for code in ends.values()):
            for pid in pids:
                if pid not in ends:
                    os.kill(pid, signal.SIGKILL)
                    ends[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        time.sleep(0.02)
    path = folder.with_name(f'{folder.name}.seen.json')
    seen = json.loads(path.read_text()) if path.is_file() else {}
    return [ends[pid] for pid in pids], seen


def _child(
    scenario: Scenario,
    folder: Path,
    resume: bool,
    kill: Kill | None,
    rank: int,
    port: int,
) -> None:
    """The life of a forked process; it never returns."""
    code = 1
    try:
        log = os.open(
            folder.with_name(f'{folder.name}.{rank}.log'),
            os.O_WRONLY | os.O_CREAT | os.O_APPEND,
            0o644,
        )
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.setpgid(0, 0)
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(scenario.processes),
            LOCAL_WORLD_SIZE=str(scenario.processes),
            MASTER_ADDR='127.0.0.1',
            MASTER_PORT=str(port),
        )
        counter = Counter(folder, kill)
        counter.install()
        scenario.run(folder, resume)
        if rank == 0:
            path = folder.with_name(f'{folder.name}.seen.json')
            path.write_text(json.dumps(counter.seen))
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        return found.getsockname()[1]


def different(one: Any, other: Any, path: str = '') -> Iterator[str]:
    """Paths at which two ends differ, bit for bit."""
    import torch

    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.dtype != other.dtype or not torch.equal(one, other):
            yield path
    elif isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            if key in one and key in other:
                yield from different(one[key], other[key], f'{path}.{key}'.lstrip('.'))
            else:
                yield f'{path}.{key}'.lstrip('.')
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            yield path
            return
        for number, pair in enumerate(zip(one, other, strict=True)):
            yield from different(*pair, f'{path}.{number}')
    elif one != other:
        yield path


def unkilled(scenario: Scenario, folder: Path) -> dict[str, int]:
    """Run a scenario to its end, unless that is done; what it has counted."""
    done = folder.with_name('whole.done.json')
    if done.is_file():
        return json.loads(done.read_text())
    _clear(folder)
    codes, seen = in_children(scenario, folder, False, None)
    if any(codes):
        raise PETLError(
            f'{scenario.name}: the run without a kill ended with {codes}; see '
            f'{folder}.0.log'
        )
    done.write_text(json.dumps(seen))
    return seen


def kill_once(scenario: Scenario, out: Path, kill: Kill) -> dict[str, Any]:
    """Kill a run, let it go on, and compare; what came of it."""
    folder = out / f'{kill.at}_{kill.number}'
    _clear(folder)
    begun = time.monotonic()
    codes, _ = in_children(scenario, folder, False, kill)
    again = [0]
    wrong: list[str] = []
    found = goes_on_from(folder)
    if -signal.SIGKILL not in codes:
        wrong = [f'it was not killed, but ended with {codes}']
    else:
        again, _ = in_children(scenario, folder, True, None)
        if any(again):
            wrong = [f'going on ended with {again}; see {folder}.0.log']
        else:
            ends = scenario.ends or run_end
            try:
                wrong = list(different(ends(out / 'whole'), ends(folder)))
            except (PETLError, OSError, KeyError) as error:
                wrong = [f'its end cannot be read: {error}']
    result = {
        'scenario': scenario.name,
        'processes': scenario.processes,
        'kill': [kill.at, kill.number],
        **found,
        'equal': not wrong,
        'differs': wrong[:5],
        'seconds': round(time.monotonic() - begun, 1),
    }
    if not wrong:
        _clear(folder)
    return result


def goes_on_from(folder: Path) -> dict[str, Any]:
    """What a killed run goes on from: a file, and what stands open in it."""
    import torch

    from mmpetl.engine.latest import newest_checkpoint

    path, _ = newest_checkpoint(folder)
    if path is None:
        return {'from': None, 'inside': False, 'pending': False}
    content = torch.load(path, map_location='cpu', weights_only=True)
    return {
        'from': path.name,
        'inside': 'epoch_rng' in content,
        'pending': 'gradients' in content,
    }


def _clear(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
    for path in folder.parent.glob(f'{folder.name}.*'):
        path.unlink()


def prepare(out: Path) -> None:
    """Data, the supernet that searches need, and imports that runs share."""
    import mmpretrain  # noqa: F401
    import torch

    import mmpetl.benchmark
    import mmpetl.engine.stopping  # noqa: F401
    from mmpetl import apis
    from mmpetl.apis.run import build_runner
    from mmpetl.datasets.mini import make

    torch.set_num_threads(1)
    os.environ['CUDA_VISIBLE_DEVICES'] = ''
    os.environ['MMPETL_DATA'] = str(out / 'data')
    if not (out / 'data' / 'done').is_file():
        make(out / 'data', names=list(DATA), size='tiny')
        (out / 'data' / 'done').touch()
    # Built here once, so that no forked process imports anything.
    for name in ('digits.py', 'nyud_mt.py'):
        options = {'log_level': 'WARNING', 'model.backbone.method.type': 'LoRA'}
        if name == 'nyud_mt.py':
            options = {'log_level': 'WARNING', 'model.backbone.checkpoint': None}
        made = apis.load_config(MINI / name, options, out / 'warm')
        build_runner(made, check_data=('train',))


def prepare_supernet(out: Path) -> None:
    """Train the supernet that NOAH's search needs."""
    folder = out / 'supernet'
    if (folder / 'epoch_4.pth').is_file():
        return
    made = Scenario('supernet', train(SUPERNET, 'noah_digits_supernet.py', base={}))
    codes, _ = in_children(made, folder, False, None)
    if any(codes):
        raise PETLError(f'the supernet was not trained: {folder}.0.log')


def read(path: Path) -> dict[tuple, dict]:
    """Results on file, by scenario and place; of two of one place the later."""
    done: dict[tuple, dict] = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            result = json.loads(line)
        except ValueError:
            continue  # half a line, of a series that was killed itself
        done[(result['scenario'], *result['kill'])] = result
    return done


def series(
    out: Path, scenarios: list[Scenario], kills: int | None, again: bool = False
) -> list[dict]:
    """Run what is not on file; all results, in order.

    Args:
        out: Folder of the series.
        scenarios: What is run.
        kills: Of each scenario; None for its own number.
        again: Whether what did not end equal is run once more.
    """
    path = out / 'kills.jsonl'
    done = read(path)
    if again:
        done = {key: result for key, result in done.items() if result['equal']}
    results = []
    for scenario in scenarios:
        folder = out / scenario.name.replace(', ', '-').replace(' ', '_')
        folder.mkdir(parents=True, exist_ok=True)
        try:
            if scenario.name == 'NOAH, search':
                prepare_supernet(out)
            seen = unkilled(scenario, folder / 'whole')
        except PETLError as error:
            # The others are run all the same, and nothing counts of this one.
            results.append(not_run(scenario, str(error)))
            print(row(results[-1]), flush=True)
            continue
        wanted = places(seen, kills or scenario.kills, scenario.at)
        for kill in dict.fromkeys(wanted):
            key = (scenario.name, kill.at, kill.number)
            if key not in done:
                done[key] = kill_once(scenario, folder, kill)
                with path.open('a') as file:
                    file.write(json.dumps(done[key]) + '\n')
            results.append(done[key])
            print(row(done[key]), flush=True)
    return results


def not_run(scenario: Scenario, why: str) -> dict[str, Any]:
    """The result of a scenario that does not even run without a kill."""
    return {
        'scenario': scenario.name,
        'processes': scenario.processes,
        'kill': ['none', 0],
        'equal': False,
        'differs': [why],
        'seconds': 0.0,
    }


def row(result: dict[str, Any]) -> str:
    """A line for one kill."""
    said = 'equal' if result['equal'] else f'DIFFERS: {"; ".join(result["differs"])}'
    kill = str(Kill(*result['kill']))
    begun = result.get('from') or '-'
    return f'| {result["scenario"]} | {kill} | {begun} | {said} | {result["seconds"]} |'


def table(results: Sequence[dict[str, Any]]) -> str:
    """Counts by scenario, and their sums."""
    heads = (
        'run',
        'processes',
        'kills',
        'goes on inside an epoch',
        'with gradients pending',
        'equal at the end',
    )
    lines = [
        f'| {" | ".join(heads)} |',
        '| :--- |' + ' ---: |' * (len(heads) - 1),
    ]
    names = dict.fromkeys(result['scenario'] for result in results)
    for name in (*names, None):
        some = [r for r in results if name in (None, r['scenario'])]
        kills = [r for r in some if r['kill'][0] != 'none']
        cells = [
            name or '**all**',
            some[0]['processes'] if name else '',
            len(kills),
            *(sum(r.get(key, False) for r in kills) for key in ('inside', 'pending')),
            sum(r['equal'] for r in kills),
        ]
        lines.append('| ' + ' | '.join(map(str, cells)) + ' |')
    return '\n'.join(lines)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--out', type=Path, default=Path('work_dirs/kills'))
    parser.add_argument('--only', nargs='+', help='names of scenarios, or their begin')
    parser.add_argument('--kills', type=int, help='of each scenario; default: its own')
    parser.add_argument(
        '--again', action='store_true', help='forget kills that did not end equal'
    )
    parser.add_argument('--table', action='store_true', help='run nothing')
    parser.add_argument(
        '--write', action='store_true', help='put the counts into docs/reliability.md'
    )
    parser.add_argument('--list', action='store_true', help='name the scenarios')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from mmpetl.apis.run import cli_errors

    with cli_errors():
        wanted = SCENARIOS
        if args.only:
            wanted = [s for s in wanted if s.name.startswith(tuple(args.only))]
            if not wanted:
                raise PETLError(f'no scenario begins with {args.only[0]!r}; see --list')
        if args.list:
            for scenario in wanted:
                print(f'{scenario.name}: {args.kills or scenario.kills} kills')
            return
        out = args.out.resolve()
        out.mkdir(parents=True, exist_ok=True)
        if args.table:
            names = {scenario.name for scenario in wanted}
            done = read(out / 'kills.jsonl').values()
            results = [result for result in done if result['scenario'] in names]
        else:
            prepare(out)
            print('| run | killed | goes on from | end | seconds |')
            print('| :--- | :--- | :--- | :--- | ---: |')
            results = series(out, wanted, args.kills, args.again)
        if not results:
            raise PETLError(f'{out} holds no results')
        print(f'\n{table(results)}')
        if args.write:
            from update_tables import replace

            text = PAGE.read_text(encoding='utf-8')
            PAGE.write_text(replace(text, 'kills', table(results)), encoding='utf-8')
        equal = sum(result['equal'] for result in results)
        print(f'\n{equal} of {len(results)} ended as a run that was not killed')
        if equal < len(results):
            raise SystemExit(1)


if __name__ == '__main__':
    main()
