r"""A fine-grained set into fgvc/: the split files of VPT and the official pictures.

Only pictures that a split names are written; one that no archive holds is an error.

Example:
    python tools/dataset_converters/fgvc.py cub_200_2011 --splits vpt_splits.zip \
        CUB_200_2011.tgz
"""

from __future__ import annotations

from pathlib import Path

from mmpetl.datasets.catalog import CATALOG, facts_of
from mmpetl.datasets.convert.cli import one_line_errors, parser_for, tell
from mmpetl.datasets.convert.fgvc import convert_fgvc


def main() -> None:
    names = [facts.id for facts in CATALOG.values() if facts.layout == 'fgvc']
    parser = parser_for(__doc__)
    parser.add_argument('name', choices=names, help='which of the five sets')
    parser.add_argument('archives', nargs='+', type=Path, help='pictures')
    parser.add_argument(
        '--splits',
        type=Path,
        required=True,
        help='archive or folder with train.json, val.json and test.json',
    )
    args = parser.parse_args()
    with one_line_errors():
        counts = convert_fgvc(
            args.name, args.splits, args.archives, args.root, args.workers
        )
        tell(args.root / facts_of(args.name).path, counts)


if __name__ == '__main__':
    main()
