"""The command itself: help, completion, wrong words, and what flags ask for."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from mmpetl.cli import launch
from mmpetl.cli.groups import FolderGroup, ModuleCommand
from mmpetl.cli.main import mmpetl as command
from mmpetl.config.compose import compose
from mmpetl.core import PETLError


def call(*argv: str) -> tuple[int, str]:
    done = CliRunner().invoke(command, argv, prog_name='mmpetl')
    return done.exit_code, done.output


def commands(group: FolderGroup, *path: str) -> dict[tuple[str, ...], ModuleCommand]:
    found = {}
    ctx = click.Context(group)
    for name in group.list_commands(ctx):
        inner = group.get_command(ctx, name)
        if isinstance(inner, FolderGroup):
            found |= commands(inner, *path, name)
        else:
            found[(*path, name)] = inner
    return found


@pytest.mark.parametrize('path', commands(command), ids=' '.join)
def test_every_command_has_help_with_an_example_that_it_parses(path):
    assert commands(command)[path].get_short_help_str()
    code, text = call(*path, '--help')
    words = ' '.join(('mmpetl', *path))
    assert code == 0
    assert text.startswith(f'usage: {words}')
    described = text.partition('\n\n')[2]
    assert f'    {words}' in described or f': {words}' in described


@pytest.mark.parametrize('argv', [(), ('train',), ('test',), ('predict',), ('fold',)])
def test_help_needs_no_torch(argv):
    code = (
        'import sys, runpy\n'
        f'sys.argv = ["mmpetl", *{argv!r}, "--help"]\n'
        'try:\n    runpy.run_module("mmpetl", run_name="__main__")\n'
        'except SystemExit as end:\n    assert not end.code\n'
        'assert not {"torch", "mmengine", "numpy"} & sys.modules.keys()\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'Example' in done.stdout


@pytest.mark.parametrize(
    ('argv', 'words'),
    [
        (('trian',), "has no command 'trian'. Did you mean 'train'?"),
        (('data', 'convert', 'vok'), "Did you mean 'voc'?"),
        (('--fast',), '--fast'),
        (('train', 'x', '--lrr', '1'), 'did you mean --lr?'),
        (('train-own', 'lora', '.', '--rank', '4'), 'go behind --method-options'),
        (('train-own', '.', 'lora'), 'the method comes first: lora .'),
        (('train',), 'required: WHAT'),
        (('train', 'x', '--method', 'rank=2'), '--method LoRA rank=2'),
        (('train', 'x', '--gpus', '0'), 'at least 1'),
        (('predict', 'run', 'a.png', 'b.png', '--out', 'c.png'), '--out names one'),
    ],
)
def test_wrong_words_get_one_line(argv, words):
    code, text = call(*argv)
    assert code == 2
    (line,) = text.splitlines()
    assert line.startswith('error: ')
    assert words in line


def test_files_of_several_pictures_get_names_of_their_own(tmp_path, monkeypatch):
    from mmpetl.cli.commands.predict import files_of, stems_of

    monkeypatch.chdir(tmp_path)
    for name in ('a/1.png', 'a/2.jpg', 'b/c/1.png', 'b/note.txt'):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    files = files_of(['a', 'b', 'film.mp4'])
    assert [f.as_posix() for f in files][2:] == ['b/c/1.png', 'film.mp4']
    assert stems_of(files) == ['a_1_png', '2', 'b_c_1_png', 'film']
    (tmp_path / 'empty').mkdir()
    with pytest.raises(PETLError, match='empty holds no picture'):
        files_of(['empty'])


def test_a_config_of_the_checkout_is_named_as_it_is_from_anywhere(
    tmp_path, monkeypatch
):
    from mmpetl.config.load import load_config

    monkeypatch.chdir(tmp_path)
    for name in ('mini/digits.py', 'lora/vtab/svhn.py'):
        with pytest.raises(PETLError, match=f'of that name: mmpetl::{name}$'):
            load_config(f'configs/{name}')


def test_a_package_that_is_not_installed_is_named_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmpetl.config.asked', None)
    code, text = call('train', 'lora', 'mini/digits')
    assert code == 1
    (line,) = text.splitlines()
    assert line.startswith("error: the package 'mmpetl.config.asked' is not installed")
    assert 'mmpetl doctor' in line


def completed(line: str) -> set[str]:
    *words, last = line.split(' ')
    return {
        item.value
        for item in ShellComplete(command, {}, 'mmpetl', '_X').get_completions(
            words, last
        )
    }


def test_a_shell_completes_commands_flags_values_and_names():
    assert completed('tr') == {'train', 'train-own'}
    assert completed('benchmark st') == {'status'}
    assert '--published-settings' in completed('train lora --pub')
    assert completed('train lora x --protocol h') == {'honest'}
    assert completed('train lora vtab/cifar') == {'vtab/cifar100'}
    assert 'zoo/digits_lora' in completed('predict zoo/')
    assert completed('zoo show digits_l') == {'digits_lora'}
    assert completed('train x --method vpt_') == {'vpt_deep', 'vpt_shallow'}
    assert {'mini/digits', 'mini/hmdb51'} <= completed('recipes mini/')


@pytest.fixture
def asked(monkeypatch):
    """``asked(*argv)`` is the config that ``mmpetl train`` would train."""
    kept = []
    monkeypatch.setattr('mmpetl.apis.run.train', lambda c, **_: kept.append(c))

    def ask(*argv: str):
        code, text = call('train', *argv)
        assert code == 0, text
        return kept.pop()

    return ask


def test_a_method_and_a_recipe_are_composed(asked):
    wanted = compose('mini/digits', {'type': 'LoRA', 'rank': 16})
    found = asked('lora', 'mini/digits', '--method-options', 'rank=16')
    assert found.to_dict() == wanted.to_dict()
    assert found.work_dir == 'work_dirs/lora/mini/digits'
    several = asked('lora+vpt_deep', 'mini/digits', '--method-options', '0.rank=2')
    assert [m['type'] for m in several.model.backbone.method] == ['LoRA', 'VPTDeep']
    probe = asked('mini/digits')
    assert probe.model.backbone.method.type == 'LinearProbe'
    leaf = asked('ssf', 'vtab/svhn', '--published-settings')
    assert leaf.to_dict() == compose('vtab/svhn', 'SSF', leaf=True).to_dict()
    assert leaf.to_dict() != compose('vtab/svhn', 'SSF').to_dict()


def test_features_are_stored_where_that_is_asked_for(asked):
    probe = ('linear_probe', 'mini/digits')
    assert 'cache_features' not in asked(*probe)
    assert asked(*probe, '--cache-features').cache_features is True
    found = asked(*probe, '--cache-features', '2.5')
    assert found.cache_features == {'limit_gib': 2.5}


def test_a_config_takes_a_method_and_a_rate(asked):
    path = 'mmpetl::mini/digits.py'
    found = asked(path, '--method', 'LoRA', 'rank=16', '--lr', '1e-2')
    assert found.model.backbone.method == {'type': 'LoRA', 'rank': 16}
    assert found.optim_wrapper.optimizer.lr == 1e-2
    assert found.work_dir == 'work_dirs/lora/mini/digits'
    shipped = 'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py'
    for argv in ((shipped, '--petl', 'LoRA'), ('lora', shipped)):
        found = asked(*argv, '--base', 'swin.pth')
        assert (found.model.type, found.model.base) == ('mmpetl.PETLModel', 'swin.pth')


@pytest.mark.parametrize(
    ('argv', 'words'),
    [
        (('lora', 'vtab/cifar10'), "Did you mean 'vtab/cifar100'?"),
        (('lara', 'vtab/cifar100'), "Did you mean 'LoRA'?"),
        (('lora', 'vtab/cifar100', '--method', 'SSF'), 'named twice'),
        (('a', 'b', 'c'), '3 names are given'),
        (('mmpetl::lora/vtab/svhn.py', '--method', 'SSF'), 'tunes its model already'),
        (('mmpetl::mini/digit.py',), 'there is no config'),
        (('mmpetl::mini/digits.py', '--published-settings'), 'a config'),
    ],
)
def test_what_cannot_be_asked_for_gets_one_line(argv, words):
    code, text = call('train', *argv)
    assert code == 1
    (line,) = (x for x in text.splitlines() if 'error: ' in x)
    assert words in line


def test_several_gpus_are_processes_of_the_same_command(monkeypatch):
    started = []
    monkeypatch.setattr(os, 'execv', lambda *a: started.append(a) or sys.exit(0))
    monkeypatch.setenv('PORT', '29511')
    argv = ('mona', 'ade20k', '--gpus', '8')
    assert call('train', *argv)[0] == 0
    ((program, words),) = started
    assert program == words[0] == sys.executable
    assert {'--nproc_per_node=8', '--master_port=29511'} <= {*words}
    at = words.index('mmpetl')
    assert words[at + 1 :] == ['train', *argv, '--launcher', 'pytorch']
    # In the processes the flag starts nothing more.
    parser = importlib.import_module('mmpetl.cli.commands.train').make_parser()
    assert parser.parse_args(words[at + 2 :]).launcher == 'pytorch'
    assert launch.torchrun(2, 'test', ['run'])[-4:] == [
        *('test', 'run', '--launcher', 'pytorch')
    ]
