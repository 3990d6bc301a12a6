"""A run knows its config: trained, tested, published, predicted and folded by name."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from mmengine.config import Config
from mmengine.registry import DefaultScope
from workbench import Workbench

from mmpetl import apis
from mmpetl.cli.commands.weights import read_off
from mmpetl.cli.main import mmpetl as command
from mmpetl.config.names import config_root
from mmpetl.core import PETLError
from mmpetl.registry import METHODS


@pytest.fixture
def call(tmp_path, monkeypatch):
    """``call(*argv)`` runs a command in a folder of its own; its output."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: object, code: int = 0) -> str:
        DefaultScope._instance_dict.clear()
        done = CliRunner().invoke(command, [*map(str, argv)], prog_name='mmpetl')
        assert done.exit_code == code, (done.output, done.exception)
        return done.output

    return run


@pytest.fixture
def picture(tmp_path) -> Path:
    from PIL import Image

    path = tmp_path / 'picture.png'
    pixels = np.random.RandomState(0).randint(0, 255, (40, 52, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def scores(text: str) -> list[str]:
    return [line for line in text.splitlines() if '%' in line]


def test_from_training_to_a_folded_model_by_the_names_of_files(
    call, tmp_path, monkeypatch
):
    from mmpetl.datasets.mini import make

    data = tmp_path / 'data'
    make(data, names=['vtab-1k/digits'], size='tiny')
    monkeypatch.setenv('MMPETL_DATA', str(data))
    quiet = ('--cfg-options', 'log_level=ERROR', 'train_cfg.max_epochs=1')
    call('train', 'lora', 'mini/digits', '--method-options', 'rank=2', *quiet)
    run = Path('work_dirs/lora/mini/digits')
    argv = ('test', run / 'epoch_1.pth', '--out', 'metrics.json', '--work-dir', 'to')
    call(*argv, '--cfg-options', 'log_level=ERROR')
    assert 0 <= json.loads(Path('metrics.json').read_text())['accuracy/top1'] <= 100
    assert 'digits_lora.safetensors' in call('publish', run, 'deltas/digits_lora')
    delta = Path('deltas/digits_lora.safetensors')
    picture = next((data / 'vtab-1k/digits/images/test').iterdir())
    shown = [scores(call('predict', name, picture)) for name in (run, delta)]
    assert shown[0] == shown[1]
    assert len(shown[0]) == 5
    assert Path(f'{picture.stem}_image.png').is_file()
    call('fold', run, 'folded/run.pth')
    call('fold', delta, 'folded/delta.pth')
    one, other = (
        torch.load(f'folded/{name}.pth')['state_dict'] for name in ('run', 'delta')
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    # Without mmpetl in it, and with the same answers.
    plain = apis.init_model(Config.fromfile('folded/run.py'), 'folded/run.pth', 'cpu')
    best = apis.predict_image(plain, picture)
    assert [f'{100 * p.score:5.1f}%  {p.name}' for p in best] == shown[0]
    line = call('test', delta, code=1).splitlines()[-1]
    assert 'has no test_dataloader' in line
    looked_at(call, run, delta, metrics=json.loads(Path('metrics.json').read_text()))


def looked_at(call, run: Path, delta: Path, metrics: dict[str, float]) -> None:
    """What is asked of a config is asked of a run, by any of its three names."""
    names = (run, run / 'epoch_1.pth', delta)
    found = [
        json.loads(call('analyse', 'flops', name, '--json').splitlines()[-1])
        for name in names
    ]
    # Six blocks, queries and values, A and B of rank 2 and width 96; the head.
    assert found[0]['trainable'] == 6 * 2 * 2 * 2 * 96 + 97 * 10
    assert found[0] == found[1] == found[2]
    for name in names:
        assert '4,608' in call('analyse', 'count', name).splitlines()[-1]
        assert 'rank=2' in call('config', name)
    quiet = ('--cfg-options', 'log_level=ERROR')
    for name in names[:2]:
        said = call('analyse', 'confusion', name, '--out', 'wrong.png', *quiet)
        right, _, total = said.splitlines()[-1].split()[:3]
        assert 100 * int(right) / int(total) == pytest.approx(metrics['accuracy/top1'])
    assert len(Path('wrong.csv').read_text().splitlines()) == 11
    said = call('analyse', 'schedule', run, '--out', 'rates.png', *quiet)
    assert said.splitlines()[-1] == 'picture: rates.png'
    drawn = call('analyse', 'browse', run, '--number', 1, '--out-dir', 'drawn')
    assert '1 pictures: drawn' in drawn
    assert 'loss' in call('analyse', 'logs', run)
    line = call('analyse', 'confusion', delta, code=1).splitlines()[-1]
    assert 'has no test_dataloader' in line
    line = call('analyse', 'flops', run, '--method', 'SSF', code=1).splitlines()[-1]
    assert 'is a run, which has its method' in line
    line = call('config', run, '--stage', 'tune', code=1).splitlines()[-1]
    assert '--stage is for another config' in line


def test_a_recipe_comes_before_a_folder_of_its_name(tmp_path, monkeypatch):
    from mmpetl.apis.runs import is_run

    monkeypatch.chdir(tmp_path)
    Path('mini/digits').mkdir(parents=True)
    Path('mini/mine').mkdir()
    assert not is_run('mini/digits')
    assert not is_run('configs/mini/digits.py')
    assert not is_run('mmpetl::mini/digits.py')
    assert is_run('mini/mine')
    assert is_run('epoch_1.pth')
    assert is_run('zoo/digits_lora')


def test_a_method_that_cannot_be_where_a_task_lies_says_so(call, picture):
    bench = Workbench(picture.parent)
    config = bench.config({'type': 'SSF'})
    delta = apis.export_delta(bench.tuned(config), config, picture.parent / 'ants')
    line = call('predict', delta, picture, '--config', config, '--opacity', 1, code=1)
    assert 'models of mmpretrain take no opacity; they take topk' in line


def test_a_toolbox_that_is_not_installed_is_named(call, monkeypatch):
    from mmpetl.apis.run import build_runner

    monkeypatch.setitem(sys.modules, 'mmaction.registry', None)
    config = Config({'default_scope': 'mmaction', 'work_dir': 'x'})
    with pytest.raises(PETLError, match="needs the package 'mmaction'.*mmpetl doctor"):
        build_runner(config, check_data=())


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ("model = dict(type='os.system', command='x')", 'would be imported'),
        ("import os\nmodel = dict(type='ImageClassifier')", 'does not say which model'),
        ("default_scope = 'os'\nmodel = dict(type='A')", "default_scope is 'os'"),
        (
            "model = dict(type='ImageClassifier')\n"
            "test_dataloader = dict(collate_fn='os.system')",
            'collate_fn',
        ),
        ('', 'does not say which model'),
    ],
)
def test_a_checkpoints_config_is_data_and_no_more(text, words, tmp_path):
    path = tmp_path / 'run.pth'
    torch.save({'meta': {'cfg': text}, 'state_dict': {}}, path)
    with pytest.raises(PETLError, match=words) as raised:
        apis.open_run(path)
    assert str(path) in str(raised.value)


def test_operators_of_detectors_are_data():
    from mmpetl.apis.runs import as_data_config

    roi = {'roi_layer': {'type': 'RoIAlign'}, 'nms': {'type': 'soft_nms'}}
    known = {'model': {'type': 'FasterRCNN', 'roi_head': roi}}
    known['default_scope'] = 'mmdet'
    assert as_data_config(known, Path('run.pth')).model.roi_head == roi
    for name in roi:  # mmcv evaluates the name of a suppression
        wrong = {'model': {'roi_head': {name: {'type': 'exit()'}}}}
        with pytest.raises(PETLError, match='no package has registered'):
            as_data_config({**wrong, 'default_scope': 'mmdet'}, Path('run.pth'))


@pytest.mark.parametrize(
    ('scope', 'words'),
    [
        ('mmpretrain', None),
        ('mmdet', "'ImageClassifier', which no package"),
        ('os', 'model._scope_ can import code'),
    ],
)
def test_a_toolbox_that_a_config_inherits_from_is_a_scope_of_data(scope, words):
    from mmpetl.apis.runs import as_data_config

    known = {'model': {'_scope_': scope, 'type': 'ImageClassifier'}}
    if words is None:
        assert as_data_config(known, Path('run.pth')).model._scope_ == scope
        return
    with pytest.raises(PETLError, match=words):
        as_data_config(known, Path('run.pth'))


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'embed_dims': 16_000}, 'out of proportion'),
        ({'num_layers': 10_000}, 'out of proportion|more than 20,000 modules'),
        ({'num_heads': 'x'}, 'cannot be built'),
    ],
)
def test_a_model_that_a_delta_describes_is_in_proportion(
    change, words, tmp_path, monkeypatch
):
    bench = Workbench(tmp_path)
    config = bench.config({'type': 'BitFit'})
    delta = apis.export_delta(bench.tuned(config), config, tmp_path / 'ants')
    with pytest.raises(PETLError, match=r'on the base base\.pth, and there is no'):
        apis.open_run(delta)
    monkeypatch.setenv('MMPETL_WEIGHTS', str(tmp_path))
    assert apis.open_run(delta).weights == delta
    facts = json.loads(delta.with_suffix('.json').read_text())
    # JSON has no tuples, and mmcv takes no list for a size.
    facts['preprocessing'] = [{'type': 'Resize', 'scale': [8, 6], 'of': [['a']]}]
    delta.with_suffix('.json').write_text(json.dumps(facts))
    (step,) = apis.open_run(delta).config.test_pipeline
    assert (step.scale, step.of) == ((8, 6), [['a']])
    facts['model']['backbone']['backbone']['arch'].update(change)
    delta.with_suffix('.json').write_text(json.dumps(facts))
    with pytest.raises(PETLError, match=words) as raised:
        apis.open_run(delta)
    assert str(delta) in str(raised.value)


OWN = """
from mmpetl.methods.lora import LoRA
from mmpetl.registry import METHODS

@METHODS.register_module(force=True)
class OwnLoRA(LoRA):
    pass
"""


def test_a_command_takes_what_the_config_imports_and_names(tmp_path, monkeypatch):
    from mmpetl.config.asked import asked_config

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path('own_lora_of_test.py').write_text(OWN)
    Path('mine.py').write_text(
        "custom_imports = dict(imports=['own_lora_of_test'])\n"
        "init = dict(type='Pretrained', checkpoint='old.pth')\n"
        "model = dict(type='A', backbone=dict(type='B', init_cfg=init))\n"
    )
    try:
        config = asked_config(['mine.py'], 'OwnLoRA', {'rank': 2})
        assert config.model.petl == {'type': 'OwnLoRA', 'rank': 2}
        assert config.custom_imports.imports == ['mmpetl', 'own_lora_of_test']
    finally:
        METHODS.module_dict.pop('OwnLoRA', None)
    for options in (
        {'load_from': 'new.pth'},
        {'model.backbone.init_cfg.checkpoint': 'new.pth'},
    ):
        config = asked_config(['mine.py'], 'LoRA', options=options)
        assert (config.model.base, config.get('load_from')) == ('new.pth', None)
    for what, words in (
        (['mine.py', 'lora'], r'stands in front of it: lora mine\.py'),
        (['mine'], r"there is no recipe 'mine'|no config mine.*'mine.py'"),
        (['mmpretrain::vit-base-p16_64xb64_in1k.py'], "'vision_transformer/vit-base-p"),
    ):
        with pytest.raises(PETLError, match=words):
            asked_config(what, 'LoRA' if len(what) == 1 else None)


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='name the folder of a run'):
        apis.open_run(tmp_path / 'nowhere')
    with pytest.raises(PETLError, match='holds 0 configs'):
        apis.open_run(tmp_path)


@pytest.mark.parametrize(
    ('argv', 'words'),
    [
        (
            ['mini/digits', '--methods', 'LoRA'],
            '--methods says nothing beside',
        ),
        (['mini/digits', '--backbones', 'vit_b16'], '--backbones says nothing beside'),
        (['--method', 'LoRA'], '--method says nothing without a config'),
        (['--methods', 'LoRA', '--cfg-options', 'a=1'], '--cfg-options says nothing'),
    ],
)
def test_counting_reads_every_flag_or_refuses_it(call, argv, words):
    assert words in call('analyse', 'count', *argv, code=2)


def test_a_file_that_is_written_last_is_looked_at_first(call, tmp_path):
    """Its folder is made; where there can be none, nothing is computed before."""
    (tmp_path / 'file').write_text('')
    for argv in (['analyse', 'count', 'mini/digits'], ['test', 'zoo/digits_lora']):
        said = call(*argv, '--out', tmp_path, code=1)
        assert said.strip().endswith('is a folder; name a file in it')
        said = call(*argv, '--out', tmp_path / 'file' / 'm.json', code=1)
        assert said.startswith('error: [Errno')
    out = tmp_path / 'new' / 'm.json'
    call(
        'analyse', 'count', '--methods', 'LoRA', '--backbones', 'vit_b16', '--out', out
    )
    assert [row['method'] for row in json.loads(out.read_text())] == ['LoRA']


def test_weights_of_a_whole_model_are_those_of_its_base():
    path = config_root() / 'upstream' / 'ade20k_upernet_dinov2' / 'lora.py'
    (known,) = read_off(str(path))
    assert known.name == 'dinov2_vitl14_pretrain.pth'
