"""Write small data sets in the official layouts, so that recipes run anywhere.

Point MMPETL_DATA at the folder and the recipes for the full sets read them as they
are. What is complete is skipped; an interrupted set is made anew.

Example:
    python tools/misc/make_mini_data.py --root data/mini --only digits coco ssv2
"""

from __future__ import annotations

import argparse
import sys
import time

from mmpetl.datasets import mini


def main() -> int:
    """Parse, make, tell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--root', required=True, help='data root to write below')
    parser.add_argument(
        '--only', nargs='+', metavar='NAME', help='sets (default: all but upstream)'
    )
    parser.add_argument('--size', choices=['tiny', 'small'], default='small')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--list', action='store_true', help='print the names and stop')
    args = parser.parse_args()
    if args.list:
        print('\n'.join(mini.NAMES))
        return 0

    started = time.perf_counter()

    def report(name: str, made: bool) -> None:
        nonlocal started
        seconds = time.perf_counter() - started
        print(f'{name:32} {f"{seconds:6.1f} s" if made else "there":>9}', flush=True)
        started = time.perf_counter()

    try:
        mini.make(args.root, args.only, args.size, args.seed, report)
    except (ValueError, OSError) as error:
        print(f'make_mini_data: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('make_mini_data: interrupted; run again to go on', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
