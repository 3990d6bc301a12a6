"""A run on own pictures, used: found by its names, predicted, a model of timm again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import timm
import torch
from mmengine.registry import MODELS
from painted import COLOURS, paint
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

import mmpetl.models  # noqa: F401  registers TimmBackbone
from mmpetl.apis import fold_checkpoint, init_model, load_line, open_run, predict_image
from mmpetl.apis.timm_folding import as_timm
from mmpetl.core import PETLError
from mmpetl.own import prepare, train_own


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """LoRA on a ViT of timm that crops, from a file named below the working folder."""
    folder = tmp_path_factory.mktemp('used')
    torch.save(timm.create_model('test_vit').state_dict(), folder / 'mine.pth')
    before = Path.cwd()
    os.chdir(folder)
    try:
        task = prepare(
            paint(folder / 'colours', 5),
            backbone='timm/test_vit',
            weights='mine.pth',
            epochs=1,
            augmentation='none',
        )
        return train_own(task, 'lora')
    finally:
        os.chdir(before)


def scores(name: Path, picture: Path) -> dict[str, float]:
    found = open_run(name)
    model = init_model(found.config, found.weights, 'cpu')
    return {one.name: one.score for one in predict_image(model, picture)}


def test_folder_config_and_delta_name_one_run(run, tmp_path, monkeypatch):
    """From anywhere, though the file of the base has no name that is looked for."""
    monkeypatch.chdir(tmp_path)
    folder, picture = run.task.folder, run.task.root / 'red' / '00.png'
    folder = run.task.root.parent / folder
    names = (folder, folder / run.config.name, folder / run.delta.name)
    one, *others = (scores(name, picture) for name in names)
    assert one.keys() == COLOURS.keys()
    assert all(other == one for other in others)


def test_a_delta_of_a_drawn_base_draws_it_again(tmp_path, monkeypatch):
    import json

    from mmpetl.apis import export_delta

    monkeypatch.chdir(tmp_path)
    task = prepare(
        paint(tmp_path / 'colours', 5),
        backbone='timm/test_vit',
        weights='random',
        size=32,
        epochs=1,
        seed=7,
        augmentation='none',
    )
    run = train_own(task, 'lora')
    picture = task.root / 'red' / '00.png'
    wanted = scores(task.folder, picture)
    alone = export_delta(run.delta, open_run(task.folder).config, tmp_path / 'a' / 'b')
    again = export_delta(alone, open_run(alone).config, tmp_path / 'c' / 'd')
    for delta in (run.delta, alone, again):
        assert json.loads(delta.with_suffix('.json').read_text())['seed'] == 7
        assert scores(delta, picture) == wanted
    record = alone.with_suffix('.json')
    record.write_text(record.read_text().replace('"seed": 7', '"seed": -7'))
    with pytest.raises(PETLError, match='seed'):
        open_run(alone)


def test_a_delta_of_a_file_says_no_seed(run):
    record = run.task.root.parent / run.delta.with_suffix('.json')
    assert 'seed' not in record.read_text()


def test_a_name_of_timm_alone_proposes_the_one_to_write(tmp_path):
    with pytest.raises(PETLError, match=r"\(Did you mean 'timm/test_vit'\?\)"):
        prepare(paint(tmp_path / 'colours', 5), backbone='test_vit')


def test_a_delta_is_tested_as_its_folder_is(run, tmp_path, monkeypatch, capsys):
    import json

    from mmpetl.cli.commands import test as command

    monkeypatch.chdir(tmp_path)
    folder = run.task.root.parent / run.task.folder
    for number, name in enumerate((folder, folder / run.delta.name)):
        command.main([str(name), '--out', f'{number}.json', '--device', 'cpu'])
    one, other = (json.loads(Path(f'{n}.json').read_text()) for n in range(2))
    assert other == {key: one[key] for key in one if not key.startswith('PPT/')}
    assert other['accuracy/top1'] == pytest.approx(run.record.score)


@pytest.mark.parametrize(
    ('change', 'taken'),
    [
        ({}, True),
        ({'model.backbone.method.rank': 2}, False),
        ({'test_dataloader.dataset.pipeline': [{'type': 'LoadImageFromFile'}]}, False),
        ({'test_dataloader': []}, False),
        ({'test_dataloader.dataset.pipeline': [3]}, False),
        ({'test_dataloader': [{'dataset': {'type': 'OwnPictures'}}]}, False),
    ],
)
def test_a_config_that_merely_lies_beside_is_not_that_of_a_delta(
    run, tmp_path, monkeypatch, change, taken
):
    from mmengine.config import Config

    from mmpetl.config.nodes import test_pipeline as steps_of

    monkeypatch.chdir(run.task.root.parent)
    config = Config.fromfile(run.config)
    wanted = steps_of(config)
    for key, value in change.items():
        *inner, last = key.split('.')
        node = config
        for name in inner:
            node = node[name]
        node[last] = value
    for suffix in ('json', 'safetensors'):
        shutil.copy(run.delta.with_suffix(f'.{suffix}'), tmp_path / f'delta.{suffix}')
    config.dump(tmp_path / 'config.py')
    found = open_run(tmp_path / 'delta.safetensors').config
    assert ('test_dataloader' in found) is taken
    assert [step['type'] for step in steps_of(found)] == [s['type'] for s in wanted]


def test_a_loader_that_is_no_dict_is_one_line():
    from mmpetl.config.nodes import datasets_of, find_dataset

    config = {'test_dataloader': [{'dataset': {}}]}
    for read in (lambda: find_dataset(config), lambda: datasets_of(config, 'test')):
        with pytest.raises(PETLError, match='test_dataloader is a list, expected a d'):
            read()


def test_folded_it_is_a_model_of_timm(run, tmp_path, monkeypatch):
    monkeypatch.chdir(run.task.root.parent)
    picture = run.task.root / 'green' / '01.png'
    wanted = scores(run.task.folder, picture)
    found = open_run(run.task.folder)
    out, config = fold_checkpoint(found.config, found.weights, tmp_path / 'mine.pth')
    assert config is None
    model = eval(load_line(found.config.model, out), {'timm': timm}).eval()
    transform = create_transform(**resolve_model_data_config(model))
    with Image.open(picture) as opened, torch.no_grad():
        got = model(transform(opened)[None])[0].softmax(0)
    for name, score in zip(run.task.splits.classes, got.tolist(), strict=True):
        assert score == pytest.approx(wanted[name], abs=1e-5)


def test_several_runs_in_a_folder_are_named(run, tmp_path):
    for name in ('lora', 'ssf'):
        (tmp_path / f'{name}.py').write_text('')
    with pytest.raises(PETLError, match=r'holds 2 configs: lora\.py, ssf\.py; one is'):
        open_run(tmp_path)
    with pytest.raises(PETLError, match=r'no delta lora\.safetensors beside it'):
        open_run(tmp_path / 'lora.py')


def test_the_page_needs_no_checkout(run):
    from mmpetl.own import write_page

    assert '<code>mmpetl predict ' in write_page(run).read_text(encoding='utf-8')


def classifier(name: str) -> dict:
    trunk = {'type': 'mmpetl.TimmBackbone', 'model_name': name}
    width = MODELS.build(trunk).feature_dims
    head = {'type': 'mmpretrain.LinearClsHead', 'num_classes': 3, 'in_channels': width}
    return {'type': 'mmpretrain.ImageClassifier', 'backbone': trunk, 'head': head}


@pytest.mark.parametrize('name', ['test_convnext', 'test_resnet', 'test_efficientnet'])
def test_a_head_is_the_classifier_of_timm(name):
    model = classifier(name)
    built = MODELS.build(model).eval()
    torch.nn.init.normal_(built.head.fc.weight)
    model['head']['type'] = 'LinearClsHead'
    plain = timm.create_model(name, num_classes=3).eval()
    plain.load_state_dict(as_timm(built.state_dict(), model))
    x = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(plain(x), built(x, mode='tensor'))


def test_a_model_of_two_classifiers_is_refused():
    model = classifier('deit_tiny_distilled_patch16_224')
    model['head']['type'] = 'LinearClsHead'
    with torch.device('meta'):
        built = timm.create_model(model['backbone']['model_name'], num_classes=0)
    state = {f'backbone.timm_model.{k}': v for k, v in built.state_dict().items()}
    state['head.fc.weight'] = torch.zeros(3, 192)
    with pytest.raises(PETLError, match='has no single linear classifier'):
        as_timm(state, model)
