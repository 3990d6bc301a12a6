"""Fuzz every reader of files and data; count tries, print findings.

Examples:
    python tools/misc/fuzz.py --seconds 60
    python tools/misc/fuzz.py --only record plan --tries 1000000
    python tools/misc/fuzz.py --engine atheris --only 'torch zip' --tries 100000
    python tools/misc/fuzz.py --rows work_dirs/fuzz.jsonl --write

Each reader is tried by the engines that fit it:

- structure: healthy data edited at a place (another value or type, a key less, a key
  more, a list longer, deeper); hypothesis makes up the values that are put there;
- bytes: seeded edits of healthy files (bits, bytes, cuts, copies, numbers at the ends
  of their ranges, words of the format);
- sealed: the same edits of one member of an archive, or of one part of a file, whose
  lengths and checksums are then made to fit again;
- atheris: bytes that are led by what they reach, if it is installed and named.

A try is good where the reader gives a result, a PETLError or a FileNotFoundError. A
finding is anything else: another exception, more than --limit seconds of the processor,
more memory than --memory beyond what the process had, a process that dies. Findings of
one exception at one line are one. Their inputs are kept in --keep. One finding, and the
exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import json
import mmap
import os
import random
import resource
import shutil
import struct
import sys
import time
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault('OMP_NUM_THREADS', '1')
sys.path.insert(0, str(Path(__file__).parent))

from hostile.edits import (  # noqa: E402
    LONGEST,
    ODD,
    SEALS,
    spoilt_bytes,
    spoilt_data,
    spoilt_parts,
)
from hostile.targets import Target, all_targets  # noqa: E402
from hostile.tries import Report, Try, scratch_folder  # noqa: E402

from mmpetl.core import PETLError  # noqa: E402

ENGINES = ('structure', 'bytes', 'sealed')
PAGE = Path(__file__).parents[2] / 'docs' / 'reliability.md'
MENDED = Path(__file__).parent / 'hostile' / 'findings.json'
"""What was found and mended: reader, engine, what it was, and its test."""
DEATHS = 5
"""So often is a reader tried anew whose process has died."""

# --------------------------------------------------------------------------- structure

LETTERS = (
    'abx019.,:;*?!-+_/\\|@#$%&<>()[]{}"\' \t\n\r\0\x1b\x85\u2028²３é\U0001f426\ud800'
)
"""What texts are made of: drawing from all of Unicode takes seconds to begin with."""
POOL, USES = 32, 500
"""Values that hypothesis makes up at a time, and the tries that take them: making one
costs it more time than ten tries of a reader."""


def pools(seed: int) -> Iterator[list[Any]]:
    """Lists of values that hypothesis makes up, without end."""
    import hypothesis
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st

    leaves = st.one_of(
        st.integers(), st.floats(), st.text(LETTERS, max_size=20), st.booleans()
    )
    free = st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.dictionaries(st.text(LETTERS, max_size=8), inner, max_size=4),
        ),
        max_leaves=8,
    )
    for number in itertools.count(seed * 1_000_003):
        found: list[list[Any]] = []
        keep = found.append

        @hypothesis.seed(number)
        @settings(
            max_examples=3,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.lists(free, min_size=POOL, max_size=POOL))
        def make(values: list[Any]) -> None:
            keep(values)  # noqa: B023 - it is called below, in this turn

        make()
        yield from found


def structure(attempt: Try, tries: int, seconds: float, seed: int) -> None:
    """Tries of healthy data, edited."""
    end, draw = time.monotonic() + seconds, random.Random(seed)
    for healthy in attempt.target.data:
        attempt.value(healthy)
    # Odd values first: hypothesis takes its time to make up others.
    for pool in itertools.chain([list(ODD)], pools(seed)):
        for value in pool:
            attempt.value(value)
        new = (*ODD, *pool)
        for _ in range(USES):
            if attempt.report.tries >= tries or time.monotonic() >= end:
                return
            healthy = draw.choice(attempt.target.data)
            attempt.value(spoilt_data(healthy, new, draw))


# ------------------------------------------------------------------------------- bytes


def by_bytes(attempt: Try, tries: int, seconds: float, seed: int) -> None:
    """Tries of edited files."""
    draw, end = random.Random(seed), time.monotonic() + seconds
    for seed_file in attempt.target.seeds:
        attempt.bytes(seed_file)
    while attempt.report.tries < tries and time.monotonic() < end:
        attempt.bytes(spoilt_bytes(draw.choice(attempt.target.seeds), draw))


def by_sealed(attempt: Try, tries: int, seconds: float, seed: int) -> None:
    """Tries of files with one part edited, which are then whole again."""
    draw, end = random.Random(seed), time.monotonic() + seconds
    split, join = SEALS[attempt.target.seal]
    healthy = [split(data) for data in attempt.target.sealed]
    for parts in healthy:
        attempt.bytes(join(parts))
    while attempt.report.tries < tries and time.monotonic() < end:
        parts = spoilt_parts(draw.choice(healthy), draw)
        with contextlib.suppress(UnicodeEncodeError, ValueError, struct.error):
            attempt.bytes(join(parts))


# ----------------------------------------------------------------------------- atheris

LED_BY = (
    *('mmpetl.', 'json.', 'yaml.', 'zipfile', 'tarfile', 'pickle', 'csv'),
    *('numpy.lib', 'numpy.core', 'torch.serialization', 'torch._weights_only'),
    *('torch._utils', 'PIL.', 'optuna.storages.journal', 'xml.', 'ast'),
)
"""Modules whose branches atheris follows; preparing all of torch takes minutes."""


def prepare_atheris(targets: list[Target]) -> None:
    """Have it follow the branches of the readers, once for all of them.

    Raises:
        PETLError: It is not installed.
    """
    try:
        import atheris
    except ImportError:
        raise PETLError(
            'the engine atheris needs it: pip install atheris; the other engines do '
            'without'
        ) from None
    for target in targets:
        attempt = Try(target, 'atheris', 60.0, None)
        for data in target.seeds:
            attempt.bytes(data)  # imports what is imported late
        attempt.close()
    for found in gc.get_objects():
        if isinstance(found, types.FunctionType) and _leads(found):
            with contextlib.suppress(Exception):
                atheris.instrument_func(found)


def by_atheris(attempt: Try, tries: int, seconds: float, seed: int) -> None:
    """Tries of bytes that atheris makes, led by what they reach."""
    import atheris

    corpus = scratch_folder('fuzz-corpus-')
    for i, data in enumerate(attempt.target.seeds):
        (corpus / str(i)).write_bytes(data)
    end = time.monotonic() + seconds

    def once(data: bytes) -> None:
        if attempt.report.tries >= tries or time.monotonic() >= end:
            # libFuzzer ends the process when it is through, before anything is told.
            attempt.tell_now()
            attempt.close()
            shutil.rmtree(corpus, ignore_errors=True)
            os._exit(0)
        attempt.bytes(data)

    flags = [f'-seed={seed + 1}', '-close_fd_mask=0', '-handle_alrm=0', '-verbosity=0']
    flags += ['-timeout=0', '-rss_limit_mb=0', f'-max_len={1 << 16}']
    flags += ['-report_slow_units=86400', f'-artifact_prefix={corpus}/']
    atheris.Setup(['fuzz', *flags, str(corpus)], once)
    atheris.Fuzz()


def _leads(found: types.FunctionType) -> bool:
    name = getattr(found, '__module__', None)
    return isinstance(name, str) and f'{name}.'.startswith(LED_BY)


RUN = {
    'structure': structure,
    'bytes': by_bytes,
    'sealed': by_sealed,
    'atheris': by_atheris,
}

# --------------------------------------------------------------------------- processes


def engines_of(target: Target, engine: str) -> list[str]:
    """Engines that can try a reader."""
    wanted = ENGINES if engine == 'all' else (engine,)
    fits = {'structure': bool(target.data), 'sealed': bool(target.seal)}
    return [name for name in wanted if fits.get(name, bool(target.seeds))]


def tried(target: Target, engine: str, args: argparse.Namespace) -> Report:
    """Tries of a reader, begun anew where its process dies."""
    whole = Report(target.name, engine, target.kind)
    for number in range(DEATHS):
        tries, seconds = args.tries - whole.tries, args.seconds - whole.seconds
        seed = args.seed + 1000 * number
        found, died = apart(target, engine, tries, seconds, seed, args)
        whole.add(found)
        if not died or whole.tries >= args.tries or whole.seconds >= args.seconds:
            break
    return whole


def apart(
    target: Target,
    engine: str,
    tries: int,
    seconds: float,
    seed: int,
    args: argparse.Namespace,
) -> tuple[Report, bool]:
    """Tries in a process of their own, and whether it died."""
    last = mmap.mmap(-1, LONGEST + 8)
    read, write = os.pipe()
    start = time.monotonic()
    pid = os.fork()
    if not pid:
        os.close(read)
        _in_child(target, engine, tries, seconds, seed, args, last, write)
    os.close(write)
    said: dict[str, Any] = {}
    with os.fdopen(read) as file:
        for line in file:
            with contextlib.suppress(ValueError):  # half a line of a process that died
                said = json.loads(line)
    _, status = os.waitpid(pid, 0)
    if 'error' in said:
        raise PETLError(said['error'])
    report = Report(target.name, engine, target.kind)
    if said:
        report = Report(**said['report'])
    code = os.waitstatus_to_exitcode(status)
    if not code:
        return report, False
    report.seconds = time.monotonic() - start
    report.findings[f'the process died ({code})'] = [1, 'see the input that is kept']
    (size,) = struct.unpack('<Q', last[:8])
    if args.keep is not None:
        args.keep.mkdir(parents=True, exist_ok=True)
        name = f'{target.name.replace(" ", "_")}-died-{seed}'
        (args.keep / name).write_bytes(last[8 : 8 + size])
    return report, True


def _in_child(
    target: Target,
    engine: str,
    tries: int,
    seconds: float,
    seed: int,
    args: argparse.Namespace,
    last: mmap.mmap,
    write: int,
) -> None:
    """Run the tries, tell the parent of them, and end the process."""
    _limit_memory(args.memory)
    sink = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(sink, number)
    warnings.simplefilter('ignore')

    def tell(report: Report) -> None:
        os.write(write, (json.dumps({'report': vars(report)}) + '\n').encode())

    attempt = Try(target, engine, args.limit, args.keep, last, tell)
    code = 1
    try:
        RUN[engine](attempt, tries, seconds, seed)
        attempt.tell_now()
        code = 0
    except PETLError as error:
        os.write(write, json.dumps({'error': str(error)}).encode())
        code = 0
    finally:
        attempt.close()
        os._exit(code)


def _limit_memory(mib: int) -> None:
    pages = int(Path('/proc/self/statm').read_text().split()[0])
    most = pages * os.sysconf('SC_PAGE_SIZE') + (mib << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


# ------------------------------------------------------------------------------ figures


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


def read_rows(path: Path) -> list[Report]:
    """Reports of a file of them, one of each reader and engine."""
    found: dict[tuple[str, str], Report] = {}
    lines = path.read_text(encoding='utf-8').splitlines() if path.is_file() else []
    for line in lines:
        report = Report(**json.loads(line))
        known = found.setdefault((report.target, report.engine), report)
        if known is not report:
            known.add(report)
    return list(found.values())


def figures(reports: list[Report]) -> str:
    """The table of the page: tries, findings mended and open, seconds."""
    mended = json.loads(MENDED.read_text(encoding='utf-8'))
    lines = [
        '| reader | engine | tries | findings, mended | open | seconds |',
        '| :--- | :--- | ---: | ---: | ---: | ---: |',
    ]
    for kind in ('parser', 'container'):
        some = [r for r in reports if r.kind == kind]
        names = list(dict.fromkeys(r.target for r in some))
        for r in sorted(some, key=lambda r: names.index(r.target)):
            was = [
                m for m in mended if (m['reader'], m['engine']) == (r.target, r.engine)
            ]
            lines.append(_row(r.target, r.engine, [r], len(was)))
        was = [m for m in mended if m['reader'] in names]
        lines.append(_row(f'all {kind}s', '', some, len(was)))
    return '\n'.join(lines)


def _row(name: str, engine: str, reports: list[Report], mended: int) -> str:
    tries, seconds = (sum(getattr(r, k) for r in reports) for k in ('tries', 'seconds'))
    found = sum(len(r.findings) for r in reports)
    return f'| {name} | {engine} | {tries:,} | {mended} | {found} | {seconds:,.0f} |'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--only', nargs='+', default=[], help='words in reader or kind (parser)'
    )
    parser.add_argument('--engine', choices=('all', *RUN), default='all')
    parser.add_argument(
        '--tries', type=int, default=100_000, help='of each reader and engine, at most'
    )
    parser.add_argument(
        '--seconds', type=float, default=10.0, help='of each reader and engine, at most'
    )
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--limit', type=float, default=2.0, help='seconds of the processor of a try'
    )
    parser.add_argument('--memory', type=int, default=2048, help='MiB of a process')
    parser.add_argument('--keep', type=Path, help='folder for inputs of findings')
    parser.add_argument('--rows', type=Path, help='file that reports are added to')
    parser.add_argument('--list', action='store_true', help='print the readers')
    parser.add_argument(
        '--write',
        action='store_true',
        help='put the sums of --rows into docs/reliability.md, and try nothing',
    )
    args = parser.parse_args()
    if args.write and args.rows is None:
        parser.error('--write takes the figures from --rows')
    return args


def main() -> int:
    args = parse_args()
    if args.write:
        from update_tables import replace

        text = PAGE.read_text(encoding='utf-8')
        shown = figures(read_rows(args.rows))
        PAGE.write_text(replace(text, 'fuzz', shown), encoding='utf-8')
        print(shown)
        return 0
    warnings.simplefilter('ignore')
    words = [word.lower() for word in args.only]
    targets = [
        t
        for t in all_targets()
        if not words or any(w in f'{t.kind} {t.name}'.lower() for w in words)
    ]
    if args.list:
        print('\n'.join(f'{t.kind:10} {t.name}' for t in targets))
        return 0
    reports = []
    try:
        if args.engine == 'atheris':
            prepare_atheris(targets)
        for target in targets:
            for engine in engines_of(target, args.engine):
                report = tried(target, engine, args)
                reports.append(report)
                for kind, (count, message) in sorted(report.findings.items()):
                    print(
                        f'{target.name}, {engine}: {count} x {kind}: {message}',
                        flush=True,
                    )
                if args.rows is not None:
                    args.rows.parent.mkdir(parents=True, exist_ok=True)
                    with args.rows.open('a', encoding='utf-8') as file:
                        file.write(json.dumps(vars(report)) + '\n')
    except PETLError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    print(table(reports))
    return int(any(report.findings for report in reports))


if __name__ == '__main__':
    sys.exit(main())
