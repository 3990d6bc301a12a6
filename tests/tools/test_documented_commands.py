"""Commands in the guides exist: the tools, their flags, and the configs they name."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GUIDES = (
    'docs/getting_started.md',
    'docs/own_pictures.md',
    'docs/tools.md',
    'docs/upstream_configs.md',
    'docs/weights.md',
)
SHARED = ROOT / 'mmpetl' / 'datasets' / 'convert' / 'cli.py'


def commands() -> list[str]:
    found = []
    for guide in GUIDES:
        text = (ROOT / guide).read_text(encoding='utf-8')
        found += re.findall(r'(?m)^(python (?:tools|demo)/\S+.*)$', text)
        found += re.findall(r'`(python (?:tools|demo)/[^`]+)`', text)
    return sorted(set(found))


@pytest.mark.parametrize('command', commands())
def test_a_documented_command_exists(command):
    _, script, *words = shlex.split(command)
    path = ROOT / script
    assert path.is_file()
    source = path.read_text(encoding='utf-8')
    if 'parser_for(' in source:
        source += SHARED.read_text(encoding='utf-8')
    for word in words:
        if word.startswith('--'):
            assert f"'{word}'" in source or _is_built(word, source), word


def _is_built(flag: str, source: str) -> bool:
    """``--train-csv`` is added as ``f'--{split}-csv'``."""
    return any(
        re.fullmatch(re.sub(r'\\\{\w+\\\}', r'\\w+', re.escape(name)), flag)
        for name in re.findall(r"f'(--[^']+)'", source)
    )


def test_documented_configs_and_their_checkpoints_are_what_runs_make():
    from mmpetl.apis import load_config

    text = '\n'.join(commands())
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
