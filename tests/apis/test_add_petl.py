"""``add_petl``: what becomes of a config of upstream."""

from __future__ import annotations

import pytest
import torch
import upstream
from mmengine.config import Config, ConfigDict
from upstream import whole_file, without_file

from mmpetl import apis
from mmpetl.apis.counting import count_config
from mmpetl.core import Owner, PETLError, owners
from mmpetl.engine import OwnerOptimWrapperConstructor, TuningRunner
from mmpetl.engine.hooks.common import plain_model
from mmpetl.engine.runner import safe_config

SEGFORMER = 'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py'
MASK = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'


@pytest.fixture(autouse=True)
def _quick():
    with upstream.quick():
        yield


def read(name: str) -> Config:
    from mmpetl.config.load import read_config

    return read_config(name)


def test_every_other_key_stays_where_it_was():
    before = read(MASK)
    after = apis.add_petl(before, 'LoRA', {'rank': 16})
    assert after.model.type == 'mmpetl.PETLModel'
    assert after.model.of == before.model.type == 'MaskRCNN'
    assert after.model.petl == {'type': 'LoRA', 'rank': 16}
    rest = {k: v for k, v in after.model.items() if k not in ('of', 'petl', 'base')}
    assert {**rest, 'type': 'MaskRCNN'} == before.model
    # The file is named where upstream's init_detector leaves it alone.
    assert after.model.base == before.model.backbone.init_cfg.checkpoint
    assert after.runner_type == 'mmpetl.TuningRunner'
    assert after.custom_imports.imports == ['mmpetl']
    for key in before:
        if key not in ('model', 'custom_imports', 'runner_type'):
            assert after[key] == before[key], key
    assert 'of' not in before.model


def test_the_file_that_starts_the_trunk_is_named_as_base():
    config = read(SEGFORMER)
    init = config.model.backbone.init_cfg.checkpoint
    assert apis.add_petl(config, 'BitFit').model.base == init
    config.load_from = 'detector.pth'
    after = apis.add_petl(config, 'BitFit')
    assert (after.model.base, after.load_from) == ('detector.pth', None)
    with pytest.raises(PETLError, match='base=x.pth .* load_from=detector.pth'):
        apis.add_petl(config, 'BitFit', base='x.pth')
    config.load_from = None
    assert apis.add_petl(config, 'BitFit', base='x.pth').model.base == 'x.pth'
    vit = read('mmseg::vit/vit_vit-b16_mln_upernet_8xb2-80k_ade20k-512x512.py')
    assert apis.add_petl(vit, 'LoRA').model.base == vit.model.pretrained


MAE = 'mmpretrain::mae/benchmarks/vit-base-p16_8xb128-coslr-100e_in1k.py'


def nameless(config):
    """A config that leaves its file to be named, as upstream's for MAE do."""
    config.model.pop('base', None)
    config.model.backbone.init_cfg = {
        'type': 'Pretrained',
        'checkpoint': '',
        'prefix': 'backbone.',
    }
    return config


def test_a_file_that_is_to_be_named_is_no_base():
    config = read(MAE)
    assert config.model.backbone.init_cfg.checkpoint == ''
    assert 'base' not in apis.add_petl(config, 'LoRA').model
    named = apis.add_petl(config, 'LoRA', base='mae.pth')
    assert named.model.base == 'mae.pth'
    assert count_config(apis.add_petl(config, 'LinearProbe'))['selected'] == 0


@pytest.mark.parametrize('name', ['mmpretrain', 'mmseg', 'mmdet'])
def test_a_file_that_is_to_be_named_is_named_in_its_place(name, tmp_path):
    file = whole_file(name, tmp_path)
    config = nameless(without_file(upstream.config_of(name, tmp_path)))
    for base in (None, ''):
        config.model.base = base
        with pytest.raises(
            PETLError, match=r"^init_cfg of backbone has checkpoint=''"
        ) as e:
            upstream.build(config)
        assert '--base FILE' in str(e.value)
        assert '\n' not in str(e.value)
    config.model.base = str(file)
    model = upstream.build(config)
    want = torch.load(file)['state_dict']
    own = {k: v for k, v in model.backbone.state_dict().items() if 'petl' not in k}
    for key, value in own.items():
        assert torch.equal(value, want[f'backbone.{key}']), key
    assert not model.backbone.init_cfg


def test_a_file_that_is_to_be_named_for_the_model(tmp_path):
    config = without_file(upstream.config_of('mmpretrain', tmp_path))
    config.model.init_cfg = {'type': 'Pretrained', 'checkpoint': None}
    with pytest.raises(PETLError, match=r"^init_cfg of the model has checkpoint=''"):
        upstream.build(config)
    config.model.base = str(whole_file('mmpretrain', tmp_path))
    assert not upstream.build(config).init_cfg


def test_what_cannot_be_tuned_is_one_line():
    config = read(MASK)
    done = apis.add_petl(config, 'LoRA')
    slow = Config({**config, 'activation_checkpointing': ['backbone.layers']})
    for call, words in (
        (lambda: apis.add_petl(done, 'LoRA'), 'tunes its model already'),
        (lambda: apis.add_petl(Config({'a': 1}), 'LoRA'), 'has no model with a type'),
        (lambda: apis.add_petl(config, 'Lora'), "Did you mean 'LoRA'"),
        (lambda: apis.add_petl(config, 'LoRA', {'rang': 1}), "Did you mean 'rank'"),
        (lambda: apis.add_petl(slow, 'LoRA'), 'with_cp=True'),
        (lambda: read('mmnowhere::a/b.py'), "package 'mmnowhere' is not installed"),
        (lambda: read('mmdet::mask_rcnn/mask-rcnn_r5_fpn_1x_coco.py'), 'Did you mean'),
        (lambda: read('yaml::a/b.py'), 'ships no configs'),
    ):
        with pytest.raises(PETLError, match=words) as caught:
            call()
        assert '\n' not in str(caught.value), words


def test_a_runner_of_its_own_gets_what_ours_would_add():
    config = read(MASK)
    config.runner_type = 'mine.Runner'
    after = apis.add_petl(config, 'LoRA')
    assert after.runner_type == 'mine.Runner'
    assert after.default_hooks.checkpoint.type == 'mmpetl.DeltaCheckpointHook'
    kinds = [hook['type'] for hook in after.custom_hooks]
    assert 'mmpetl.BaseGuardHook' in kinds


def rates(model, config):
    """Rate and decay of every trained parameter, by name."""
    config = config.copy()
    config.pop('type', None)
    kind = config.pop('constructor', None) or 'DefaultOptimWrapperConstructor'
    cfg = {
        'optim_wrapper_cfg': config,
        'paramwise_cfg': config.pop('paramwise_cfg', None),
    }
    from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS

    wrapper = OPTIM_WRAPPER_CONSTRUCTORS.build({'type': kind, **cfg})(model)
    names = {id(p): n for n, p in model.named_parameters() if p.requires_grad}
    return {
        names[id(p)]: (group['lr'], group['weight_decay'])
        for group in wrapper.optimizer.param_groups
        for p in group['params']
        if id(p) in names
    }


CUSTOM = {
    'custom_keys': {
        'backbone': {'lr_mult': 0.1, 'decay_mult': 1.0},
        'absolute_pos_embed': {'decay_mult': 0.0},
        'bbox_head.retina_cls': {'lr_mult': 3.0},
    },
    'norm_decay_mult': 0.0,
    'bias_lr_mult': 2.0,
}
ADAMW = {'type': 'AdamW', 'lr': 1e-3, 'weight_decay': 0.05}


@pytest.mark.parametrize('paramwise', [None, CUSTOM], ids=['plain', 'custom_keys'])
def test_heads_train_as_upstream_says_and_deltas_at_the_full_rate(paramwise, tmp_path):
    config = without_file(upstream.config_of('mmdet', tmp_path))
    config.optim_wrapper = ConfigDict(type='OptimWrapper', optimizer=ADAMW)
    if paramwise:
        config.optim_wrapper.paramwise_cfg = paramwise
    model = upstream.build(config)
    want = rates(model, config.optim_wrapper)
    safe, _ = safe_config(config)
    have = rates(model, ConfigDict(safe.optim_wrapper))
    assert set(have) == set(want)
    who = owners(model)
    for name, found in have.items():
        if who[name] is Owner.HEAD:
            assert found == pytest.approx(want[name]), name
        else:
            assert found[0] == pytest.approx(1e-3), name


def test_full_tuning_keeps_the_optimizer_of_upstream(tmp_path):
    config = without_file(upstream.config_of('mmdet', tmp_path, 'Full'))
    config.optim_wrapper = ConfigDict(optimizer=ADAMW, paramwise_cfg=CUSTOM)
    safe, _ = safe_config(config)
    assert safe.optim_wrapper == config.optim_wrapper


def test_the_paramwise_cfg_outside_is_checked():
    cfg = {'optimizer': ADAMW}
    with pytest.raises(PETLError, match='outside takes a paramwise_cfg of upstream'):
        OwnerOptimWrapperConstructor(cfg, {'outside': 3})


@pytest.mark.parametrize('name', ['mmpretrain', 'mmaction', 'mmseg', 'mmdet'])
def test_layer_decay_reaches_heads_as_upstream_has_it(name, tmp_path):
    stages = {'decay_rate': 0.5, 'decay_type': 'stage_wise', 'num_layers': 6}
    own = {
        'mmseg': ('mmseg.LearningRateDecayOptimizerConstructor', stages),
        'mmdet': ('mmdet.LearningRateDecayOptimizerConstructor', stages),
        'mmpretrain': (
            'mmpretrain.LearningRateDecayOptimWrapperConstructor',
            {'layer_decay_rate': 0.5, 'bias_decay_mult': 0.0},
        ),
        'mmaction': (
            'mmaction.LearningRateDecayOptimizerConstructor',
            {'decay_rate': 0.5, 'num_layers': 2},
        ),
    }
    # Those of mmdet and mmseg are for ConvNeXt.
    source = name if name in ('mmpretrain', 'mmaction') else 'convnext'
    petl = {'type': 'LoRA', 'targets': ['ffn.fc1']} if source == 'convnext' else 'LoRA'
    config = without_file(upstream.config_of(source, tmp_path, petl))
    constructor, paramwise = own[name]
    config.optim_wrapper = ConfigDict(
        optimizer=ADAMW, constructor=constructor, paramwise_cfg=paramwise
    )
    model = upstream.build(config)
    who = owners(model)
    bare = rates(model, config.optim_wrapper)  # upstream's own takes the swapped class
    safe, _ = safe_config(config)
    have = rates(model, ConfigDict(safe.optim_wrapper))
    heads = [n for n in have if who[n] is Owner.HEAD]
    deltas = [n for n in have if who[n] is Owner.DELTA]
    assert heads
    assert deltas
    assert all(have[n] == pytest.approx(bare[n]) for n in heads)
    assert all(bare[n][0] < 1e-3 for n in deltas if '.0.' in n)
    assert all(have[n][0] == pytest.approx(1e-3) for n in deltas)


def test_a_tenth_of_the_rate_stops_a_plain_runner_and_not_ours(tmp_path):
    file = str(whole_file('mmdet', tmp_path))
    config = upstream.config_of('mmdet', tmp_path, base=file)
    config.optim_wrapper = ConfigDict(
        type='OptimWrapper', optimizer=ADAMW, paramwise_cfg=CUSTOM
    )
    with pytest.raises(PETLError, match=r'would train at 0\.1 of the rate') as caught:
        upstream.runner_of(config).train()
    assert '\n' not in str(caught.value)
    config.experiment_name += '-ours'
    config.runner_type = 'mmpetl.TuningRunner'
    TuningRunner.from_cfg(config).train()


@pytest.mark.parametrize(
    ('petl', 'options'),
    [('LoRA', {'rank': 2}), ('LoRA+SSF', {'0.rank': 2, '0.blocks': '1:'})],
    ids=['one', 'several'],
)
def test_the_dump_repeats_the_run(petl, options, tmp_path):
    file = str(whole_file('mmpretrain', tmp_path))
    config = upstream.config_of('mmpretrain', tmp_path, None, iters=2)
    config = apis.add_petl(without_file(config), petl, options, base=file)
    states = []
    for i in range(2):
        config.experiment_name = f'{tmp_path.name}-dump-{i}'
        config.work_dir = str(tmp_path / str(i))
        path = tmp_path / f'dumped-{i}.py'
        config.dump(path)
        config = Config.fromfile(path)
        runner = TuningRunner.from_cfg(config)
        runner.train()
        states.append(plain_model(runner).state_dict())
    for key, value in states[0].items():
        assert torch.equal(states[1][key], value), key
    saved = torch.load(tmp_path / '1' / 'iter_2.pth', weights_only=False)
    assert 'petl.base' in saved['state_dict']
    assert not any(k in saved['state_dict'] for k in ('backbone.pos_embed',))
    # Our own functions read it as well.
    model = apis.init_model(config, tmp_path / '1' / 'iter_2.pth', device='cpu')
    for key, value in model.state_dict().items():
        assert torch.equal(value, states[1][key]), key
    plain = apis.stock_config(config)
    assert plain.model.type == 'ImageClassifier'
    assert not {'of', 'petl', 'base'} & set(plain.model)
    # What registers classes of one's own is still to be imported.
    assert config.custom_imports.imports == ['mmpetl']
    config.custom_imports.imports = ['mmpetl', 'own_metrics']
    assert apis.stock_config(config).custom_imports.imports == ['own_metrics']
    # mmpretrain states it at the top, and the Runner hands it to the model.
    config.data_preprocessor = {'mean': [7.0] * 3, 'std': [2.0] * 3}
    config.model.pop('data_preprocessor', None)
    assert apis.stock_config(config).model.data_preprocessor.mean == [7.0] * 3
    assert apis.init_model(config).data_preprocessor.mean.unique() == 7.0


def test_a_config_is_counted_without_its_file(tmp_path):
    config = upstream.config_of('mmpretrain', tmp_path, base='none.pth')
    config.model.backbone.init_cfg = {'type': 'Pretrained', 'checkpoint': 'none.pth'}
    row = apis.count_config(config)
    model = upstream.build(without_file(upstream.config_of('mmpretrain', tmp_path)))
    deltas = [n for n, o in owners(model).items() if o is Owner.DELTA]
    assert row['delta'] == sum(model.get_parameter(n).numel() for n in deltas)
    assert (row['method'], row['backbone']) == ('LoRA', 'VisionTransformer')


@pytest.mark.parametrize('base', ['mmnowhere::a/b.py', 'mmrotate::a/b.py', 'x.py'])
def test_a_base_that_is_not_there_is_one_line(base, tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(f'_base_ = {base!r}\nmodel = dict(type="A")\n')
    with pytest.raises(PETLError, match='mine.py cannot be read') as caught:
        apis.add_petl(path, 'LoRA')
    assert '\n' not in str(caught.value)


def test_classes_may_stand_for_names(tmp_path):
    """New configs of upstream hold classes, not names."""
    path = tmp_path / 'lazy.py'
    path.write_text(
        'from mmpretrain.models import ImageClassifier, LinearClsHead\n'
        'from mmpretrain.models import VisionTransformer\n'
        'arch = dict(embed_dims=32, num_layers=2, num_heads=4,\n'
        '            feedforward_channels=64)\n'
        'model = dict(type=ImageClassifier, head=dict(type=LinearClsHead,\n'
        '             num_classes=3, in_channels=32), backbone=dict(\n'
        '             type=VisionTransformer, arch=arch, img_size=32, patch_size=8))\n'
    )
    config = apis.add_petl(path, 'LoRA')
    config.dump(tmp_path / 'dumped.py')
    keys = []
    for written in (config, Config.fromfile(tmp_path / 'dumped.py')):
        model = upstream.build(Config({**written, 'default_scope': 'mmpretrain'}))
        assert type(model).__name__ == 'ImageClassifier'
        assert type(model.backbone).__name__ == 'PETLVisionTransformer'
        keys.append(model.state_dict().keys())
    assert keys[0] == keys[1]
