"""Make the shipped entries of the zoo from a release of the benchmark.

Example:
    python tools/misc/zoo.py mini-1.0 --entries mini/digits:LoRA mini/ade20k:Mona

Of each pair the setting that its search has found best on validation data, and of that
the run of --seed. Files are held against the release's index and copied byte for byte;
each delta is opened once. Index and files go to --out, the table to docs/zoo.md. What a
recipe's deltas are to be shown, and an example, stands in recipes.json of that folder.

Entries that are too large to travel get an address with --url: upload the files beside
the index, and ship the index without them.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from mmpetl.apis import cli_errors
from mmpetl.benchmark.zoo_entries import Wanted, build_zoo, markdown
from mmpetl.core import PETLError

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / 'docs' / 'zoo.md'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('release', type=Path, help='folder of a release')
    parser.add_argument(
        '--entries', nargs='+', required=True, metavar='RECIPE:METHOD', help='which'
    )
    parser.add_argument('--out', type=Path, default=ROOT / 'demo' / 'zoo')
    parser.add_argument('--page', type=Path, help=f'page of the table ({PAGE.name})')
    parser.add_argument('--seed', type=int, default=42, help='which run (42)')
    parser.add_argument('--licence', default='Apache-2.0', help='of the deltas')
    parser.add_argument('--url', help='address of the folder that will hold the files')
    parser.add_argument(
        '--keep', action='store_true', help='keep the other entries that are there'
    )
    return parser.parse_args()


def write_table(page: Path, table: str) -> None:
    """Put a table between the markers of a page."""
    text = page.read_text(encoding='utf-8')
    begin, end = '<!-- begin zoo -->', '<!-- end zoo -->'
    if begin not in text or end not in text:
        raise PETLError(f'{page} has no {begin} and {end}')
    between = re.compile(f'(?s){re.escape(begin)}.*{re.escape(end)}')
    page.write_text(between.sub(lambda _: f'{begin}\n{table}\n{end}', text))


def main() -> None:
    args = parse_args()
    with cli_errors():
        wanted = [Wanted.parse(text) for text in args.entries]
        entries = build_zoo(
            args.release,
            wanted,
            args.out,
            seed=args.seed,
            licence=args.licence,
            url=args.url,
            keep=args.keep,
        )
        page = args.page or (PAGE if args.out == ROOT / 'demo' / 'zoo' else None)
        if page:
            write_table(page, markdown(entries))
    size = sum(e.delta.bytes + e.facts.bytes for e in entries)
    print(*(entry.summary() for entry in entries), sep='\n')
    print(f'{args.out}: {len(entries)} entries, {size:,} bytes')


if __name__ == '__main__':
    main()
