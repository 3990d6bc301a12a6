"""The report page of a benchmark folder: one HTML file, from its records only.

Examples:
    mmpetl benchmark report --out work_dirs/bench/mini
    mmpetl benchmark report --out work_dirs/bench/mini --screenshot page.png
    mmpetl benchmark report --out work_dirs/bench/mini --screenshot page.pdf

Pictures in <out>/pictures and <out>/analysis, <name>.png with <name>.json of title,
caption, alt and section, become panels of the page. A screenshot needs playwright
and Chromium.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmpetl.apis.run import cli_errors
from mmpetl.benchmark.records import RecordStore
from mmpetl.benchmark.report import write_report
from mmpetl.benchmark.report.browser import screenshot
from mmpetl.cli.arguments import add_folder
from mmpetl.cli.parsing import CommandParser


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    add_folder(parser)
    parser.add_argument('--to', help='file to write (default: <out>/report.html)')
    parser.add_argument('--title', default='', help="heading (default: folder's name)")
    parser.add_argument('--screenshot', help='also draw the page to this PNG or PDF')
    parser.add_argument(
        '--width', type=int, default=1280, help='of the screenshot (default: 1280)'
    )
    parser.add_argument('--dark', action='store_true', help='screenshot in the dark')
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    with cli_errors():
        store = RecordStore(args.out)
        path = write_report(args.out, args.to, args.title, store)
        print(path)
        if args.screenshot:
            print(screenshot(path, args.screenshot, args.width, args.dark))
        store.check_all_read()
