"""What makes the pages of this repository a site; mkdocs.yml names this file.

The pages are written for readers of the repository: links point at files, lists follow
CommonMark, and a method's page says nothing of its class in code. Here links that leave
``docs`` become names of files, lists get the indents that MkDocs reads, methods get
their reference, and commands that no test runs are marked. Needs MkDocs alone.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
FRONT = ('CONTRIBUTING.md', 'CHANGELOG.md')
"""Pages at the top of the repository that the site has too."""

FENCE = re.compile(r'^ *(```+|~~~+)')
LINK = re.compile(r'(!?)\[((?:[^\[\]`]|`[^`]*`)*)\]\(([^()\s]+)\)')
ITEM = re.compile(r'^(\d+\. |[-*] )')
COMMAND = re.compile(r'^ *(python3? (tools|demo|-m)|torchrun |tools/)', re.M)
ROLE = re.compile(r':(?:class|func|meth|data|mod|attr|exc):<code>~?([^<]*)</code>')

RUN = 'tutorials/'
"""Where the tests run every command (``tests/tools/test_tutorials.py``)."""

NOTE = (
    '<p class="not-run">Needs data, weights or time: the tests hold its name and flags '
    'and do not run it.</p>'
)


def on_config(config: Any) -> Any:
    """List what the navigation does not name: methods, and guides that are new."""
    sections = {name: pages for part in config.nav for name, pages in _items(part)}
    known = {page for pages in sections.values() for page in pages} | set(
        config.nav[:1]
    )
    docs = ROOT / 'docs'
    for section, folder in (('Methods', docs / 'methods'), ('Guides', docs)):
        pages = [p.relative_to(docs).as_posix() for p in sorted(folder.glob('*.md'))]
        sections[section] += [page for page in pages if page not in known]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from the top of the repository."""
    for name in FRONT:
        text = (ROOT / name).read_text(encoding='utf-8')
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(text: str, page: Any, config: Any, files: Files) -> str:
    """Turn a page of the repository into one of the site."""
    uri = page.file.src_uri
    prose = [part if fenced else _links(part, uri) for fenced, part in parts(text)]
    text = nested_lists(''.join(prose))
    if not uri.startswith(RUN):
        text = ''.join(
            f'{part}\n{_indent(part)}{NOTE}\n\n'
            if fenced and is_command(part)
            else part
            for fenced, part in parts(text)
        )
    folder, _, name = uri.rpartition('/')
    module = Path(name).stem
    if folder == 'methods' and (ROOT / f'mmpetl/methods/{module}.py').is_file():
        text += (
            f'\n\n## In code\n\n::: mmpetl.methods.{module}\n'
            '    options:\n      heading_level: 3\n      show_root_toc_entry: false\n'
            '      show_root_heading: false\n      show_docstring_modules: false\n'
        )
    return text


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Show what docstrings refer to as code."""
    return ROLE.sub(r'<code>\1</code>', html)


def parts(text: str) -> list[tuple[bool, str]]:
    """The text in pieces, each with whether it is a fenced block."""
    found: list[tuple[bool, str]] = []
    lines: list[str] = []
    fence = ''
    for line in text.splitlines(keepends=True):
        mark = FENCE.match(line)
        if mark and not fence:
            found.append((False, ''.join(lines)))
            lines, fence = [line], mark[1]
        elif mark and line.strip() == fence:
            found.append((True, ''.join([*lines, line])))
            lines, fence = [], ''
        else:
            lines.append(line)
    found.append((bool(fence), ''.join(lines)))
    return found


def is_command(block: str) -> bool:
    """Whether a fenced block is of commands, and names no language."""
    first, _, rest = block.partition('\n')
    return first.strip() in ('```', '```bash', '```sh') and bool(COMMAND.search(rest))


def nested_lists(text: str) -> str:
    """Lists as Python-Markdown reads them.

    A list begins behind an empty line, and what belongs to an item is indented by four.
    """
    lines: list[str] = []
    width, loose = 0, False
    for fenced, part in parts(text):
        for line in part.splitlines():
            item = None if fenced else ITEM.match(line)
            indent = len(line) - len(line.lstrip())
            if item:
                # Behind several paragraphs an item would be read as more of the last.
                if (loose or not width) and lines and lines[-1].strip():
                    lines.append('')
                width, loose = len(item[0]), False
            elif width and not line.strip():
                loose = True
            elif width and indent >= width:
                line = ' ' * (4 - width) + line
            elif width and (fenced or not lines[-1].strip()):
                width, loose = 0, False  # no lazy continuation of an item
            lines.append(line)
    return '\n'.join(lines) + '\n'


def _items(part: Any) -> list[tuple[str, list[str]]]:
    return list(part.items()) if isinstance(part, dict) else []


def _links(text: str, uri: str) -> str:
    """Links that the site can follow; a file outside of it is named."""
    here = posixpath.dirname(uri if uri in FRONT else f'docs/{uri}')

    def retarget(match: re.Match[str]) -> str:
        image, label, target = match.groups()
        if re.match(r'[a-z]+:|#', target):
            return match[0]
        path, mark, anchor = target.partition('#')
        path = posixpath.normpath(posixpath.join(here, path))
        if path == 'README.md':
            path = 'docs/index.md'
        if path in FRONT:
            path = f'docs/{path}'
        elif not (ROOT / path).exists():
            return match[0]  # MkDocs says so
        if path.startswith('docs/'):
            site = path.removeprefix('docs/')
            if (ROOT / path).is_dir():
                site = f'{site}/README.md'
            back = posixpath.relpath(site, posixpath.dirname(uri) or '.')
            return f'{image}[{label}]({back}{mark}{anchor})'
        name = label.strip('`').replace('\n', ' ')
        return f'`{path}`' if name in path else f'{label} (`{path}`)'

    return LINK.sub(retarget, text)


def _indent(block: str) -> str:
    return ' ' * (len(block) - len(block.lstrip(' ')))
