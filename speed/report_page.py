"""How long the report page of 2,500 synthetic records takes to stand on the screen.

Example: python speed/report_page.py

Median over fresh pages of one Chromium, and the same as a ratio to a page that holds
plotly's script and nothing else, so that what the machine is up to falls out.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'tests' / 'benchmark'))

ROUNDS = 7


def seconds(chromium: Any, path: Path, selector: str) -> float:
    """From entering the address to the page's own word that it is ready."""
    page = chromium.new_page(viewport={'width': 1280, 'height': 800})
    began = time.perf_counter()
    page.goto(path.as_uri())
    page.wait_for_selector(selector, state='attached')
    taken = time.perf_counter() - began
    page.close()
    return taken


def main() -> None:
    """Print the two medians and their ratio."""
    from plotly.offline import get_plotlyjs
    from synthetic import records

    from mmpetl.benchmark.report.browser import browser
    from mmpetl.benchmark.report.page import build_page

    with tempfile.TemporaryDirectory() as folder, browser() as chromium:
        whole, bare = Path(folder, 'report.html'), Path(folder, 'bare.html')
        whole.write_text(build_page(records(), [], 'Synthetic'), encoding='utf-8')
        script = f'<script>{get_plotlyjs()}</script><p id="end"></p>'
        bare.write_text(f'<!doctype html>{script}', encoding='utf-8')
        ours, reference = [], []
        for _ in range(ROUNDS):
            reference.append(seconds(chromium, bare, '#end'))
            ours.append(seconds(chromium, whole, 'html[data-ready]'))
    ratio = statistics.median(a / b for a, b in zip(ours, reference, strict=True))
    middle, other = statistics.median(ours), statistics.median(reference)
    print(f'2,500 records: {middle:.2f} s, slowest {max(ours):.2f} s')
    print(f'{ratio:.2f} of a page that runs plotly.js at once ({other:.2f} s)')


if __name__ == '__main__':
    main()
