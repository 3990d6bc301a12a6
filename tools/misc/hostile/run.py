"""Running a command in a process of its own, and what became of it."""

from __future__ import annotations

import gc
import hashlib
import importlib
import json
import os
import re
import resource
import runpy
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostile.case import MIB, ROOT, Base, Bench, Call, Case

SECONDS = 20.0
"""After which a command hangs; four times the healthy one where that is longer.

Seconds in which it could have run, but the processors had other work, do not count.
"""
PATIENCE = 900.0
"""The same for what is healthy."""
MEMORY = 2048 * MIB
"""Bytes that an input may cost beyond the healthy one."""

GOOD = ('refused', 'taken', 'told')
BAD = (
    'traceback',
    'silent',
    'good refused',
    'no line',
    'hung',
    'memory',
    'code ran',
    'died',
    'not made',
)
PACKAGES = {
    'mmpretrain': ('models', 'datasets', 'evaluation', 'visualization', 'engine'),
    'mmdet': ('models', 'datasets', 'evaluation', 'visualization', 'engine'),
    'mmseg': ('models', 'datasets', 'evaluation', 'visualization', 'engine'),
}
OURS = ('apis', 'methods', 'backbones', 'models', 'datasets', 'engine', 'evaluation')


@dataclass
class Ended:
    """How a process ended.

    Attributes:
        code: Its exit code; minus the signal that ended it.
        seconds: From its start to its end, without those in which it waited for a
            processor.
        peak: Bytes of memory at most.
        stopped: Why it was stopped from here: ``hung``, ``memory`` or nothing.
    """

    code: int
    seconds: float
    peak: int
    stopped: str = ''


def preload(scopes: Iterable[str]) -> None:
    """Import what commands use, so that a fork starts with it."""
    import torch

    torch.set_num_threads(1)
    for name in OURS:
        importlib.import_module(f'mmpetl.{name}')
    for scope in scopes:
        for part in PACKAGES.get(scope, ()):
            importlib.import_module(f'{scope}.{part}')
    gc.collect()
    gc.freeze()  # what is here already, forks need not look through


def warm(path: Path) -> None:
    """Import what a healthy call has imported besides, which it left in a file."""
    for name in path.read_text().split():
        if name not in sys.modules and not name.startswith('__'):
            with suppress(Exception):  # some can be imported by their parents alone
                importlib.import_module(name)
    gc.collect()
    gc.freeze()


def remember(folder: Path) -> None:
    """Keep what commands ask again and again, and what no input decides.

    A run writes its config six times, and each time yapf lays the text out anew; and it
    asks compilers and drivers for their versions. Both take most of a short run.

    Args:
        folder: Keeps laid out texts, by their digest, from one fork to the next.
    """
    import mmengine.config.config as configs
    import mmengine.runner.runner as runners

    folder.mkdir(parents=True, exist_ok=True)
    plain, facts = configs.FormatCode, runners.collect_env()

    def laid_out(text: str, *args: Any, **kwargs: Any) -> Any:
        said = repr((text, args, kwargs)).encode()
        path = folder / hashlib.sha256(said).hexdigest()
        if path.exists():
            return json.loads(path.read_text())
        made = plain(text, *args, **kwargs)
        with suppress(OSError):  # of a row without room on its disk
            part = path.with_suffix('.part')
            part.write_text(json.dumps(made))
            part.rename(path)
        return made

    configs.FormatCode = laid_out
    runners.collect_env = lambda: dict(facts)


def apart(
    work: Callable[[], object],
    folder: Path,
    most: int | None = None,
    seconds: float = SECONDS,
) -> Ended:
    """Run ``work`` in a fork whose output goes to files of a folder.

    Args:
        work: What runs; its end is that of a program.
        folder: Gets ``out.txt`` and ``err.txt``.
        most: Bytes of memory beyond which it is stopped.
        seconds: After which it is stopped.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    start, waited = time.monotonic(), 0.0
    pid = os.fork()
    if not pid:
        code = 70
        try:
            os.setsid()
            for number, name in ((1, 'out.txt'), (2, 'err.txt')):
                file = os.open(folder / name, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
                os.dup2(file, number)
            # As of a fresh process, whatever this one writes to.
            sys.stdout = open(1, 'w', encoding='utf-8', closefd=False)
            sys.stderr = open(2, 'w', encoding='utf-8', closefd=False)
            code = _as_program(work)
        finally:
            os._exit(code)
    stopped = ''
    while True:
        done, status, used = os.wait4(pid, os.WNOHANG)
        if done:
            break
        waited = max(waited, _waited(pid))
        if time.monotonic() - start - waited > seconds:
            stopped = 'hung'
        elif most is not None and _resident(pid) > most:
            stopped = 'memory'
        if stopped:
            os.killpg(pid, signal.SIGKILL)
            _, status, used = os.wait4(pid, 0)
            break
        time.sleep(0.02)
    took = max(0.0, time.monotonic() - start - waited)
    try:
        os.killpg(pid, signal.SIGKILL)  # loaders' workers that outlive it
    except ProcessLookupError:
        pass
    code = os.waitstatus_to_exitcode(status)
    return Ended(code, took, used.ru_maxrss * 1024, stopped)


def _as_program(work: Callable[[], object]) -> int:
    """The exit code that Python would end with."""
    code: Any = 0
    try:
        work()
    except SystemExit as error:
        code = error.code
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        pass
    return (code or 0) & 0xFF


def _resident(pid: int) -> int:
    try:
        fields = Path(f'/proc/{pid}/statm').read_text().split()
        return int(fields[1]) * os.sysconf('SC_PAGE_SIZE')
    except (OSError, IndexError):
        return 0  # it has just ended


def _waited(pid: int) -> float:
    """Seconds in which a process could have run and had no processor."""
    try:
        return int(Path(f'/proc/{pid}/schedstat').read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0  # it has just ended, or the system does not say


def command(call: Call, folder: Path) -> Callable[[], object]:
    """A call as work for :func:`apart`."""

    def work() -> None:
        os.chdir(folder)
        os.environ.update(call.environ)
        if call.file_bytes is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (call.file_bytes,) * 2)
        script = ROOT / call.tool
        sys.argv = [str(script), *call.argv]
        sys.path[0] = str(script.parent)
        try:
            runpy.run_path(str(script), run_name='__main__')
        finally:
            if call.modules is not None:
                call.modules.write_text('\n'.join(sys.modules))
        if call.after is not None:
            call.after()

    return work


class Stand:
    """Runs rows against the healthy results of their calls.

    Args:
        folder: Scratch, with the healthy things in ``store``.
        bases: Healthy calls by name.
    """

    def __init__(self, folder: Path, bases: dict[str, Base]) -> None:
        self.folder = folder
        self.bases = bases
        self._healthy: dict[str, tuple[str, Ended]] = {}

    def healthy(self, name: str) -> tuple[str, Ended]:
        """Outcome and cost of a healthy call.

        Raises:
            RuntimeError: It fails, so that its rows would say nothing.
        """
        if name not in self._healthy:
            base = self.bases[name]
            bench, ended = self._run(base, None)
            if ended.code or ended.stopped:
                raise RuntimeError(
                    f'the healthy call {name!r} ends with {ended.code} '
                    f'{ended.stopped}:\n{_tail(bench)}'
                )
            outcome = base.outcome(bench, _read(bench, 'out.txt'))
            warm(self.folder / 'modules.txt')
            shutil.rmtree(bench.path)
            self._healthy[name] = outcome, ended
        return self._healthy[name]

    def judge(self, case: Case) -> dict[str, Any]:
        """The row of a case."""
        wanted, healthy = self.healthy(case.base)
        most = healthy.peak + MEMORY
        # On a busy machine the healthy call is slow, too.
        longest = max(SECONDS, 4 * healthy.seconds)
        try:
            bench, ended = self._run(self.bases[case.base], case, most, longest)
        except Exception as error:  # of the row itself; the others go on
            return _row(case, 'not made', f'{type(error).__name__}: {error}')
        if ended.stopped == 'hung':
            # Twice, for the machine may have been busy with something else.
            shutil.rmtree(bench.path)
            bench, ended = self._run(self.bases[case.base], case, most, longest)
        try:
            state, line = verdict(case, self.bases[case.base], bench, ended, wanted)
        finally:
            command_line = Path(bench.call.tool).name
            shutil.rmtree(bench.path, ignore_errors=True)
        more = max(0, ended.peak - healthy.peak) / MIB
        if more > MEMORY / MIB and state in GOOD:
            state = 'memory'
        return _row(case, state, line, command_line, ended, more)

    def _run(
        self,
        base: Base,
        case: Case | None,
        most: int | None = None,
        longest: float = PATIENCE,
    ) -> tuple[Bench, Ended]:
        path = self.folder / 'row'
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        bench = Bench(path, self.folder / 'store')
        bench.call = base.prepare(bench)
        if case is None:
            bench.call.modules = self.folder / 'modules.txt'
        else:
            case.spoil(bench)
        return bench, apart(command(bench.call, path), path, most, longest)


def _row(
    case: Case,
    state: str,
    line: str,
    tool: str = '',
    ended: Ended | None = None,
    more: float = 0,
) -> dict[str, Any]:
    ended = ended or Ended(0, 0.0, 0)
    return {
        'area': case.area,
        'input': case.input,
        'command': tool,
        'state': state,
        'exit': ended.code,
        'line': line,
        'seconds': round(ended.seconds, 2),
        'mib': round(more),
        'ok': state in GOOD,
    }


def verdict(
    case: Case, base: Base, bench: Bench, ended: Ended, wanted: str
) -> tuple[str, str]:
    """What became of a row, and the line that says why.

    Args:
        case: The row.
        base: Its healthy call.
        bench: Its folder, after the call.
        ended: How the call ended.
        wanted: The healthy outcome.
    """
    out, err = _read(bench, 'out.txt'), _read(bench, 'err.txt')
    lines = [x for x in err.splitlines() if re.match(r'(\S+: )?error: ', x)]
    line = _plain(lines[-1], bench) if lines else ''
    if bench.canary.exists():
        return 'code ran', line
    if ended.stopped:
        return ended.stopped, line
    if 'Traceback (most recent call last)' in out + err:
        return 'traceback', _plain(_last(err) or _last(out), bench)
    if ended.code < 0:
        return 'died', f'signal {-ended.code}'
    if ended.code:
        if len(lines) != 1:
            return 'no line', f'{len(lines)} lines; {_plain(_last(err), bench)}'
        return ('good refused' if case.want == 'take' else 'refused'), line
    try:
        found = base.outcome(bench, out)
    except Exception as error:
        found = f'{type(error).__name__}: {error}'
    same = found == wanted
    if case.want == 'take' and (same or case.differs):
        return 'taken', line
    if case.want == 'either' and same:
        return 'taken', line
    if case.says:
        said = re.search(case.says, out + err)
        if said:
            whole = (out + err)[: said.end()].rpartition('\n')[2]
            return 'told', _plain(whole, bench)
    return 'silent', 'the healthy result' if same else 'another result'


def _read(bench: Bench, name: str) -> str:
    path = bench / name
    return path.read_text(encoding='utf-8', errors='replace') if path.exists() else ''


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ''


def _tail(bench: Bench) -> str:
    return (_read(bench, 'out.txt') + _read(bench, 'err.txt'))[-3000:]


def _plain(text: str, bench: Bench) -> str:
    """A line without the folders of this machine, cut to a length."""
    for folder, name in ((bench.path, '.'), (bench.store, 'store'), (ROOT, '')):
        text = text.replace(f'{folder}/', f'{name}/' if name else '')
        text = text.replace(str(folder), name or '.')
    return ' '.join(text.split())[:400]
