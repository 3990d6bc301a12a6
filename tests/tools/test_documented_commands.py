"""Commands in the documents exist: the tools, their flags, and the configs they name.

Those of the tutorials are run (``test_tutorials.py``); here all of them are looked at.
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


def commands(*patterns: str) -> list[str]:
    found = []
    for page in (page for pattern in patterns for page in ROOT.glob(pattern)):
        text = re.sub(r'\\\n\s*', ' ', page.read_text(encoding='utf-8'))
        found += re.findall(r'(?m)^ *(python (?:tools|demo)/\S+.*)$', text)
        found += re.findall(r'`(python (?:tools|demo)/[^`<]+)`', text)
    return sorted(set(found))


def calls_of_mmpetl() -> list[str]:
    found = []
    for page in (page for pattern in PAGES for page in ROOT.glob(pattern)):
        text = re.sub(r'\\\n\s*', ' ', page.read_text(encoding='utf-8'))
        for block in re.findall(r'(?s)```(?:bash)?\n(.*?)```', text):
            found += re.findall(r'(?m)^(mmpetl \S.*)$', block)
        found += re.findall(r'`(mmpetl [a-z][^`>]+)`', text)
    return sorted({' '.join(call.split()) for call in found})


@pytest.mark.parametrize('call', calls_of_mmpetl())
def test_a_documented_call_of_the_command_is_one_that_it_takes(call):
    group, words = root(), shlex.split(call, comments=True)[1:]
    while isinstance(group, FolderGroup) and words:
        group = group.get_command(click.Context(group), words.pop(0))
    assert group is not None, f'{call}: no such command'
    if words:  # without any, a part of the command is named in a sentence
        parser = importlib.import_module(group.module).make_parser()
        wants_help = words == ['--help']
        assert wants_help or parser.parse_args(words)


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
