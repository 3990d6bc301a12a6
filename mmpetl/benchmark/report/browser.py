"""The page in a headless Chromium: for screenshots and for the tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmpetl.core import PETLError
from mmpetl.core.part_files import whole_file

NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')

FLAGS = (
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
)
"""A quiet browser: it draws the file it is given and asks nothing of the network."""


def find_browser() -> str | None:
    """Path of a Chromium that is installed, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def browser() -> Iterator[Any]:
    """A running browser of playwright.

    Raises:
        PETLError: playwright or Chromium is missing.
    """
    path = find_browser()
    if path is None:
        raise PETLError(
            f'a screenshot needs Chromium; none of {", ".join(NAMES)} is on the PATH '
            f'(Debian and Ubuntu: apt-get install chromium)'
        )
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise PETLError(
            'a screenshot needs playwright: pip install playwright'
        ) from None
    with sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            yield found
        finally:
            found.close()


def screenshot(
    page_file: str | os.PathLike,
    picture: str | os.PathLike,
    width: int = 1280,
    dark: bool = False,
) -> Path:
    """A picture of the whole report, all plots drawn.

    Args:
        page_file: What :func:`mmpetl.benchmark.report.write_report` has written.
        picture: A PNG file, or a PDF file for the page as it prints.
        width: Width of the window in pixels.
        dark: The dark scheme.
    """
    picture = Path(picture)
    picture.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(picture, picture.suffix) as part, browser() as found:
        page = found.new_page(
            viewport={'width': width, 'height': 900},
            color_scheme='dark' if dark else 'light',
        )
        page.goto(Path(page_file).resolve().as_uri())
        page.wait_for_selector('html[data-ready]')
        page.evaluate('mmpetlReport.drawAll()')
        page.evaluate('Promise.all([...document.images].map((i) => i.decode()))')
        if picture.suffix.lower() == '.pdf':
            page.pdf(path=part, prefer_css_page_size=True, print_background=True)
        else:
            page.screenshot(path=part, full_page=True)
    return picture
