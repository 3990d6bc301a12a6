"""Write tutorials as notebooks, so that one text is kept.

Example: python tools/misc/notebooks.py --check

Python becomes cells of code, without outputs; what the page shows as printed is left
out, since the notebook prints it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[2] / 'docs'
NOTEBOOKS = {'timm': 'timm', 'method_author': 'own_method'}
"""Tutorial to notebook, by stem."""

CODE = re.compile(r'^```python\n(.*?)^```$\n?', re.S | re.M)
PRINTED = re.compile(r'^```text\n.*?^```$\n?', re.S | re.M)
ITSELF = re.compile(r'^- \[This page as a notebook\].*$\n?', re.M)


def notebook(text: str) -> dict[str, Any]:
    """A page as a notebook of format 4.5."""
    text = ITSELF.sub('', PRINTED.sub('', text))
    cells = []
    # Split by one group: prose and code take turns.
    for i, source in enumerate(CODE.split(text)):
        source = re.sub(r'\n{3,}', '\n\n', source).strip('\n')
        if not source:
            continue
        cell = {
            'cell_type': 'code' if i % 2 else 'markdown',
            'id': f'cell-{len(cells)}',
            'metadata': {},
            'source': source.splitlines(keepends=True),
        }
        cells.append(cell | ({'execution_count': None, 'outputs': []} if i % 2 else {}))
    kernel = {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'}
    return {
        'cells': cells,
        'metadata': {'kernelspec': kernel, 'language_info': {'name': 'python'}},
        'nbformat': 4,
        'nbformat_minor': 5,
    }


def main() -> int:
    """Write, or with --check compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--check', action='store_true', help='only say what is stale')
    args = parser.parse_args()
    stale = []
    for page, name in NOTEBOOKS.items():
        source = (DOCS / 'tutorials' / f'{page}.md').read_text(encoding='utf-8')
        text = json.dumps(notebook(source), indent=1, ensure_ascii=False) + '\n'
        path = DOCS / 'notebooks' / f'{name}.ipynb'
        if not path.is_file() or path.read_text(encoding='utf-8') != text:
            stale.append(path.name)
            if not args.check:
                path.parent.mkdir(exist_ok=True)
                path.write_text(text, encoding='utf-8')
    print(
        '\n'.join(f'{"stale" if args.check else "written"}: {name}' for name in stale)
    )
    return int(bool(stale) and args.check)


if __name__ == '__main__':
    sys.exit(main())
