"""The file pair: keys that depend on no wrapper or slot, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mmpetl import apis
from mmpetl.core import PETLError, inject
from mmpetl.core.delta_file import (
    check_facts,
    file_key,
    file_keys,
    read_delta_file,
    state_for,
    write_delta_file,
)

PUBLISHED = Path(__file__).parents[1] / 'data' / 'published_delta'
FACTS = {
    'method': {'type': 'LoRA', 'rank': 2},
    'backbone': {'type': 'mmpretrain.VisionTransformer'},
    'num_blocks': 2,
    'base': 'a.pth',
    'fingerprint': 'f' * 16,
}


@pytest.fixture
def made_up(monkeypatch):
    monkeypatch.syspath_prepend(str(PUBLISHED))
    import made_up

    yield made_up
    del sys.modules['made_up']


@pytest.fixture
def said() -> torch.Tensor:
    """What the model said when the delta was published."""
    return torch.tensor(json.loads((PUBLISHED / 'scores.json').read_text()))


def test_a_delta_published_in_the_first_format_still_loads(made_up, said, tmp_path):
    config = str(made_up.write_config(tmp_path))
    plain = apis.init_model(config, device='cpu')
    assert (made_up.scores(plain) - said).abs().max() > 0.1
    model = apis.init_model(config, PUBLISHED / 'ants.safetensors', 'cpu')
    torch.testing.assert_close(made_up.scores(model), said, rtol=0, atol=2e-6)
    assert model.dataset_meta['classes'] == ['ant', 'bee', 'cat']
    assert apis.read_delta(PUBLISHED / 'ants').metrics == {'accuracy/top1': 50.0}


def test_it_is_published_again_with_the_same_tensors(made_up, tmp_path):
    config = str(made_up.write_config(tmp_path))
    model = apis.load_delta(config, PUBLISHED / 'ants')
    again = apis.export_delta(model, config, tmp_path / 'ants')
    assert again.read_bytes() == (PUBLISHED / 'ants.safetensors').read_bytes()


class Wrapper(nn.Module):
    """As DistributedDataParallel puts a name of its own before every key."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


@pytest.mark.parametrize(
    'wrap', [lambda m: m, Wrapper, torch.compile], ids=['plain', 'ddp', 'compiled']
)
def test_neither_slot_nor_wrapper_is_in_a_delta(made_up, said, tmp_path, wrap):
    config = made_up.write_config(tmp_path)
    method = "dict(type='LoRA', rank=2, alpha=6)"
    config.write_text(config.read_text().replace(method, 'None'))
    bare = apis.init_model(str(config), device='cpu')
    inject(bare.backbone, {'type': 'LoRA', 'rank': 2, 'alpha': 6}, slot='insects')
    model = wrap(bare)
    apis.load_delta(model, PUBLISHED / 'ants')
    torch.testing.assert_close(made_up.scores(bare), said, rtol=0, atol=2e-6)
    out = apis.export_delta(model, None, tmp_path / 'again')
    old, new = (read_delta_file(p)[0] for p in (PUBLISHED / 'ants', out))
    assert set(old) == set(new)
    for key, value in old.items():
        assert torch.equal(value, new[key]), key


def test_keys_name_slots_by_their_number():
    key = 'module.backbone._orig_mod.layers.0.petl.attn_q.task.down.weight'
    short = 'backbone.layers.0.petl.attn_q.1.down.weight'
    assert file_key(key, ['other', 'task']) == short
    assert (
        file_key('backbone.petl.shared.task.u', ['task']) == 'backbone.petl.shared.0.u'
    )
    assert file_key('head.petl', ['task']) == 'head.petl'
    with pytest.raises(PETLError, match=r'a\.w and a\.module\.w would both be a\.w'):
        file_keys(['a.w', 'a.module.w'], [])


def test_a_runs_slot_may_have_another_name_than_the_models():
    there = {'petl.shared.run.u': torch.ones(1), 'head.w': torch.ones(2)}
    found = state_for(there, ['petl.shared.here.u', 'head.w'], ['here'])
    assert list(found) == ['petl.shared.here.u', 'head.w']


def test_several_slots_keep_the_names_that_a_checkpoint_has():
    keys = ['petl.shared.b.u', 'petl.shared.a.u']
    there = {key: torch.ones(1) for key in keys}
    assert list(state_for(there, keys, ['b', 'a'])) == keys
    numbered = {'petl.shared.0.u': torch.ones(1), 'petl.shared.1.u': torch.ones(2)}
    assert list(state_for(numbered, keys, ['b', 'a'])) == keys


def test_a_pair_is_read_as_it_was_written(tmp_path):
    tensors = {'petl.shared.0.u': torch.randn(3), 'head.w': torch.randn(2, 2)}
    path = write_delta_file(tmp_path / 'x', tensors, FACTS)
    got, facts = read_delta_file(path)
    assert facts['format'] == 1
    assert {k: facts[k] for k in FACTS} == FACTS
    assert facts['tensors']['values'] == 7
    for key, value in tensors.items():
        assert torch.equal(got[key], value)


@pytest.mark.parametrize(
    ('change', 'line'),
    [
        ({'format': 9}, 'has format 9, this mmpetl reads 1'),
        ({'method': {'type': 'SSF'}}, 'the delta is of SSF, the model has LoRA'),
        ({'method': {'type': 'LoRA', 'rank': 3}}, r"'rank': 3.*'rank': 2"),
        ({'backbone': {'type': 'x.Swin'}}, 'of a Swin, this .* is a VisionTransformer'),
        ({'num_blocks': 3}, 'a backbone with 3 blocks, this one has 2'),
        ({'fingerprint': '0' * 16, 'base': 'b.pth'}, r'base b\.pth \[0{16}\].*a\.pth'),
    ],
)
def test_what_does_not_belong_is_refused_in_one_line(change, line):
    here = {**FACTS, 'format': 1}
    check_facts(here, here)
    with pytest.raises(PETLError, match=line) as error:
        check_facts({**here, **change}, here)
    assert '\n' not in str(error.value)


def test_a_record_of_another_shape_is_refused(tmp_path):
    path = write_delta_file(tmp_path / 'x', {'a': torch.ones(1)}, FACTS)
    record = path.with_suffix('.json')
    good = json.loads(record.read_text())
    for change, line in (
        ({'method': 'LoRA'}, r'x\.json: method: expected object \| array, got str'),
        ({'method': []}, 'its method has no type'),
        ({'method': {}}, 'its method has no type'),
        ({'method': {'type': 3}}, 'its method has no type'),
        ({'tensors': {}}, 'tensors: Object missing required field sha256'),
        ({'tensors': None}, 'tensors: expected object, got null'),
        ({'fingerprint': 'x'}, 'fingerprint: expected str matching regex'),
        ({'classes': [{'a': 1}]}, r'classes\[0\]: expected str, got object'),
        ({'palette': [[0, 0, 256]]}, r'palette\[0\]\[2\]: expected int <= 255'),
        ({'classes': ['a\n']}, r'classes\[0\]: expected str matching'),
        ({'classes': ['\x1b[2J']}, r'classes\[0\]: expected str matching'),
        ({'classes': ['a' * 501]}, r'classes\[0\]: expected str of length <= 500'),
        ({'metrics': []}, 'metrics: expected object | null, got array'),
        ({'metrics': {'a': 'x'}}, 'metrics'),
        ({'metrics': {'a': {'b': 1}}}, 'metrics'),
        ({'version': None}, 'version: expected str, got null'),
        ({'sites': None}, 'sites: expected int, got null'),
        ({'preset': 'half'}, 'preset: expected object | null, got str'),
        ({'format': 2}, 'has format 2, this mmpetl reads 1'),
    ):
        record.write_text(json.dumps({**good, **change}))
        with pytest.raises(PETLError, match=line):
            read_delta_file(path)


def test_what_could_not_be_read_is_not_written(tmp_path):
    tensors = {'a': torch.ones(1)}
    for bad in ({'metrics': {'a': 'x'}}, {'classes': ['a\0b']}, {'scope': 7}):
        with pytest.raises(PETLError, match=r'x\.json: '):
            write_delta_file(tmp_path / 'x', tensors, {**FACTS, **bad})
        assert not list(tmp_path.iterdir())
    good = {'a': 1, 'b': None, 'c': [1.5, None], 'd': float('nan')}
    path = write_delta_file(tmp_path / 'x', tensors, {**FACTS, 'metrics': good})
    assert read_delta_file(path)[1]['metrics']['c'] == [1.5, None]


def test_figures_of_any_kind_of_number_are_exported(bench):
    model = bench.tuned(bench.config({'type': 'SSF'}))
    figures = {'a': np.float32(0.5), 'b': torch.tensor(2.0), 'c': np.ones(2), 'd': 3}
    path = apis.export_delta(model, None, bench.folder / 'x', metrics=figures)
    assert apis.read_delta(path).metrics == {'a': 0.5, 'b': 2.0, 'c': [1, 1], 'd': 3}


def test_names_of_another_number_of_classes_are_said(bench, monkeypatch):
    said = []
    monkeypatch.setattr(
        'mmpetl.apis.delta.print_log', lambda line, **more: said.append(line)
    )
    config = bench.config({'type': 'SSF'})
    model = bench.tuned(config)
    model.dataset_meta = {'classes': ['w', 'x']}
    path = apis.export_delta(model, config, bench.folder / 'x')
    apis.load_delta(model, path)
    assert 'names 2 classes, the model has 4' in said[-1]


def test_a_model_is_exported_without_a_config(bench):
    model = bench.tuned(bench.config({'type': 'SSF'}))
    path = apis.export_delta(model, None, bench.folder / 'bare')
    facts = apis.read_delta(path).meta
    assert facts['method']['type'] == 'SSF'
    assert 'preprocessing' not in facts
    again = apis.load_delta(bench.config({'type': 'SSF'}), path)
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])


def test_a_model_that_knows_its_config_is_exported_with_it(bench):
    config = str(bench.config({'type': 'SSF'}))
    path = apis.export_delta(apis.init_model(config), None, bench.folder / 'known')
    assert apis.read_delta(path).meta['scope'] == 'mmpretrain'
