"""Fuzz every reader of files and data; count tries, print findings.

Examples:
    python tools/misc/fuzz.py --seconds 60
    python tools/misc/fuzz.py --only record plan --tries 1000000
    python tools/misc/fuzz.py --engine atheris --only 'torch zip' --tries 100000

Each reader is tried by one or two engines:

- structure: hypothesis edits healthy data at a place of its own choice (another value
  or type, a key less, a key more, a list longer, deeper), or draws data from nothing;
- bytes: seeded edits of healthy files (bits, bytes, cuts, copies, numbers at the ends
  of their ranges, words of the format).

A try is good where the reader gives a result, a PETLError or a FileNotFoundError. A
finding is anything else: another exception, more than --limit seconds, more memory than
--memory beyond what the process had, a process that dies. Findings of one exception at
one line are one. Their inputs are kept in --keep. One finding, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault('OMP_NUM_THREADS', '1')
sys.path.insert(0, str(Path(__file__).parent))

from hostile.targets import Target, all_targets  # noqa: E402

from mmpetl.core import PETLError  # noqa: E402

ENGINES = ('structure', 'bytes')
GOOD = (PETLError, FileNotFoundError)
LONGEST = 1 << 20
"""Bytes of an input at most."""


class TooSlow(BaseException):
    """A try that has taken longer than it may."""


@dataclass
class Report:
    """What has become of the tries of one reader.

    Attributes:
        target: Its name.
        engine: What made the inputs.
        tries: How many.
        refused: How many of them ended in a PETLError.
        findings: Place and exception, to how often and the first message.
        seconds: Time spent.
    """

    target: str
    engine: str
    tries: int = 0
    refused: int = 0
    findings: dict[str, list[Any]] = field(default_factory=dict)
    seconds: float = 0.0


class Try:
    """Calls a reader, and notes what is no good end.

    Args:
        target: The reader.
        engine: What makes the inputs.
        limit: Seconds of a try.
        keep: Folder for inputs of findings, or None.
        last: Gets each input before it is tried, for a process that dies.
    """

    def __init__(
        self,
        target: Target,
        engine: str,
        limit: float,
        keep: Path | None,
        last: mmap.mmap | None = None,
    ) -> None:
        self.target = target
        self.report = Report(target.name, engine)
        self.limit = limit
        self.keep = keep
        self.last = last
        self.folder = Path(tempfile.mkdtemp(prefix='fuzz-'))
        self.before = signal.signal(signal.SIGALRM, _too_slow)

    def bytes(self, data: bytes) -> None:
        """Try a file of these bytes."""
        path = self.folder / self.target.file
        for other in self.folder.iterdir():
            if other.is_file():
                other.unlink()
        path.write_bytes(data)
        self._call(lambda: self.target.read(path), data)

    def value(self, value: Any) -> None:
        """Try data."""
        if self.target.call is None:
            self.bytes(json.dumps(value).encode('utf-8', 'surrogatepass'))
        else:
            call = self.target.call
            self._call(lambda: call(value), repr(value).encode('utf-8', 'replace'))

    def _call(self, work: Callable[[], Any], data: bytes) -> None:
        if self.last is not None:
            self.last.seek(0)
            self.last.write(struct.pack('<Q', len(data)) + data[:LONGEST])
        self.report.tries += 1
        signal.setitimer(signal.ITIMER_REAL, self.limit)
        try:
            work()
        except GOOD:
            self.report.refused += 1
        except TooSlow:
            self._note('TooSlow', f'more than {self.limit} s', data)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            frames = traceback.extract_tb(error.__traceback__)
            ours = [f for f in frames if f'{os.sep}mmpetl{os.sep}' in f.filename]
            where = (ours or frames)[-1]
            place = f'{Path(where.filename).name}:{where.lineno}'
            self._note(f'{type(error).__name__} at {place}', str(error), data)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _note(self, kind: str, message: str, data: bytes) -> None:
        first = ' '.join(message.split())[:160]
        self.report.findings.setdefault(kind, [0, first])[0] += 1
        if self.keep is not None and self.report.findings[kind][0] == 1:
            self.keep.mkdir(parents=True, exist_ok=True)
            digest = hashlib.sha256(data).hexdigest()[:12]
            name = f'{self.target.name.replace(" ", "_")}-{digest}'
            (self.keep / name).write_bytes(data)

    def close(self) -> None:
        """Forget the scratch folder, and give the alarm back."""
        signal.signal(signal.SIGALRM, self.before)
        shutil.rmtree(self.folder, ignore_errors=True)


def _too_slow(*_: Any) -> None:
    raise TooSlow


# --------------------------------------------------------------------------- structure

ODD = (
    None,
    True,
    False,
    0,
    -1,
    1.5,
    2**31,
    2**63,
    10**400,
    float('nan'),
    float('inf'),
    '',
    '²',
    '３',
    '\0',
    '\ud800',
    'x' * 5000,
    '../../x',
    'os.system',
    [],
    {},
    [[]],
    {'a': {}},
)
"""Values that readers meet seldom."""


LETTERS = (
    'abx019.,:;*?!-+_/\\|@#$%&<>()[]{}"\' \t\n\r\0\x1b\x85\u2028²３é\U0001f426\ud800'
)
"""What texts are made of: drawing from all of Unicode takes seconds to begin with."""


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Paths of all nodes of data."""
    yield path
    items = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list | tuple):
        items = enumerate(value)
    for key, child in items:
        yield from places(child, (*path, key))


def edited(value: Any, path: tuple, change: Callable[[Any], Any]) -> Any:
    """Data with one node changed; what is not on the way is shared."""
    if not path:
        return change(value)
    head, *rest = path
    if isinstance(value, dict):
        return {
            k: edited(v, tuple(rest), change) if k == head else v
            for k, v in value.items()
        }
    return [
        edited(v, tuple(rest), change) if i == head else v for i, v in enumerate(value)
    ]


def data_of(target: Target) -> Any:
    """A hypothesis strategy of data for a reader."""
    from hypothesis import strategies as st

    leaves = st.one_of(
        st.sampled_from(ODD),
        st.integers(),
        st.floats(),
        st.text(LETTERS, max_size=20),
        st.booleans(),
    )
    free = st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.dictionaries(st.text(LETTERS, max_size=8), inner, max_size=4),
        ),
        max_leaves=8,
    )

    @st.composite
    def spoilt(draw: Any) -> Any:
        value = draw(st.sampled_from(list(target.data)))
        for _ in range(draw(st.integers(1, 3))):
            path = draw(st.sampled_from(list(places(value))))
            kind = draw(st.sampled_from(('put', 'drop', 'more', 'deep', 'odd key')))
            new = draw(free)
            value = edited(value, path, lambda old, k=kind, n=new: _change(old, k, n))
        return value

    return st.one_of(spoilt(), spoilt(), free)


def _change(old: Any, kind: str, new: Any) -> Any:
    if kind == 'deep':
        for _ in range(80):
            old = [old]
        return old
    if isinstance(old, dict) and old and kind != 'put':
        keys = list(old)
        if kind == 'drop':
            return {k: v for k, v in old.items() if k != keys[-1]}
        return {**old, 'x' if kind == 'more' else str(new)[:50]: new}
    if isinstance(old, list) and old and kind != 'put':
        return old[:-1] if kind == 'drop' else [*old, new]
    return new


def structure(attempt: Try, tries: int, seconds: float, seed: int) -> None:
    """Tries of data that hypothesis makes."""
    import hypothesis
    from hypothesis import HealthCheck, Phase, given, settings

    end = time.monotonic() + seconds
    round_ = 0
    while attempt.report.tries < tries and time.monotonic() < end:
        left = min(tries - attempt.report.tries, 2000)

        @hypothesis.seed(seed + round_)
        @settings(
            max_examples=left,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(data_of(attempt.target))
        def run(value: Any) -> None:
            if time.monotonic() < end:
                attempt.value(value)

        run()
        round_ += 1


# ------------------------------------------------------------------------------- bytes

WORDS = (
    b'\0',
    b'\xff' * 4,
    b'\xff' * 8,
    b'\x7f\xff\xff\xff',
    b'\x80' + b'\0' * 7,
    b'null',
    b'NaN',
    b'1e999',
    b'[[[[',
    b'{"a":',
    b'"',
    b'\\u0000',
    b'\xef\xbb\xbf',
    b'\xff\xfe',
    b'PK\x03\x04',
    b'PK\x01\x02',
    b'cos\nsystem\n',
    b'<!ENTITY',
    b'&a;',
    b'*a',
    b'!!python/name:os.system',
    '²'.encode(),
    '３'.encode(),
    b'\n',
    b' ',
    b'..',
)


def spoilt_bytes(data: bytes, draw: random.Random) -> bytes:
    """A healthy file with one to eight edits."""
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        if not found:
            found += draw.choice(WORDS)
        at, kind = draw.randrange(len(found)), draw.randrange(9)
        if kind == 0:
            found[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            found[at] = draw.randrange(256)
        elif kind == 2:
            del found[at : at + draw.choice((1, 2, 8, 64, 1024))]
        elif kind == 3:
            found = found[:at]
        elif kind == 4:
            found[at:at] = draw.choice(WORDS)
        elif kind == 5:
            word = draw.choice(WORDS)
            found[at : at + len(word)] = word
        elif kind == 6:
            part = found[at : at + draw.choice((1, 8, 64, 512))]
            found[at:at] = part * draw.choice((1, 2, 50))
        elif kind == 7:
            size = draw.choice((1, 2, 4, 8))
            number = draw.choice((0, 1, 2 ** (8 * size - 1), 2 ** (8 * size) - 1))
            found[at : at + size] = number.to_bytes(size, 'little')
        else:
            other = draw.randrange(len(found))
            size = draw.choice((1, 4, 16, 64))
            found[at : at + size] = found[other : other + size]
        del found[LONGEST:]
    return bytes(found)


def by_bytes(attempt: Try, tries: int, seconds: float, seed: int) -> None:
    """Tries of edited files."""
    draw, end = random.Random(seed), time.monotonic() + seconds
    for seed_file in attempt.target.seeds:
        attempt.bytes(seed_file)
    while attempt.report.tries < tries and time.monotonic() < end:
        attempt.bytes(spoilt_bytes(draw.choice(attempt.target.seeds), draw))


def by_atheris(attempt: Try, tries: int, seconds: float, seed: int) -> None:
    """Tries of bytes that atheris makes, led by what they reach.

    Raises:
        PETLError: It is not installed.
    """
    try:
        import atheris
    except ImportError:
        raise PETLError(
            'the engine atheris needs it: pip install atheris; the engine bytes does '
            'without'
        ) from None
    corpus = attempt.folder.with_name(f'{attempt.folder.name}-corpus')
    corpus.mkdir()
    for i, data in enumerate(attempt.target.seeds):
        (corpus / str(i)).write_bytes(data)
    atheris.instrument_all()
    flags = [f'-runs={tries}', f'-seed={seed + 1}', '-close_fd_mask=0']
    flags += [f'-max_total_time={int(seconds)}', '-handle_alrm=0', '-verbosity=0']
    atheris.Setup(['fuzz', *flags, str(corpus)], attempt.bytes)
    with contextlib.suppress(SystemExit):
        atheris.Fuzz()


RUN = {'structure': structure, 'bytes': by_bytes, 'atheris': by_atheris}


def engines_of(target: Target, engine: str) -> list[str]:
    """Engines that can try a reader."""
    wanted = ENGINES if engine == 'all' else (engine,)
    fits = {'structure': bool(target.data)}
    return [name for name in wanted if fits.get(name, bool(target.seeds))]


def apart(target: Target, engine: str, args: argparse.Namespace) -> Report:
    """Tries in a process of their own, which may die."""
    last = mmap.mmap(-1, LONGEST + 8)
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read)
        _limit_memory(args.memory)
        sink = os.open(os.devnull, os.O_WRONLY)
        for number in (1, 2):
            os.dup2(sink, number)
        warnings.simplefilter('ignore')
        attempt = Try(target, engine, args.limit, args.keep, last)
        start = time.monotonic()
        try:
            RUN[engine](attempt, args.tries, args.seconds, args.seed)
            attempt.report.seconds = time.monotonic() - start
            said = json.dumps({'report': vars(attempt.report)})
        except PETLError as error:
            said = json.dumps({'error': str(error)})
        finally:
            attempt.close()
        with os.fdopen(write, 'w') as file:
            file.write(said)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        said = file.read()
    _, status = os.waitpid(pid, 0)
    if said:
        found = json.loads(said)
        if 'error' in found:
            raise PETLError(found['error'])
        return Report(**found['report'])
    report = Report(target.name, engine)
    code = os.waitstatus_to_exitcode(status)
    report.findings[f'the process died ({code})'] = [1, 'see the input that is kept']
    (size,) = struct.unpack('<Q', last[:8])
    if args.keep is not None:
        args.keep.mkdir(parents=True, exist_ok=True)
        name = f'{target.name.replace(" ", "_")}-died'
        (args.keep / name).write_bytes(last[8 : 8 + size])
    return report


def _limit_memory(mib: int) -> None:
    pages = int(Path('/proc/self/statm').read_text().split()[0])
    most = pages * os.sysconf('SC_PAGE_SIZE') + (mib << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--only', nargs='+', default=[], help='words in readers')
    parser.add_argument('--engine', choices=('all', *RUN), default='all')
    parser.add_argument(
        '--tries', type=int, default=100_000, help='of each reader and engine, at most'
    )
    parser.add_argument(
        '--seconds', type=float, default=10.0, help='of each reader and engine, at most'
    )
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--limit', type=float, default=2.0, help='seconds of a try')
    parser.add_argument('--memory', type=int, default=2048, help='MiB of a process')
    parser.add_argument('--keep', type=Path, help='folder for inputs of findings')
    parser.add_argument('--list', action='store_true', help='print the readers')
    return parser.parse_args()


def table(reports: list[Report]) -> str:
    """Tries and findings of each reader and engine."""
    lines = [
        '| reader | engine | tries | refused | findings | tries a second |',
        '| :--- | :--- | ---: | ---: | ---: | ---: |',
    ]
    for r in reports:
        speed = f'{r.tries / r.seconds:,.0f}' if r.seconds else '-'
        lines.append(
            f'| {r.target} | {r.engine} | {r.tries:,} | {r.refused:,} | '
            f'{len(r.findings)} | {speed} |'
        )
    tries, refused = sum(r.tries for r in reports), sum(r.refused for r in reports)
    found = sum(len(r.findings) for r in reports)
    return '\n'.join([*lines, f'| all | | {tries:,} | {refused:,} | {found} | |'])


def main() -> int:
    args = parse_args()
    warnings.simplefilter('ignore')
    words = [word.lower() for word in args.only]
    targets = [
        t for t in all_targets() if not words or any(w in t.name.lower() for w in words)
    ]
    if args.list:
        print('\n'.join(f'{t.kind:10} {t.name}' for t in targets))
        return 0
    reports = []
    try:
        for target in targets:
            for engine in engines_of(target, args.engine):
                report = apart(target, engine, args)
                reports.append(report)
                for kind, (count, message) in sorted(report.findings.items()):
                    print(f'{target.name}: {count} x {kind}: {message}', flush=True)
    except PETLError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    print(table(reports))
    return int(any(report.findings for report in reports))


if __name__ == '__main__':
    sys.exit(main())
