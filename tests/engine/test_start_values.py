"""What a run starts from: the base as it was loaded, or a whole model's instead."""

from __future__ import annotations

import copy

import pytest
import torch
from pictures import BACKBONE

from mmpetl.core import PETLError, base_changes, delta_state, fingerprint, injection_of
from mmpetl.models import petl_backbone

INIT = [
    {'type': 'TruncNormal', 'layer': 'Linear', 'std': 0.02, 'bias': 0.0},
    {'type': 'Constant', 'layer': 'LayerNorm', 'val': 1.0, 'bias': 0.0},
]
SETTINGS = {
    'type': 'ImageClassifier',
    'head': {
        'type': 'LinearClsHead',
        'num_classes': 10,
        'in_channels': 32,
        'init_cfg': None,
    },
    'data_preprocessor': {
        'mean': [127.5] * 3,
        'std': [127.5] * 3,
        'num_classes': 10,
    },
}

SHORT = {'by_epoch': True, 'max_epochs': 1, 'val_interval': 1}


def model_config(checkpoint, method, **overrides) -> dict:
    backbone = {
        'type': 'mmpetl.PETLBackbone',
        'backbone': copy.deepcopy(BACKBONE),
        'method': method,
        'checkpoint': str(checkpoint),
    }
    return {**copy.deepcopy(SETTINGS), 'backbone': backbone, **overrides}


@pytest.fixture
def base(tmp_path):
    """A file of base weights."""
    torch.manual_seed(11)
    path = tmp_path / 'base.pth'
    torch.save(petl_backbone(copy.deepcopy(BACKBONE)).state_dict(), path)
    return path


@pytest.mark.parametrize('stock', [False, True], ids=['our hooks', 'stock hooks'])
@pytest.mark.parametrize(
    'method', ['LoRA', 'BitFit', pytest.param('SSF', marks=pytest.mark.slow)]
)
def test_a_run_with_a_models_init_cfg_keeps_the_base(make_runner, base, method, stock):
    overrides = {'custom_hooks': [], 'default_hooks': {}} if stock else {}
    runner = make_runner(
        train_cfg=SHORT,
        model=model_config(base, {'type': method}, init_cfg=INIT),
        **overrides,
    )
    runner.train()
    assert base_changes(runner.model) == []
    file = torch.load(base, weights_only=True)
    state = runner.model.backbone.state_dict()
    trained = delta_state(runner.model.backbone)
    kept = [k for k in file if k not in trained]
    assert len(kept) > 10
    assert all(torch.equal(file[k], state[k]) for k in kept)


def test_a_delta_of_such_a_run_gives_the_model_of_the_run(make_runner, base, tmp_path):
    model = model_config(base, {'type': 'LoRA'}, init_cfg=INIT)
    runner = make_runner(train_cfg=SHORT, model=model)
    runner.train()
    again = make_runner(
        'again', model=model, load_from=str(tmp_path / 'run' / 'epoch_1.pth')
    )
    again.load_or_resume()
    for key, value in runner.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key])


def test_what_writes_outside_of_init_weights_is_said_before_training(make_runner, base):
    runner = make_runner(
        train_cfg=SHORT, model=model_config(base, {'type': 'LoRA'}), custom_hooks=[]
    )

    def init_weights():
        for module in runner.model.modules():
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.xavier_uniform_(module.weight)

    runner.model.init_weights = init_weights
    with pytest.raises(PETLError, match='tensors of the frozen base differ'):
        runner.train()


# --- load_from ---------------------------------------------------------------------


@pytest.fixture
def zoo(tmp_path):
    """A whole classifier, such as a zoo offers, of another base."""
    from mmengine.registry import MODELS, DefaultScope

    torch.manual_seed(12)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(
            {**copy.deepcopy(SETTINGS), 'backbone': copy.deepcopy(BACKBONE)}
        )
    model.init_weights()
    with torch.no_grad():
        for param in model.parameters():
            param.add_(0.01 * torch.randn_like(param))
    path = tmp_path / 'zoo.pth'
    torch.save({'state_dict': model.state_dict(), 'meta': {'epoch': 3}}, path)
    return path


@pytest.mark.parametrize(
    'method',
    ['LoRA', *(pytest.param(m, marks=pytest.mark.slow) for m in ('BitFit', 'LST'))],
)
def test_load_from_of_a_whole_model_brings_base_and_head(
    make_runner, base, zoo, tmp_path, method
):
    runner = make_runner(
        train_cfg=SHORT, model=model_config(base, {'type': method}), load_from=str(zoo)
    )
    runner.load_or_resume()
    content = torch.load(zoo, weights_only=True)['state_dict']
    state = runner.model.state_dict()
    assert all(torch.equal(state[k], v) for k, v in content.items())
    # The same as if the file had been named as the base.
    torch.manual_seed(13)
    straight = make_runner('straight', model=model_config(zoo, {'type': method})).model
    assert base_changes(runner.model) == []
    assert fingerprint(runner.model) == fingerprint(straight)
    if method == 'LST':  # its start is read off the base
        for key, value in straight.state_dict().items():
            if 'petl' in key and key.endswith('qkv.weight'):
                assert torch.equal(state[key], value)
    runner.train()
    assert base_changes(runner.model) == []
    saved = torch.load(tmp_path / 'run' / 'epoch_1.pth', weights_only=True)
    assert saved['meta']['mmpetl']['base'] == 'zoo.pth'
    assert saved['meta']['mmpetl']['fingerprint'] == fingerprint(straight)
    again = make_runner(
        'again',
        model=model_config(zoo, {'type': method}),
        load_from=str(tmp_path / 'run' / 'epoch_1.pth'),
    )
    again.load_or_resume()


@pytest.mark.slow
def test_what_bitfit_learns_on_it_can_be_taken_back(make_runner, base, zoo):
    from mmpetl.core import eject

    runner = make_runner(
        train_cfg=SHORT,
        model=model_config(base, {'type': 'BitFit'}),
        load_from=str(zoo),
    )
    runner.train()
    eject(runner.model.backbone)
    content = torch.load(zoo, weights_only=True)['state_dict']
    state = runner.model.state_dict()
    kept = [k for k in content if k.startswith('backbone.')]
    assert all(torch.equal(state[k], content[k]) for k in kept)


def test_load_from_of_the_same_base_changes_no_record(make_runner, base, tmp_path):
    runner = make_runner(train_cfg=SHORT, model=model_config(base, {'type': 'LoRA'}))
    mark = fingerprint(runner.model)
    path = tmp_path / 'whole.pth'
    torch.save({'state_dict': runner.model.state_dict(), 'meta': {}}, path)
    other = make_runner(
        'other', model=model_config(base, {'type': 'LoRA'}), load_from=str(path)
    )
    other.load_or_resume()
    assert fingerprint(other.model) == mark
    source = injection_of(other.model.backbone)[1].source
    assert source['checkpoint'] == 'base.pth'


def test_load_from_of_another_size_is_one_line(make_runner, base, zoo):
    content = torch.load(zoo, weights_only=True)
    key = 'backbone.pos_embed'
    content['state_dict'][key] = content['state_dict'][key][:, :5]
    torch.save(content, zoo)
    runner = make_runner(
        train_cfg=SHORT, model=model_config(base, {'type': 'LoRA'}), load_from=str(zoo)
    )
    before = {k: v.clone() for k, v in runner.model.state_dict().items()}
    with pytest.raises(PETLError, match=r'pos_embed has shape \(1, 5, 32\)') as stop:
        runner.load_or_resume()
    assert '\n' not in str(stop.value)
    for name, value in runner.model.state_dict().items():
        assert torch.equal(value, before[name])
