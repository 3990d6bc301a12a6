"""ADE20K (SceneParse150) into ADEChallengeData2016.

Example:
    python tools/dataset_converters/ade20k.py ADEChallengeData2016.zip
"""

from __future__ import annotations

from pathlib import Path

from mmpetl.datasets.catalog import facts_of
from mmpetl.datasets.convert.cli import one_line_errors, parser_for, tell
from mmpetl.datasets.convert.dense import convert_ade20k


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument('archives', nargs='+', type=Path, help='archives or folders')
    args = parser.parse_args()
    with one_line_errors():
        counts = convert_ade20k(args.archives, args.root, args.workers)
        tell(args.root / facts_of('ade20k').path, counts)


if __name__ == '__main__':
    main()
