"""Folding into a base's state dict gives what folding the built model gives."""

from __future__ import annotations

import json

import pytest
import torch

from mmpetl import apis
from mmpetl.config.scope import build_backbone
from mmpetl.core import PETLError, delta_state
from mmpetl.engine.hooks.delta_checkpoint import delta_meta

SWIN = {
    'type': 'mmpretrain.SwinTransformer',
    'arch': {'embed_dims': 16, 'depths': [2, 2], 'num_heads': [2, 4]},
    'patch_size': 4,
    'window_size': 4,
    'out_indices': (1,),
    'img_size': 32,
}


def whole(bench, config, path):
    """The state of the folded model, built in full."""
    checkpoint, _ = apis.fold_checkpoint(config, path, bench.folder / 'whole.pth')
    return torch.load(checkpoint, weights_only=True)['state_dict']


@pytest.mark.parametrize(
    ('method', 'backbone'),
    [
        ({'type': 'LoRA', 'rank': 2}, {}),
        ({'type': 'SSF'}, {}),
        ({'type': 'BitFit'}, {}),
        ({'type': 'LoRA', 'rank': 2}, {'type': 'VisionTransformer'}),
        ({'type': 'FacTTT', 'rank': 2}, {}),
        ([{'type': 'LoRA', 'rank': 2, 'blocks': [1]}, {'type': 'SSF'}], {}),
    ],
    ids=['LoRA', 'SSF', 'BitFit', 'unscoped', 'shared', 'recipe'],
)
def test_it_equals_folding_the_built_model(bench, method, backbone):
    base = bench.base('own')
    config = bench.config(method, base, **backbone)
    delta = apis.export_delta(bench.tuned(config), config, bench.folder / 'delta')
    wanted = whole(bench, config, delta)
    weights = torch.load(base, weights_only=True)
    kept = {k: v.clone() for k, v in weights.items()}
    got = apis.fold_state_dict(delta, weights)
    assert set(got) == set(wanted)
    for key, value in wanted.items():
        torch.testing.assert_close(got[key], value, rtol=0, atol=1e-6)
    assert all(torch.equal(weights[k], v) for k, v in kept.items())
    assert any(not torch.equal(got[f'backbone.{k}'], v) for k, v in kept.items())
    # A base that is called as in the model serves as well.
    named = {f'backbone.{k}': v for k, v in weights.items()}
    assert set(apis.fold_state_dict(delta, named)) == set(wanted)


def test_indices_that_a_base_does_not_hold_are_left_out(bench):
    own = build_backbone(SWIN).state_dict()
    base = {k: torch.randn_like(v) * 0.1 for k, v in own.items() if 'index' not in k}
    assert set(base) < set(own)
    torch.save(base, bench.folder / 'swin.pth')
    plain = apis.load_config(bench.config({'type': 'SSF'}, bench.folder / 'swin.pth'))
    plain.model.backbone.backbone = SWIN
    config = bench.folder / 'swin.py'
    plain.dump(config)
    delta = apis.export_delta(bench.tuned(config), config, bench.folder / 'delta')
    got, wanted = apis.fold_state_dict(delta, base), whole(bench, config, delta)
    assert {k for k in wanted if k not in got} == {
        f'backbone.{k}' for k in own if 'index' in k
    }
    for key, value in got.items():
        torch.testing.assert_close(value, wanted[key], rtol=0, atol=1e-6)


def test_what_trains_with_the_head_need_not_be_in_the_base(bench):
    config = bench.config({'type': 'LoRA', 'rank': 2})
    text = config.read_text()
    config.write_text(
        text.replace('        method=', "        head=['ln1'],\n        method=")
    )
    delta = apis.export_delta(bench.tuned(config), config, bench.folder / 'delta')
    base = torch.load(bench.folder / 'base.pth', weights_only=True)
    less = {k: v for k, v in base.items() if not k.startswith('ln1.')}
    got, wanted = apis.fold_state_dict(delta, less), whole(bench, config, delta)
    assert set(got) == set(wanted)
    for key, value in wanted.items():
        torch.testing.assert_close(got[key], value, rtol=0, atol=1e-6)


@pytest.fixture
def folded(bench):
    """Config, base and delta of a tuned model."""
    config = bench.config({'type': 'LoRA', 'rank': 2})
    model = bench.tuned(config)
    path = apis.export_delta(model, config, bench.folder / 'delta')
    return config, bench.folder / 'base.pth', path, model


def test_neither_head_nor_model_is_built(bench, folded):
    _, base, path, _ = folded
    facts = path.with_suffix('.json')
    record = json.loads(facts.read_text())
    record['model'] |= {'type': 'NoSuchModel', 'head': {'type': 'NoSuchHead'}}
    facts.write_text(json.dumps(record))
    got = apis.fold_state_dict(path, torch.load(base, weights_only=True))
    assert 'head.fc.weight' in got


def test_a_runs_checkpoint_folds_too(bench, folded):
    config, base, path, model = folded
    content = {'meta': {'mmpetl': delta_meta(model)}, 'state_dict': delta_state(model)}
    torch.save(content, bench.folder / 'epoch_1.pth')
    weights = torch.load(base, weights_only=True)
    got = apis.fold_state_dict(bench.folder / 'epoch_1.pth', weights)
    for key, value in apis.fold_state_dict(path, weights).items():
        assert torch.equal(got[key], value), key


def test_what_does_not_fit_is_refused(bench, folded):
    _, base, path, _ = folded
    weights = torch.load(base, weights_only=True)
    other = {k: v + 1e-6 for k, v in weights.items()}
    with pytest.raises(PETLError, match=r'delta\.safetensors: .* load the base that'):
        apis.fold_state_dict(path, other)
    less = {k: v for k, v in weights.items() if 'layers.1.' not in k}
    with pytest.raises(PETLError, match=r'lacks \d+ parameters .*layers\.1\.'):
        apis.fold_state_dict(path, less)
    wide = {**weights, 'ln1.weight': torch.ones(40)}
    with pytest.raises(PETLError, match=r'ln1\.weight has shape \(40,\) in the base'):
        apis.fold_state_dict(path, wide)
    prefix = bench.config({'type': 'Adapter', 'hidden_dims': 4}, base, 'adapter')
    path = apis.export_delta(bench.tuned(prefix), prefix, bench.folder / 'adapter')
    with pytest.raises(PETLError, match='Adapter.*cannot be folded'):
        apis.fold_state_dict(path, weights)


@pytest.mark.parametrize(
    ('place', 'value', 'message'),
    [
        ('scope', '../../x', r"scope is '\.\./\.\./x', expected one of"),
        ('arch.embed_dims', 10**9, 'cannot be built: RuntimeError'),
        ('arch.num_layers', 10**6, 'has more than 8,000 modules'),
        ('patch_size', 0, 'cannot be built: ZeroDivisionError'),
        ('patch_size', 'x', r'delta\.safetensors: backbone: .*patch|tuple of ints'),
    ],
)
def test_a_backbone_that_cannot_be_is_refused(bench, folded, place, value, message):
    _, base, path, _ = folded
    facts = path.with_suffix('.json')
    record = json.loads(facts.read_text())
    node = record['model']['backbone']['backbone']
    node['arch'] = {'embed_dims': 32, 'num_layers': 2, 'num_heads': 2}
    node['arch']['feedforward_channels'] = 32
    *way, last = place.split('.')
    node = record if place == 'scope' else node
    for key in way:
        node = node[key]
    node[last] = value
    facts.write_text(json.dumps(record))
    with pytest.raises(PETLError, match=message) as error:
        apis.fold_state_dict(path, torch.load(base, weights_only=True))
    assert '\n' not in str(error.value)


def test_a_base_of_whole_numbers_is_not_folded(bench, folded):
    _, base, path, _ = folded
    weights = torch.load(base, weights_only=True)
    with pytest.raises(PETLError, match='is torch.int8 in the base'):
        apis.fold_state_dict(path, {k: v.char() for k, v in weights.items()})


def test_a_delta_that_names_no_backbone_says_what_to_do(bench, folded):
    _, base, path, _ = folded
    facts = path.with_suffix('.json')
    record = json.loads(facts.read_text())
    del record['model']
    record['backbone'] = None
    facts.write_text(json.dumps(record))
    with pytest.raises(PETLError, match='does not say which backbone.*mmpetl.fold'):
        apis.fold_state_dict(path, torch.load(base, weights_only=True))


def test_both_kinds_of_files_are_bases(bench, folded):
    from safetensors.torch import save_file

    config, base, path, _ = folded
    weights = torch.load(base, weights_only=True)
    save_file(weights, bench.folder / 'base.safetensors')
    torch.save({'state_dict': weights, 'meta': {}}, bench.folder / 'wrapped.pth')
    want = whole(bench, config, path)
    for file in ('base.pth', 'base.safetensors', 'wrapped.pth'):
        out, plain = apis.fold_checkpoint(
            None, path, bench.folder / 'out.pth', base=bench.folder / file
        )
        assert plain is None
        content = torch.load(out, weights_only=True)
        assert content['meta']['dataset_meta']['classes'][0] == 'ant'
        for key, value in want.items():
            torch.testing.assert_close(content['state_dict'][key], value)
    (bench.folder / 'bad.safetensors').write_bytes(b'x')
    with pytest.raises(PETLError, match=r'bad\.safetensors is not a weight file'):
        apis.fold_checkpoint(None, path, 'x', base=bench.folder / 'bad.safetensors')


def test_a_delta_of_a_users_own_model_says_what_to_do(tmp_path):
    """It was refused as if its class were to be registered."""
    import timm

    import mmpetl

    model = timm.create_model('test_vit', num_classes=3, img_size=32)
    base = {k: v.clone() for k, v in model.state_dict().items()}
    mmpetl.save_delta(mmpetl.inject(model, 'LoRA'), tmp_path / 'd')
    with pytest.raises(PETLError, match='does not say which backbone.*mmpetl.fold'):
        apis.fold_state_dict(tmp_path / 'd', base)
