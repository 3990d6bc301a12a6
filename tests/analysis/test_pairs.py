"""The base of a run is exactly the base, and both models see the same points."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

import mmpetl
from mmpetl import analysis, apis
from mmpetl.analysis.features import extract_features
from mmpetl.analysis.sources import as_pictures, find_run, prepare
from mmpetl.core import PETLError, base_changes, fingerprint, injection_of

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / 'configs' / 'mini' / 'digits.py'


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    from mmpetl.datasets.mini import make

    root = tmp_path_factory.mktemp('seen')
    make(root, names=['vtab-1k/digits'], size='tiny')
    return root


@pytest.fixture(autouse=True)
def _data(data, monkeypatch):
    monkeypatch.setenv('MMPETL_DATA', str(data))


def config_of(method: dict):
    return apis.load_config(DIGITS, {'model.backbone.method': method})


def a_run(folder: Path, method: dict) -> tuple[Path, torch.nn.Module]:
    """A folder with a config and a delta whose trainable part has moved."""
    config = config_of(method)
    model = apis.init_model(config, device='cpu')
    with torch.no_grad():
        for param in model.parameters():
            if param.requires_grad:
                param += 0.05 * torch.randn(param.shape)
    folder.mkdir(parents=True, exist_ok=True)
    config.dump(str(folder / 'config.py'))
    apis.export_delta(model, config, folder / 'delta')
    return folder, model


@pytest.fixture(scope='module')
def run_folder(tmp_path_factory, data) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('MMPETL_DATA', str(data))
        method = {'type': 'VPTDeep', 'num_tokens': 4}
        return a_run(tmp_path_factory.mktemp('tools') / 'run', method)[0]


METHODS = ({'type': 'BitFit'}, {'type': 'Full'})


@pytest.mark.parametrize('method', METHODS, ids=lambda m: m['type'])
def test_the_base_of_a_pair_is_the_base_to_the_bit(method, tmp_path):
    folder, model = a_run(tmp_path / 'run', method)
    pair = analysis.load_pair(*find_run(folder), device='cpu')
    plain = apis.init_model(config_of({'type': 'LinearProbe'}), device='cpu')
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        base, tuned = pair.base.backbone(x)[0], pair.tuned.backbone(x)[0]
        assert torch.equal(base, plain.backbone(x)[0])
        assert torch.equal(tuned, model.backbone(x)[0])
    assert (base - tuned).abs().max() > 1e-3
    assert pair.name == method['type']


def test_a_model_in_memory_computes_as_its_base_for_a_while():
    x = torch.randn(1, 3, 32, 32)
    plain = tiny.base('mmpretrain_vit')
    want = plain(x)[0]
    model = mmpetl.inject(tiny.base('mmpretrain_vit'), 'BitFit')
    model.eval()
    with torch.no_grad():
        for param in model.parameters():
            if param.requires_grad:
                param += 1
        tuned = model(x)[0]
        with analysis.without_methods(model):
            assert torch.equal(model(x)[0], want)
        assert torch.equal(model(x)[0], tuned)
    full = mmpetl.inject(tiny.base('mmpretrain_vit'), 'Full')
    with pytest.raises(PETLError, match='load the base again'):
        with analysis.without_methods(full):
            pass


def test_a_bare_copy_knows_nothing_of_what_is_switched_off():
    x = torch.randn(1, 3, 32, 32)
    want = tiny.base('mmpretrain_vit')(x)[0]
    model = mmpetl.inject(tiny.base('mmpretrain_vit'), 'BitFit')
    mmpetl.inject(model, 'LoRA')
    model.eval()
    tiny.shake_(model)
    mmpetl.disable(model, '0')
    mmpetl.disable(model, '1')
    with torch.no_grad():
        bare = analysis.bare_copy(model)
        assert torch.equal(bare(x)[0], want)
        # The other way about it keeps what the method has made of the base.
        mmpetl.enable(model, '0')
        tuned = model(x)[0]
        assert not torch.equal(tuned, want)
        assert torch.equal(analysis.bare_copy(model)(x)[0], tuned)
    assert fingerprint(bare) == fingerprint(model)
    assert base_changes(bare) == []


def test_features_are_what_the_head_reads(run_folder, monkeypatch):
    pair = analysis.load_pair(*find_run(run_folder), device='cpu')
    points = analysis.load_points(pair.config, 7, 'test', seed=3)
    (base, tuned), labels = analysis.features_of_points(
        (pair.base, pair.tuned), points, batch_size=3
    )
    samples = [points.dataset[i] for i in points.indices]
    x, views = prepare(pair.tuned, samples)
    assert views == 1
    with torch.no_grad():
        read = pair.tuned.head.pre_logits(pair.tuned.extract_feat(x))
    np.testing.assert_allclose(tuned.final, read, atol=1e-5)
    assert [b.shape for b in base.blocks] == [(7, 96)] * 6
    assert not np.allclose(base.blocks[-1], tuned.blocks[-1])
    # Behind the last block stands what the final norm is given.
    core = pair.tuned.backbone
    with torch.no_grad():
        normed = core.ln1(torch.from_numpy(tuned.blocks[-1]))
    np.testing.assert_allclose(normed, tuned.final, atol=1e-5)
    assert labels.tolist() == [int(s['data_samples'].gt_label) for s in samples]
    assert as_pictures(pair.tuned, x).shape == (7, 32, 32, 3)
    first = samples[0]['inputs'].flip(0).permute(1, 2, 0) / 255
    torch.testing.assert_close(as_pictures(pair.tuned, x)[0], first)
    # A trunk whose statistics are of BGR is fed so, and its input drawn as RGB.
    colours = torch.tensor([1.0, 0.0, -1.0]).view(1, 3, 1, 1).expand_as(x[:1])
    drawn = as_pictures(pair.tuned, colours)
    monkeypatch.setattr(pair.tuned.data_preprocessor, 'to_rgb', False)
    assert torch.equal(as_pictures(pair.tuned, colours), drawn.flip(-1))


def test_points_are_drawn_by_seed():
    config = config_of({'type': 'LinearProbe'})
    first = analysis.load_points(config, 5, 'test', seed=1)
    assert first.indices == analysis.load_points(config, 5, 'test', 1).indices
    assert first.indices != analysis.load_points(config, 5, 'test', 2).indices
    assert len(set(first.indices)) == 5
    assert first.classes[:2] == ('0', '1')


@pytest.mark.parametrize(
    'where', ['mmaction_vit', 'mmaction_swin3d', 'mmpretrain_swin']
)
def test_features_of_other_backbones(where):
    model = mmpetl.inject(tiny.base(where), {'type': 'VPTDeep', 'num_tokens': 3})
    model.eval()
    x = torch.randn(4, *tiny.TINY[where].shape)
    got = extract_features(model, [x[:2], x[2:]], views=2)
    blocks = [s for s in injection_of(model)[1].sites if s.kind == 'block']
    assert [b.shape for b in got.blocks] == [(2, s.in_dims) for s in blocks]
    with torch.no_grad():
        y = model(x)
    y = y[-1] if isinstance(y, tuple) else y
    y = y.flatten(2).mean(-1) if y.ndim > 2 else y
    np.testing.assert_allclose(got.final, y.view(2, 2, -1).mean(1), atol=1e-5)


def test_bad_input_gets_one_line(tmp_path):
    model = mmpetl.inject(tiny.base('timm_vit'), 'LinearProbe')
    with pytest.raises(PETLError, match='ends in a classifier of its own'):
        extract_features(model, [])
    with pytest.raises(PETLError, match='no points to take features of'):
        extract_features(mmpetl.inject(tiny.base('mmpretrain_vit'), 'LoRA'), [])
    config = config_of({'type': 'LinearProbe'})
    with pytest.raises(PETLError, match='--points of at least 1'):
        analysis.load_points(config, 0)
    config.pop('val_dataloader', None)
    with pytest.raises(PETLError, match='no val data set; it has: train, test'):
        analysis.load_points(config, 5, 'val')
    with pytest.raises(PETLError, match='needs a delta beside it'):
        find_run(DIGITS)
    with pytest.raises(PETLError, match='holds 0 configs'):
        find_run(tmp_path)
    (tmp_path / 'config.py').write_text('')
    with pytest.raises(PETLError, match='holds no delta'):
        find_run(tmp_path)


def tool(monkeypatch, name: str, *argv: str) -> None:
    from mmengine.registry import DefaultScope

    DefaultScope._instance_dict.clear()
    monkeypatch.setattr(sys, 'argv', [name, *argv])
    path = ROOT / 'tools' / 'analysis_tools' / f'{name}.py'
    runpy.run_path(str(path), run_name='__main__')


@pytest.mark.parametrize(
    ('name', 'options'),
    [
        ('tsne', ('--perplexity', '3', '--neighbours', '3')),
        ('cka', ()),
        ('effect', ('--points', '4')),
        ('attention', ('--sample', '2')),
    ],
)
def test_a_tool_writes_picture_caption_and_numbers(
    name, options, run_folder, tmp_path, monkeypatch, capsys
):
    out = tmp_path / name
    tool(monkeypatch, name, str(run_folder), '--out', f'{out}.png', *options)
    assert (tmp_path / f'{name}.png').stat().st_size > 5000
    caption = json.loads((tmp_path / f'{name}.json').read_text())
    assert sorted(caption) == ['alt', 'caption', 'section', 'title']
    assert 'VPTDeep' in caption['title']
    numbers = json.loads((tmp_path / f'{name}.numbers.json').read_text())
    assert numbers['method'].startswith('VPTDeep(num_tokens=4')
    if name == 'tsne':
        base = numbers['models']['base']
        places = np.array(base['places'])
        flat = analysis.knn_accuracy(places, np.array(numbers['labels']), 3)
        assert base['picture']['knn'] == pytest.approx(flat, abs=1e-3)
    elif name == 'cka':
        same = np.array(numbers['base_base'])
        np.testing.assert_allclose(np.diag(same), 1, atol=1e-5)
        assert same.shape == (7, 7)
    elif name == 'effect':
        assert numbers['rows'] == ['tokens (added)', 'whole block']
    else:
        tuned = numbers['models']['VPTDeep']['blocks'][0]
        assert tuned['tokens'] == {'class': 1, 'extra': 4, 'added_keys': 0}
        assert np.array(tuned['map_by_head']).shape == (6, 8, 8)


@pytest.mark.parametrize(
    ('name', 'options', 'line'),
    [
        ('tsne', ('--neighbours', '3'), 'perplexity 30 needs more than 30 points'),
        ('attention', ('--blocks', '6'), 'no block 6; the backbone has blocks 0 to 5'),
        ('effect', ('--out', 'a.jpg'), 'pictures are written as .png'),
    ],
)
def test_bad_input_to_a_tool(name, options, line, run_folder, monkeypatch, capsys):
    with pytest.raises(SystemExit) as info:
        tool(monkeypatch, name, str(run_folder), *options)
    assert info.value.code == 1
    errors = [x for x in capsys.readouterr().err.splitlines() if 'error: ' in x]
    assert len(errors) == 1
    assert line in errors[0]
