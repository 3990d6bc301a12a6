"""Load every weight format into every host and print how far features are apart.

Runs the tests that build the official format from a tiny random model of another
library and load it here, with the packages that are installed, and prints one line per
format: the largest absolute difference between features, and the scale of these.

Example:
    python tools/misc/check_weight_formats.py
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / 'tests' / 'models'
TESTS = [
    FOLDER / f'test_{name}.py'
    for name in (
        'weights',
        'weight_formats',
        'official_names',
        'official_tools',
        'transformers_names',
        'transformers_files',
    )
]
COLUMNS = ('format', 'host', 'reference', 'max difference', 'scale', 'verdict')


class Collector:
    """A pytest plugin that keeps what tests report of themselves."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, ...]] = []

    def pytest_runtest_logreport(self, report) -> None:
        if report.when != 'call':
            return
        seen: dict[str, object] = {}
        for key, value in report.user_properties:
            seen[key] = value
            if key != 'tolerance':
                continue
            # The tolerance is the last that one comparison reports.
            gap, scale = seen['max_difference'], seen['scale']
            verdict = 'equal' if gap <= value else f'OFF (allowed {value:.0e})'
            parts = str(seen['format']).split(' | ')
            self.rows.append((*parts, f'{gap:.1e}', f'{scale:.2f}', verdict))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    try:
        import pytest
    except ModuleNotFoundError:
        print('error: pytest is needed; pip install pytest', file=sys.stderr)
        return 1
    if not all(path.is_file() for path in TESTS):
        print(f'error: {FOLDER} is needed: a source checkout', file=sys.stderr)
        return 1
    collector = Collector()
    quiet = ['-q', '-p', 'no:cacheprovider', '--no-header', '--no-summary', '-rN']
    code = pytest.main([*quiet, *map(str, TESTS)], plugins=[collector])
    table = [COLUMNS, *sorted(collector.rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(COLUMNS))]
    print()
    for row in table:
        print('  '.join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())
    return int(code)


if __name__ == '__main__':
    sys.exit(main())
