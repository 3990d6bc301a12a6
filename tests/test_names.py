"""Files of tests are imported by name alone, so no two of them share one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path


def test_no_two_files_have_one_name() -> None:
    files = Path(__file__).parent.rglob('*.py')
    names = Counter(file.name for file in files if file.name != 'conftest.py')
    assert [name for name, count in names.items() if count > 1] == []
