"""Notebooks run in a kernel of Jupyter, and print what their pages show."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = {'timm': 'timm', 'own_method': 'method_author'}
"""The page that each notebook is made of, by stem (tools/misc/notebooks.py)."""

CODE = re.compile(r'^```python\n.*?^```$\n*(?:^```text\n(.*?)^```$)?', re.S | re.M)


@pytest.mark.slow
@pytest.mark.parametrize('name', PAGES)
def test_a_kernel_runs_the_notebook(name, tmp_path, monkeypatch):
    nbclient = pytest.importorskip('nbclient')
    pytest.importorskip('ipykernel')
    import nbformat

    # A kernel of this interpreter, whatever others a home folder has.
    for place in ('JUPYTER_DATA_DIR', 'JUPYTER_CONFIG_DIR', 'JUPYTER_RUNTIME_DIR'):
        monkeypatch.setenv(place, str(tmp_path / 'jupyter'))
    monkeypatch.setenv('IPYTHONDIR', str(tmp_path / 'ipython'))
    monkeypatch.setenv('PYTHONPATH', str(ROOT), prepend=':')
    work = tmp_path / 'work'
    work.mkdir()
    notebook = nbformat.read(ROOT / 'docs' / 'notebooks' / f'{name}.ipynb', 4)
    nbformat.validate(notebook)
    client = nbclient.NotebookClient(
        notebook,
        timeout=600,
        kernel_name='python3',
        resources={'metadata': {'path': str(work)}},
    )
    client.execute()
    code = [cell for cell in notebook.cells if cell.cell_type == 'code']
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    page = ROOT / 'docs' / 'tutorials' / f'{PAGES[name]}.md'
    shown = CODE.findall(page.read_text(encoding='utf-8'))
    assert len(code) == len(shown) > 4
    assert [printed(cell) for cell in code] == shown


def printed(cell) -> str:
    """What the cell has written to its standard output."""
    streams = [out for out in cell.outputs if out.output_type == 'stream']
    return ''.join(out.text for out in streams if out.name == 'stdout')
