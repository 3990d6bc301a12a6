"""Fetch the base weights that recipes start from, and check those that are there.

A transfer that breaks off goes on where it stopped; a file gets its name when its size,
its checksum (where one is known) and its content are right.

Examples:
    mmpetl weights --list
    mmpetl weights ViT-B_16.npz
    mmpetl weights --recipe ade20k --mirror /mnt/weights
    mmpetl weights --recipe configs/lora/vtab/svhn.py
    mmpetl weights --check
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from mmpetl import apis
from mmpetl.cli.parsing import CommandParser
from mmpetl.compat.bases import OWN
from mmpetl.config.load import read_config
from mmpetl.config.names import BESIDE, config_root, recipe_path
from mmpetl.core import PETLError
from mmpetl.models import weights


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    parser.add_argument('names', nargs='*', metavar='NAME', help='files to fetch')
    parser.add_argument('--recipe', help='fetch what this recipe or config starts from')
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
    return parser


def chosen(args: argparse.Namespace) -> list[weights.KnownFile]:
    """The files that the command line names, in order."""
    files = [weights.find_known(name) for name in args.names]
    if args.recipe:
        is_config = args.recipe.endswith('.py')
        if not is_config:
            check_name(args.recipe)
        needed = weights.needed_by(args.recipe)
        files += read_off(args.recipe) if is_config else needed
        if not is_config and not needed:
            raise PETLError(
                f'no known file serves the recipe {args.recipe!r}; --list shows which '
                'recipes start from which file; a config is named as for train.py, '
                'configs/lora/vtab/svhn.py'
            )
    return files


def check_name(recipe: str) -> None:
    """Refuse a name that is neither of a recipe nor of a method's settings for one.

    Files are known by folders of recipes, which say nothing of what is in them.
    """
    folder = recipe.partition('/')[0]
    if folder not in BESIDE and (config_root() / folder).is_dir():
        read_config(f'{OWN}{recipe}.py')
    else:
        recipe_path(recipe)


def read_off(config: str) -> list[weights.KnownFile]:
    """The known file that a config, named as for ``train.py``, starts from."""
    model = apis.load_config(config).get('model', {})
    # Of a whole model of upstream with a method, the base stands beside it.
    checkpoint = model.get('backbone', {}).get('checkpoint') or model.get('base')
    if not checkpoint:
        raise PETLError(f'{config} starts from no weight file')
    name = PurePosixPath(checkpoint).name
    is_known = name in {known.name for known in weights.KNOWN_FILES}
    if not is_known and ('://' in checkpoint or Path(checkpoint).is_file()):
        print(f'{weights.resolve(checkpoint)}: there, the file of {config}')
        return []
    return [weights.find_known(name)]


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


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    folder = Path(args.folder).expanduser()
    with apis.cli_errors():
        files = chosen(args)
        if args.list:
            show_list(folder)
            return 0
        if args.check:
            return check_folder(folder, files)
        if not files and not args.recipe:
            raise PETLError('name a file or --recipe; --list shows what there is')
        if args.mirror and len(files) > 1 and Path(args.mirror).is_file():
            raise PETLError(
                f'--mirror {args.mirror} is one file, {len(files)} are asked for; give '
                'its folder'
            )
        for known in files:
            fetch(known, folder, args.mirror)
    return 0
