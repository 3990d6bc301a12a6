"""Run what the README has a reader type, as it stands, from the wheel alone.

Examples:
    python tools/misc/walk_readme.py --venv work_dirs/wheel/venv
    python tools/misc/walk_readme.py --python .venv/bin/python --sections Install

A wheel is built of the last commit and installed with requirements/constraints.txt
into a new environment, which takes a package index and some 6 GB; --python names one
that is there instead. Lines of shells and blocks of Python run in an empty folder, one
after another, and each is printed with the seconds that it took. Lines of pip are left
out. The walk ends at the first that fails, with its last words and exit code 1.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmpetl.apis.run import cli_errors
from mmpetl.core import PETLError

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = ('Install it, and the command', 'From a folder of pictures to ONNX')
FENCE = re.compile(r'^```(\w*)\n(.*?)^```$', re.S | re.M)
SHELLS = ('', 'bash', 'sh')


@dataclass(frozen=True)
class Step:
    """What is typed.

    Attributes:
        source: A line of a shell, or a block of Python.
        python: Whether it is the latter.
    """

    source: str
    python: bool

    @property
    def words(self) -> str:
        """It, or its last line."""
        return self.source.strip().splitlines()[-1]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument('--venv', type=Path, help='new environment, for the wheel')
    where.add_argument('--python', type=Path, help='of an environment that is there')
    parser.add_argument('--page', type=Path, default=ROOT / 'README.md')
    parser.add_argument('--sections', nargs='+', default=list(SECTIONS))
    parser.add_argument('--into', type=Path, help='empty folder; else a temporary one')
    return parser.parse_args()


def steps_of(text: str, sections: list[str]) -> Iterator[Step]:
    """What a page has its reader type in some sections, in their order.

    Args:
        text: Of the page.
        sections: Beginnings of headings of the second level.

    Raises:
        PETLError: There is no such section.
    """
    parts = dict(
        re.findall(r'^## (.+?)\n(.*?)(?=^## |\Z)', text, re.S | re.M),
    )
    for name in sections:
        found = [part for title, part in parts.items() if title.startswith(name)]
        if not found:
            raise PETLError(f'the page has no section {name!r}; it has {list(parts)}')
        for language, body in FENCE.findall(found[0]):
            if language == 'python':
                yield Step(body, True)
            elif language in SHELLS:
                joined = re.sub(r' *\\\n\s*', ' ', body)
                lines = (
                    line.partition('  #')[0].strip() for line in joined.split('\n')
                )
                yield from (
                    Step(line, False)
                    for line in lines
                    if line and not line.startswith('pip ')
                )


def walk(steps: Iterator[Step], python: Path, folder: Path) -> None:
    """Run steps in a folder, with nothing of this checkout on the way.

    Raises:
        PETLError: One fails.
    """
    # Not resolved: the python of an environment is a link out of it.
    binaries = python.absolute().parent
    path = f'{binaries}{os.pathsep}{os.environ["PATH"]}'
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(('PYTHON', 'MMPETL'))
    }
    for step in steps:
        command = [str(python.absolute()), '-'] if step.python else step.source
        began = time.monotonic()
        done = subprocess.run(
            command,
            shell=not step.python,
            input=step.source if step.python else None,
            cwd=folder,
            env={**kept, 'PATH': path},
            capture_output=True,
            text=True,
        )
        print(f'{time.monotonic() - began:6.1f} s  {step.words}', flush=True)
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise PETLError(
                f'{step.words!r} ends with {done.returncode}: '
                f'{said[-1] if said else "no message"}'
            )


def install(venv: Path) -> Path:
    """A wheel of the last commit in a new environment; its python."""
    import io
    import tarfile

    import build_release

    with tempfile.TemporaryDirectory() as folder:
        packed = io.BytesIO(build_release.git('archive', 'HEAD'))
        with tarfile.open(fileobj=packed) as content:
            content.extractall(folder, filter='data')
        _, wheel = build_release.build(Path(folder), Path(folder) / 'dist')
        subprocess.run([sys.executable, '-m', 'venv', str(venv)], check=True)
        python = venv / 'bin' / 'python'
        limits = ROOT / 'requirements' / 'constraints.txt'
        pip = [str(python), '-m', 'pip', 'install', '-q', '-c', str(limits)]
        subprocess.run([*pip, f'mmpetl[onnx] @ {wheel.as_uri()}'], check=True)
    return python


def main() -> None:
    args = parse_args()
    with cli_errors():
        steps = list(steps_of(args.page.read_text('utf-8'), args.sections))
        python = install(args.venv) if args.venv else args.python
        with tempfile.TemporaryDirectory() as temporary:
            folder = args.into or Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise PETLError(f'{folder} is not empty')
            began = time.monotonic()
            walk(iter(steps), python, folder)
        print(f'{len(steps)} steps in {time.monotonic() - began:.0f} s')


if __name__ == '__main__':
    main()
