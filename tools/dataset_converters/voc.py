r"""PASCAL VOC 2007 and 2012 into VOCdevkit, for detection and segmentation.

Archives may be given together or one by one.

Example:
    python tools/dataset_converters/voc.py VOCtrainval_06-Nov-2007.tar \
        VOCtest_06-Nov-2007.tar VOCtrainval_11-May-2012.tar
"""

from __future__ import annotations

from pathlib import Path

from mmpetl.datasets.catalog import facts_of
from mmpetl.datasets.convert.cli import one_line_errors, parser_for, tell
from mmpetl.datasets.convert.dense import convert_voc


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument('archives', nargs='+', type=Path, help='archives or folders')
    args = parser.parse_args()
    with one_line_errors():
        counts = convert_voc(args.archives, args.root, args.workers)
        tell(args.root / facts_of('voc').path, counts)


if __name__ == '__main__':
    main()
