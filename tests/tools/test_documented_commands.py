"""Commands in the documents exist: the tools, their flags, and the configs they name.

Those of the tutorials are run (``test_tutorials.py``); here all of them are looked at.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GUIDES = ('docs/getting_started.md', 'docs/upstream_configs.md', 'docs/weights.md')
PAGES = ('README.md', 'CONTRIBUTING.md', 'docs/**/*.md')


def commands(*patterns: str) -> list[str]:
    found = []
    for page in (page for pattern in patterns for page in ROOT.glob(pattern)):
        text = re.sub(r'\\\n\s*', ' ', page.read_text(encoding='utf-8'))
        found += re.findall(r'(?m)^ *(python (?:tools|demo)/\S+.*)$', text)
        found += re.findall(r'`(python (?:tools|demo)/[^`<]+)`', text)
    return sorted(set(found))


@pytest.mark.parametrize('command', commands(*PAGES))
def test_a_documented_command_exists(command):
    _, script, *words = shlex.split(command, comments=True)
    path = ROOT / script
    assert path.is_file()
    source = path.read_text(encoding='utf-8')
    source += ''.join(part.read_text(encoding='utf-8') for part in _imported(path))
    for word in words:
        if word.startswith('--') and word != '--help':
            flag = word.partition('=')[0]
            assert f"'{flag}'" in source or _is_built(flag, source), word


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


def _is_built(flag: str, source: str) -> bool:
    """``--train-csv`` is added as ``f'--{split}-csv'``."""
    return any(
        re.fullmatch(re.sub(r'\\\{\w+\\\}', r'\\w+', re.escape(name)), flag)
        for name in re.findall(r"f'(--[^']+)'", source)
    )


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
