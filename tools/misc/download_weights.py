"""Fetch the base weights that recipes start from, and check those that are there.

A transfer that breaks off goes on where it stopped; a file gets its name when its size,
its checksum (where one is known) and its content are right.

Examples:
    python tools/misc/download_weights.py --list
    python tools/misc/download_weights.py ViT-B_16.npz
    python tools/misc/download_weights.py --recipe ade20k --mirror /mnt/weights
    python tools/misc/download_weights.py --check
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path, PurePosixPath

from mmpetl import apis
from mmpetl.core import PETLError
from mmpetl.models import weights


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('names', nargs='*', metavar='NAME', help='files to fetch')
    parser.add_argument('--recipe', help='fetch what this recipe or leaf starts from')
    parser.add_argument(
        '--folder',
        default=os.environ.get('MMPETL_WEIGHTS', 'checkpoints'),
        help='where weights live (default: MMPETL_WEIGHTS, else checkpoints)',
    )
    parser.add_argument(
        '--mirror', help='a folder, a file, or the address of a folder to fetch from'
    )
    parser.add_argument(
        '--list', action='store_true', help='what is known; no fetching'
    )
    parser.add_argument(
        '--check',
        action='store_true',
        help='check the files in the folder; no fetching',
    )
    return parser.parse_args()


def chosen(args: argparse.Namespace) -> list[weights.KnownFile]:
    """The files that the command line names, in order."""
    files = [weights.find_known(name) for name in args.names]
    if args.recipe:
        needed = weights.needed_by(leaf_of(args.recipe))
        needed = needed or weights.needed_by(recipe_of(args.recipe))
        if not needed:
            raise PETLError(
                f'no known file serves the recipe {args.recipe!r}; --list shows which '
                'recipes start from which file'
            )
        files += needed
    return files


def leaf_of(text: str) -> str:
    """``ssf/vtab/svhn`` of ``configs/ssf/vtab/svhn.py``."""
    return PurePosixPath(text).with_suffix('').as_posix().removeprefix('configs/')


def recipe_of(text: str) -> str:
    """``vtab/svhn`` of ``configs/lora/vtab/svhn.py`` or ``vtab/svhn``."""
    path = PurePosixPath(text).with_suffix('')
    is_path = path.parts[:1] == ('configs',) and len(path.parts) > 2
    return str(PurePosixPath(*path.parts[2:]) if is_path else path)


def show_list(folder: Path) -> None:
    """One paragraph per known file."""
    for known in weights.KNOWN_FILES:
        there = 'there' if (folder / known.name).is_file() else 'not there'
        sums = [
            f'{kind} {value}'
            for kind, value in (
                ('sha256', known.sha256),
                ('sha256 begins', known.sha256_start),
                ('md5 begins', known.md5_start),
            )
            if value
        ]
        print(f'{known.name} ({there})')
        print(f'    {known.title}; {known.layout} keys')
        print(f'    {known.url or "no address"}')
        print(f'    {", ".join(sums) or "no checksum known"}')
        if known.recipes:
            print(f'    for {", ".join(known.recipes)}')
        if known.note:
            print(f'    {known.note}')


def check_folder(folder: Path, files: list[weights.KnownFile]) -> int:
    """One line per file that is there or was asked for; 1 if one of them is wrong."""
    wrong = 0
    for known in files or weights.KNOWN_FILES:
        path = folder / known.name
        if not path.is_file():
            if files:
                print(f'MISSING  {path}')
                wrong += 1
            continue
        problems = weights.check_file(path, known)
        print(f'{"WRONG" if problems else "right":8} {path}', end='')
        print(f': {"; ".join(problems)}' if problems else f' ({known.title})')
        wrong += bool(problems)
    known_names = {known.name for known in weights.KNOWN_FILES}
    others = [] if files or not folder.is_dir() else sorted(folder.iterdir())
    for path in others:
        if path.suffix in ('.npz', '.pth', '.pt', '.bin', '.safetensors') and (
            path.name not in known_names
        ):
            try:
                print(f'{"other":8} {path}: {weights.describe_file(path)}')
            except weights.WeightsError as error:
                print(f'{"WRONG":8} {error}')
                wrong += 1
    return int(wrong > 0)


def fetch(known: weights.KnownFile, folder: Path, mirror: str | None) -> None:
    """Fetch one file behind a bar."""
    from tqdm import tqdm

    # Silent where nobody watches: a log is no place for a bar.
    with tqdm(unit='B', unit_scale=True, desc=known.name, disable=None) as bar:

        def move(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        path, fetched = weights.fetch(known, folder, mirror, move)
    print(f'{path}: {"fetched and checked" if fetched else "was there, checked"}')


def main() -> int:
    args = parse_args()
    folder = Path(args.folder).expanduser()
    with apis.cli_errors():
        files = chosen(args)
        if args.list:
            show_list(folder)
            return 0
        if args.check:
            return check_folder(folder, files)
        if not files:
            raise PETLError('name a file or --recipe; --list shows what there is')
        if args.mirror and len(files) > 1 and Path(args.mirror).is_file():
            raise PETLError(
                f'--mirror {args.mirror} is one file, {len(files)} are asked for; give '
                'its folder'
            )
        for known in files:
            fetch(known, folder, args.mirror)
    return 0


if __name__ == '__main__':
    sys.exit(main())
