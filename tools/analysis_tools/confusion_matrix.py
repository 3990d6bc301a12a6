"""Count which classes a classifier takes for which, and draw it.

Example: python tools/analysis_tools/confusion_matrix.py configs/mini/digits.py \
    work_dirs/lora/mini/digits/epoch_40.pth --out confusion.png \
    --cfg-options model.backbone.method.type=LoRA

Beside the picture stands <name>.csv with the counts: rows are true classes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmpetl.config.cli import DictAction


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint or delta')
    parser.add_argument('--out', type=Path, required=True, help='picture, .png')
    parser.add_argument('--work-dir', help='folder of the log')
    parser.add_argument('--device', choices=('auto', 'cpu', 'cuda'), default='auto')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='key=value overrides'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from mmpetl import apis
    from mmpetl.analysis.charts import save_rows
    from mmpetl.apis.confusion import confusion_matrix, draw_confusion

    with apis.cli_errors(of_run=True):
        apis.choose_device(args.device)
        config = apis.load_config(args.config, args.cfg_options, args.work_dir)
        matrix, classes = confusion_matrix(config, args.checkpoint)
        draw_confusion(matrix, classes, args.out, config.default_scope)
        header = ['', *(classes or map(str, range(len(matrix))))]
        rows = [(header[i + 1], *row) for i, row in enumerate(matrix.tolist())]
        save_rows(args.out.with_suffix('.csv'), header, rows)
        print(f'{matrix.trace()} of {matrix.sum()} right; picture: {args.out}')


if __name__ == '__main__':
    main()
