"""Count which classes a run takes for which on its test set, and draw it.

Examples:
    mmpetl analyse confusion work_dirs/lora/mini/digits --out confusion.png
    mmpetl analyse confusion configs/lora/vtab/svhn.py deltas/svhn_lora.safetensors
    mmpetl analyse confusion zoo/digits_lora

Beside the picture stands <name>.csv with the counts: rows are true classes. A run is
named as for mmpetl test. It is for classifiers of pictures and videos.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmpetl.cli.arguments import add_config_options, runs
from mmpetl.cli.parsing import CommandParser, suggests

OUT = 'work_dirs/pictures/confusion.png'


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    parser.add_argument('config', nargs='?', help='config, where the run has another')
    run = parser.add_argument(
        'checkpoint', help='folder of a run, checkpoint, delta, or zoo/NAME'
    )
    suggests(run, runs)
    parser.add_argument(
        '--out', type=Path, default=Path(OUT), help=f'picture to write ({OUT})'
    )
    parser.add_argument('--work-dir', help='folder of the log')
    parser.add_argument('--device', choices=('auto', 'cpu', 'cuda'), default='auto')
    add_config_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    from mmpetl import apis
    from mmpetl.analysis.charts import save_rows
    from mmpetl.apis.confusion import check_out, confusion_matrix, draw_confusion

    with apis.cli_errors(of_run=True):
        check_out(args.out)
        apis.choose_device(args.device)
        run = apis.open_run(
            args.checkpoint, args.config, args.cfg_options, args.work_dir
        )
        matrix, classes = confusion_matrix(run.config, run.weights)
        draw_confusion(matrix, classes, args.out, run.config.default_scope)
        header = ['', *(classes or map(str, range(len(matrix))))]
        rows = [(header[i + 1], *row) for i, row in enumerate(matrix.tolist())]
        save_rows(args.out.with_suffix('.csv'), header, rows)
        print(f'{matrix.trace()} of {matrix.sum()} right; picture: {args.out}')
