r"""COCO 2017 into coco/train2017, val2017 and annotations.

Example:
    python tools/dataset_converters/coco.py train2017.zip val2017.zip \
        annotations_trainval2017.zip
"""

from __future__ import annotations

from pathlib import Path

from mmpetl.datasets.catalog import facts_of
from mmpetl.datasets.convert.cli import one_line_errors, parser_for, tell
from mmpetl.datasets.convert.dense import convert_coco


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument('archives', nargs='+', type=Path, help='archives or folders')
    args = parser.parse_args()
    with one_line_errors():
        counts = convert_coco(args.archives, args.root, args.workers)
        tell(args.root / facts_of('coco').path, counts)


if __name__ == '__main__':
    main()
