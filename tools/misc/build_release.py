"""Build what is uploaded for a version: sdist and wheel of the last commit, in dist/.

Example:
    python tools/misc/build_release.py

Version, citation and changelog must say the same, and nothing may be uncommitted. The
wheel is built of the sdist, and the sdist of what git holds, so that no file of this
checkout slips in. Nothing is uploaded or tagged; the commands that do are printed.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from mmpetl.apis.run import cli_errors
from mmpetl.core import PETLError
from mmpetl.version import __version__

ROOT = Path(__file__).resolve().parents[2]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--out', type=Path, default=ROOT / 'dist', help='default: dist')
    return parser.parse_args()


def faults(root: Path, version: str) -> list[str]:
    """What keeps a checkout from being released as a version."""
    found = []
    if f'version: {version}\n' not in (root / 'CITATION.cff').read_text('utf-8'):
        found.append(f'CITATION.cff does not say version: {version}')
    lines = (root / 'CHANGELOG.md').read_text('utf-8').splitlines()
    heading = next((line for line in lines if line.startswith('## ')), 'none')
    if not heading.startswith(f'## {version} (') or 'unreleased' in heading:
        found.append(
            f'the first heading of CHANGELOG.md is {heading!r}, not ## {version} (DATE)'
        )
    return found


def build(source: Path, out: Path) -> tuple[Path, Path]:
    """Build an sdist of a folder, and a wheel of the sdist.

    Args:
        source: A copy of the checkout; files are written into it.
        out: Folder that both are put into.

    Returns:
        The sdist and the wheel.

    Raises:
        PETLError: The build fails; its last line.
    """
    out.mkdir(parents=True, exist_ok=True)
    sdist = out / _hook(source, 'build_sdist', out)
    with tempfile.TemporaryDirectory() as folder, tarfile.open(sdist) as packed:
        packed.extractall(folder, filter='data')
        (unpacked,) = Path(folder).iterdir()
        return sdist, out / _hook(unpacked, 'build_wheel', out)


def _hook(source: Path, name: str, out: Path) -> str:
    """Call a hook of the build backend, as ``python -m build --no-isolation`` does."""
    code = f'from setuptools import build_meta as b; print(b.{name}({str(out)!r}))'
    command = [sys.executable, '-c', code]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ['no message'])[-1]
        raise PETLError(f'{name} of {source} fails: {last}')
    return done.stdout.splitlines()[-1]


def git(*args: str) -> bytes:
    """What git says in the checkout."""
    done = subprocess.run(['git', '-C', str(ROOT), *args], capture_output=True)
    if done.returncode:
        raise PETLError(f'git {args[0]}: {done.stderr.decode().strip()}')
    return done.stdout


def main() -> None:
    args = parse_args()
    with cli_errors():
        found = faults(ROOT, __version__)
        if git('status', '--porcelain', '--untracked-files=no').strip():
            found.append('the checkout has edits that are not committed')
        if found:
            raise PETLError(f'{__version__} cannot be released: {"; ".join(found)}')
        with tempfile.TemporaryDirectory() as folder:
            packed = io.BytesIO(git('archive', 'HEAD'))
            with tarfile.open(fileobj=packed) as content:
                content.extractall(folder, filter='data')
            files = build(Path(folder), args.out)
        for path in files:
            print(hashlib.sha256(path.read_bytes()).hexdigest(), path)
        print(f'git tag v{__version__} && git push origin v{__version__}')
        print('twine upload', *files)


if __name__ == '__main__':
    main()
