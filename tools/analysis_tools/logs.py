"""Tell what runs have logged, and draw it.

Example: python tools/analysis_tools/logs.py work_dirs/lora/mini/digits \
    --keys loss accuracy/top1 --out curves.png

Without --out a table of every key: values logged, first, least, greatest, last.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmpetl.analysis.curves import choose, draw_curves, read_log, summary
from mmpetl.apis.run import cli_errors
from mmpetl.core import PETLError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('runs', nargs='+', help='work folders, or scalars.json files')
    parser.add_argument('--keys', nargs='+', default=['loss'], help='what is drawn')
    parser.add_argument('--legend', nargs='+', help='names of the runs')
    parser.add_argument('--title', default='What runs have logged')
    parser.add_argument('--out', type=Path, help='picture, .png')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with cli_errors():
        names = args.legend or args.runs
        if len(names) != len(args.runs) or len(set(names)) != len(names):
            raise PETLError(
                f'{len(args.runs)} runs need as many names of their own, got '
                f'{", ".join(names)}'
            )
        logs = {name: read_log(run) for name, run in zip(names, args.runs, strict=True)}
        for name, log in logs.items():
            print(f'{name}', *summary(log), sep='\n')
        if args.out:
            chosen = {name: choose(log, args.keys, name) for name, log in logs.items()}
            panels = {
                key: {name: curves[key] for name, curves in chosen.items()}
                for key in args.keys
            }
            draw_curves(panels, args.out, args.title)
            print(f'picture: {args.out}')


if __name__ == '__main__':
    main()
