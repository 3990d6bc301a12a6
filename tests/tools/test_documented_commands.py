"""Commands in the documents exist: the tools, their flags, and the configs they name.

Those of the tutorials are run (``test_tutorials.py``); here all of them are looked at,
on every page: what stands in a fence of a shell is of a kind that a test here knows.
"""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import click
import pytest

from mmpetl.cli.groups import FolderGroup, root

ROOT = Path(__file__).resolve().parents[2]
GUIDES = (
    'docs/getting_started.md',
    'docs/own_pictures.md',
    'docs/tools.md',
    'docs/upstream_configs.md',
    'docs/weights.md',
)
PAGES = ('README.md', 'CONTRIBUTING.md', 'docs/**/*.md')
FENCE = re.compile(r'(?ms)^ *```(\w*)[^\n]*\n(.*?)^ *```')
SHELLS = ('', 'bash', 'console', 'sh', 'shell')
"""Languages of fences that hold commands; output is ``text``."""


def texts() -> dict[str, str]:
    """Every page by its path, with commands of several lines on one."""
    paths = (path for pattern in PAGES for path in ROOT.glob(pattern))
    return {
        path.relative_to(ROOT).as_posix(): re.sub(
            r'\\\n\s*', ' ', path.read_text(encoding='utf-8')
        )
        for path in paths
    }


def typed(text: str) -> list[str]:
    """What a page has its reader type: lines of shells, and those behind a ``$``."""
    found = []
    for language, body in FENCE.findall(text):
        lines = [line.strip() for line in body.splitlines()]
        if language not in SHELLS:
            lines = [line for line in lines if line.startswith('$ ')]
        found += [
            line.removeprefix('$ ')
            for line in lines
            if line and not line.startswith('#')
        ]
    return found


def without_variables(line: str) -> str:
    """A command without what is set for it alone: ``A=b command``."""
    return re.sub(r'^(?:[A-Z_]+=\S+ +)+(?=\S)', '', line)


def commands(*patterns: str) -> list[str]:
    found = []
    for page in (page for pattern in patterns for page in ROOT.glob(pattern)):
        text = re.sub(r'\\\n\s*', ' ', page.read_text(encoding='utf-8'))
        found += re.findall(r'(?m)^ *(python (?:tools|demo)/\S+.*)$', text)
        found += re.findall(r'`(python (?:tools|demo)/[^`<]+)`', text)
    return sorted(set(found))


def calls_of_mmpetl() -> list[str]:
    found = []
    for text in texts().values():
        lines = [without_variables(line) for line in typed(text)]
        found += [line for line in lines if line.startswith('mmpetl ')]
        found += re.findall(r'`(mmpetl [a-z][^`>]+)`', text)
    return sorted({' '.join(call.split()) for call in found})


@pytest.mark.parametrize('call', calls_of_mmpetl())
def test_a_documented_call_of_the_command_is_one_that_it_takes(call):
    group, words = root(), shlex.split(call, comments=True)[1:]
    while isinstance(group, FolderGroup) and words not in ([], ['--help']):
        group = group.get_command(click.Context(group), words.pop(0))
    assert group is not None, f'{call}: no such command'
    # Without any, a part of the command is named in a sentence.
    if words not in ([], ['--help']):
        parser = importlib.import_module(group.module).make_parser()
        assert parser.parse_args(words)


def other_lines() -> list[str]:
    """What is typed beside ``mmpetl`` and the tools, and scripts in sentences."""
    found = []
    for text in texts().values():
        found += [without_variables(line) for line in typed(text)]
        found += re.findall(r'`(python (?:speed|tests|-m)[^`<]+)`', text)
        found += re.findall(
            r'`(pip install [^`]*(?:mmpetl\[|requirements/)[^`]*)`', text
        )
    known = r'mmpetl |python (?:tools|demo)/|make '
    return sorted({line for line in found if not re.match(known, line)})


@pytest.mark.parametrize('line', other_lines())
def test_a_line_of_a_shell_is_of_a_kind_that_is_known(line):
    words = shlex.split(line, comments=True)
    if words[0] in ('export', '.', 'cd'):
        return
    if words[:2] == ['pip', 'install'] or words[:2] == ['pip', 'uninstall']:
        extras = re.search(r'mmpetl\[([\w,]+)\]', line)
        assert {*(extras[1].split(',') if extras else ())} <= extras_of_setup()
        for name in re.findall(r'requirements/\S+', line):
            assert (ROOT / name).is_file()
        return
    if words[0].endswith('.sh') or words[0] == 'bash':
        assert (ROOT / words[words[0] == 'bash']).is_file()
        return
    assert words[0] == 'python', f'{line}: nothing here looks at it'
    if words[1] == '-m':
        name = words[2]
        if not name.startswith('mmpetl'):
            assert name in ('pytest', 'http.server', 'mkdocs')
            return
        parts = name.split('.')
        path = ROOT.joinpath(*parts)
        path = path / '__main__.py' if path.is_dir() else path.with_suffix('.py')
    else:
        path = ROOT / words[1]
    assert path.is_file()
    flags = {word.partition('=')[0] for word in words[1:] if word.startswith('--')}
    assert flags <= flags_of(path)


def extras_of_setup() -> set[str]:
    """Names that stand in brackets behind ``mmpetl``."""
    setup = (ROOT / 'setup.py').read_text(encoding='utf-8')
    return set(re.findall(r"'(\w+)'", re.search(r'(?s)EXTRAS = \((.*?)\)', setup)[1]))


def flags_of(path: Path) -> set[str]:
    """Flags of a script: of the command that it runs, or of its own source."""
    source = path.read_text(encoding='utf-8')
    command = re.search(r'from (mmpetl\.cli\.commands\S*) import (\w+)', source)
    if command is None:
        source += ''.join(part.read_text(encoding='utf-8') for part in _imported(path))
        return set(re.findall(r"'(--[\w-]+)'", source))
    parser = importlib.import_module('.'.join(command.groups())).make_parser()
    return {flag for action in parser._actions for flag in action.option_strings}


@pytest.mark.parametrize('command', commands(*PAGES))
def test_a_documented_command_exists(command):
    _, script, *words = shlex.split(command, comments=True)
    path = ROOT / script
    assert path.is_file()
    flags = {word.partition('=')[0] for word in words if word.startswith('--')}
    assert flags - {'--help'} <= flags_of(path)


def test_every_documented_target_of_make_is_there():
    makefile = (ROOT / 'Makefile').read_text(encoding='utf-8')
    targets = set(re.findall(r'(?m)^([a-z-]+):', makefile))
    named = set()
    for page in (page for pattern in PAGES for page in ROOT.glob(pattern)):
        text = page.read_text(encoding='utf-8')
        named |= set(re.findall(r'(?m)^ *make ([a-z-]+)$', text))
        named |= set(re.findall(r'`make ([a-z-]+)', text))
    assert {'digits', 'test', 'docs', 'install'} <= named
    assert named <= targets


def _imported(script: Path) -> list[Path]:
    """Files that a tool takes its flags from: what it imports, and its siblings."""
    text = script.read_text(encoding='utf-8')
    found = []
    for module, names in re.findall(
        r'(?m)^ *(?:from|import) ([\w.]+)(?: import ([\w, ]+))?', text
    ):
        path = Path(*module.split('.'))
        for part in (path, *(path / name for name in names.split(', '))):
            file = part.with_suffix('.py')
            found += [p for p in (ROOT / file, script.parent / file) if p.is_file()]
    return found


def test_documented_configs_and_their_checkpoints_are_what_runs_make():
    from mmpetl.apis import load_config

    text = '\n'.join(commands(*GUIDES))
    configs = set(re.findall(r'configs/[\w/]+\.py', text))
    assert len(configs) > 8
    last = set()
    for config in sorted(configs):
        options = {}
        if 'mini/' in config:
            options = {'model.backbone.method.type': 'LoRA'}
        loaded = load_config(ROOT / config, options)
        loop = loaded.train_cfg
        unit = 'iter' if 'max_iters' in loop else 'epoch'
        number = loop.get('max_iters') or loop.max_epochs
        last.add(f'{loaded.work_dir}/{unit}_{number}.pth')
    named = set(re.findall(r'work_dirs/\S+\.pth', text))
    assert named
    assert named <= last


@pytest.mark.parametrize('guide', GUIDES)
def test_every_tool_that_a_guide_names_is_there(guide):
    text = (ROOT / guide).read_text(encoding='utf-8')
    names = set(re.findall(r'(?:tools|demo|mmpetl|requirements)/[\w/.-]+\.\w+', text))
    assert names
    for name in names:
        assert (ROOT / name).exists(), name
