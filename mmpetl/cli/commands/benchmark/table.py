r"""Tables of a benchmark folder, from its records only.

Examples:
    mmpetl benchmark table --out work_dirs/bench/mini
    mmpetl benchmark table --out work_dirs/bench/vtab --by group --published
    mmpetl benchmark table --out work_dirs/bench/vtab --format tex \
        --to a.tex --columns method trainable means ppt
    mmpetl benchmark table --out work_dirs/bench/mini --compare --picture c.png
    mmpetl benchmark table --out work_dirs/bench/mini --compare --samples \
        --rows LoRA SSF
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmpetl.apis.run import cli_errors
from mmpetl.benchmark.records import RecordStore
from mmpetl.benchmark.render import FORMATS, render
from mmpetl.benchmark.samples import pictures_of
from mmpetl.benchmark.statistics_tables import check_rows, compare, draw
from mmpetl.benchmark.tables import build_tables
from mmpetl.benchmark.verdicts import standings
from mmpetl.cli.arguments import add_folder
from mmpetl.cli.parsing import CommandParser
from mmpetl.core import PETLError
from mmpetl.core.part_files import whole_file


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    add_folder(parser)
    parser.add_argument('--format', choices=FORMATS, default='md')
    parser.add_argument(
        '--by',
        choices=('task', 'group'),
        default='task',
        help='columns per task, or per group of tasks only (default: task)',
    )
    parser.add_argument(
        '--published', action='store_true', help='with the figures others printed'
    )
    parser.add_argument('--protocol', choices=('honest', 'published'))
    parser.add_argument('--suite', nargs='+', help='only these, such as vtab')
    parser.add_argument(
        '--compare',
        action='store_true',
        help='ranks and paired tests instead of scores (Markdown)',
    )
    parser.add_argument(
        '--margin',
        type=float,
        default=0.0,
        help='differences up to this many points are ties (default: 0)',
    )
    parser.add_argument(
        '--samples',
        action='store_true',
        help='with --compare: McNemar and bootstrap, picture by picture',
    )
    parser.add_argument(
        '--rows', nargs='+', help='with --compare: pairs of these rows, every test'
    )
    tex = parser.add_argument_group('Markdown and LaTeX')
    tex.add_argument(
        '--columns',
        nargs='+',
        help='method family trainable tasks means ppt rank, names of tasks, of groups, '
        'plain, group',
    )
    tex.add_argument('--label', help='of LaTeX (default: made of the title)')
    tex.add_argument('--caption', help='of LaTeX (default: the title)')
    tex.add_argument('--wide', action='store_true', help='LaTeX over both columns')
    parser.add_argument('--picture', help='write a critical-difference picture here')
    parser.add_argument('--to', help='write to this file instead of the screen')
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    with cli_errors():
        store = RecordStore(args.out)
        records = store.all(curves=False)
        if not records:
            store.check_all_read()
            raise PETLError(f'{args.out} holds no record; run a plan into it first')
        verdicts = standings(args.out, (record.job for record in records))
        tables = build_tables(
            records, args.published, args.protocol, args.suite, verdicts
        )
        if args.rows:
            check_rows(tables, args.rows)
        if args.compare:
            texts = [
                compare(
                    table,
                    args.margin,
                    pictures_of(table, records, store, args.rows)
                    if args.samples
                    else None,
                    args.rows,
                )
                for table in tables
            ]
        else:
            texts = [
                render(
                    table,
                    args.format,
                    args.by,
                    args.columns,
                    args.label,
                    args.caption,
                    args.wide,
                )
                for table in tables
            ]
        text = '\n'.join(texts)
        if args.to:
            path = Path(args.to)
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as part:
                part.write_text(text, encoding='utf-8')
            print(path)
        else:
            print(text, end='')
        if args.picture:
            for path in draw(tables, args.picture):
                print(path)
        store.check_all_read()
