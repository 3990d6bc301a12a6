"""``mmpetl.PETLModel``: any config of upstream and one line, in MMEngine's own Runner.

What is compared with is upstream's own model of the same config and file.
"""

from __future__ import annotations

import copy
import pickle
import sys
from pathlib import Path

import pytest
import torch
import upstream
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope
from torch import nn
from upstream import (
    assert_same,
    plain,
    starting_from,
    tensors,
    whole_file,
    without_file,
)

from mmpetl.core import Owner, PETLError, base_changes, fingerprint, inject, owners
from mmpetl.registry import MODELS

NAMES = ('mmpretrain', 'mmseg', 'mmdet', 'mmaction')


@pytest.fixture(autouse=True)
def _quick():
    with upstream.quick():
        yield


@pytest.mark.parametrize('name', NAMES)
def test_one_line_trains_what_it_says_and_nothing_else(name, tmp_path):
    file = whole_file(name, tmp_path)
    before = torch.load(file)['state_dict']
    config = upstream.config_of(name, tmp_path, iters=2, base=str(file))
    reference = upstream.build(plain(name, tmp_path))
    reference.load_state_dict(before)

    runner = upstream.runner_of(config)
    model = runner.model
    assert type(model) is type(reference)
    assert isinstance(model.backbone, type(reference.backbone))
    assert set(reference.state_dict()) <= set(model.state_dict())
    assert_same(tensors(model, name), tensors(reference, name))

    runner.train()
    after = model.state_dict()
    who = owners(model)
    for key, value in before.items():
        if key.startswith('backbone.'):
            assert torch.equal(after[key], value), key
    moved = [
        key
        for key, param in model.named_parameters()
        if who[key] is Owner.DELTA and bool(param.detach().abs().sum())
    ]
    assert len(moved) == sum(who[key] is Owner.DELTA for key in who)
    heads = [k for k in before if who.get(k) is Owner.HEAD]
    assert any(not torch.equal(after[k], before[k]) for k in heads)


def test_full_tuning_is_upstreams_own_training(tmp_path):
    """``Full`` changes nothing: the same weights, bit for bit, as without the line."""
    file = whole_file('mmpretrain', tmp_path)
    states = []
    for petl, more in ((None, {'load_from': str(file)}), ('Full', {})):
        ours = {} if petl is None else {'base': str(file)}
        config = upstream.config_of('mmpretrain', tmp_path, petl, 2, **ours)
        config = without_file(config)
        config.model.backbone.drop_rate, config.model.train_cfg = 0.0, None
        config.merge_from_dict(more)
        runner = upstream.runner_of(config)
        runner.train()
        states.append(runner.model.state_dict())
    assert set(states[0]) == set(states[1]) - {'petl.base'}
    for key, value in states[0].items():
        assert torch.equal(states[1][key], value), key


@pytest.mark.parametrize('name', NAMES)
def test_three_roads_to_a_base_give_equal_features(name, tmp_path):
    file = whole_file(name, tmp_path)
    roads = []
    config = without_file(upstream.config_of(name, tmp_path))
    node = config.model.backbone.copy()
    node.type = f'{name}.{node.type}'
    roads.append(upstream.build(starting_from(config, file)).backbone)
    config = without_file(upstream.config_of(name, tmp_path, base=str(file)))
    roads.append(upstream.build(config).backbone)
    builder = {'type': 'mmpetl.PETLBackbone', 'backbone': node, 'method': 'LoRA'}
    roads.append(MODELS.build({**builder, 'checkpoint': str(file)}))
    assert len({fingerprint(road) for road in roads}) == 1


def authors_names(state):
    """A Swin's state under the names of its authors."""
    names = {
        'w_msa.': '',
        'ffn.layers.0.0': 'mlp.fc1',
        'ffn.layers.1': 'mlp.fc2',
        'patch_embed.projection': 'patch_embed.proj',
        'stages': 'layers',
    }
    renamed = {}
    for key, value in state.items():
        for old, new in names.items():
            key = key.replace(old, new)
        renamed[key] = value
    return renamed


def swin_file(folder: Path, config) -> Path:
    """An official file of a Swin: no prefix, the authors' names."""
    torch.manual_seed(3)
    state = upstream.build(config).backbone.state_dict()
    path = folder / 'official.pth'
    torch.save({'model': authors_names(state)}, path)
    return path


def started_from(folder: Path, file: Path, **backbone):
    """mmdet's RetinaNet whose Swin starts from a file by its own ``init_cfg``."""
    config = upstream.config_of('mmdet', folder)
    init = {'type': 'Pretrained', 'checkpoint': str(file)}
    config.model.backbone.update(init_cfg=init, **backbone)
    return upstream.build(config)


def test_the_conversion_of_upstream_and_base_give_the_same(tmp_path):
    file = swin_file(tmp_path, plain('mmdet', tmp_path))
    model = started_from(tmp_path, file, convert_weights=True)
    other = upstream.build(upstream.config_of('mmdet', tmp_path, base=str(file)))
    assert fingerprint(model) == fingerprint(other)
    reference = plain('mmdet', tmp_path)
    init = {'type': 'Pretrained', 'checkpoint': str(file)}
    reference.model.backbone.update(init_cfg=init, convert_weights=True)
    own = upstream.build(reference).backbone
    own.init_weights()
    for key, value in own.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[key], value), key


def test_a_file_that_upstream_does_not_read_stops(tmp_path):
    file = swin_file(tmp_path, plain('mmdet', tmp_path))
    with pytest.raises(PETLError) as caught:
        started_from(tmp_path, file, convert_weights=False)
    message = str(caught.value)
    assert '\n' not in message
    assert 'official.pth' in message
    assert 'convert_weights=True' in message
    # With one key of the right prefix there is no error of upstream, and no weight.
    state = torch.load(file)['model'] | {'backbone.x': torch.zeros(1)}
    torch.save({'model': state}, file)
    with pytest.raises(PETLError, match=r'fills 0 of \d+ tensors of backbone .Swin'):
        started_from(tmp_path, file, convert_weights=False)
    # Another silence: the prefix is there, one tensor is not.
    state = {f'backbone.{k}': v for k, v in torch.load(file)['model'].items()}
    good = upstream.build(plain('mmdet', tmp_path)).backbone.state_dict()
    state = {f'backbone.{k}': v for k, v in good.items()}
    del state['backbone.stages.1.blocks.0.attn.w_msa.qkv.weight']
    torch.save({'state_dict': state}, tmp_path / 'part.pth')
    config = upstream.config_of('mmdet', tmp_path)
    config = starting_from(config, tmp_path / 'part.pth')
    with pytest.raises(PETLError, match=r'stages\.1\.blocks\.0\.attn\.w_msa\.qkv\.w'):
        upstream.build(config)


def test_norms_that_the_file_lacks_train_with_the_head(tmp_path):
    file = whole_file('mmdet', tmp_path)
    content = torch.load(file)['state_dict']
    trunk = {
        k: v
        for k, v in content.items()
        if k.startswith('backbone.') and not k.startswith('backbone.norm')
    }
    torch.save({'state_dict': trunk}, tmp_path / 'trunk.pth')
    config = upstream.config_of('mmdet', tmp_path)
    model = upstream.build(starting_from(config, tmp_path / 'trunk.pth'))
    who = owners(model)
    trains = {k for k, p in model.named_parameters() if p.requires_grad}
    fresh = {f'backbone.norm{i}.{p}' for i in (1, 2, 3) for p in ('weight', 'bias')}
    assert fresh <= trains
    assert all(who[name] is Owner.HEAD for name in fresh)
    assert 'backbone.stages.0.downsample.norm.weight' not in trains


def test_base_fills_other_modules_where_shapes_fit(tmp_path, caplog):
    file = whole_file('mmdet', tmp_path)
    state = torch.load(file)['state_dict']
    config = upstream.config_of('mmdet', tmp_path, base=str(file))
    config.model.bbox_head.num_classes = 3
    model = upstream.build(config)
    now = model.state_dict()
    assert torch.equal(
        now['neck.lateral_convs.0.conv.weight'],
        state['neck.lateral_convs.0.conv.weight'],
    )
    name = 'bbox_head.retina_cls.weight'
    assert now[name].shape != state[name].shape
    short = {k: v for k, v in state.items() if 'qkv.bias' not in k}
    torch.save(short, tmp_path / 'short.pth')
    with pytest.raises(PETLError) as caught:
        upstream.build(
            upstream.config_of('mmdet', tmp_path, base=str(tmp_path / 'short.pth'))
        )
    assert '\n' not in str(caught.value)


def toy(**more):
    from mmengine.model import BaseModel

    class Toy(BaseModel):
        """A model that redraws its own parts on every initialisation, like DETR."""

        def __init__(self, data_preprocessor=None, init_cfg=None, parts=('trunk',)):
            super().__init__(data_preprocessor, init_cfg)
            import tiny

            for part in parts:
                setattr(self, part, tiny.mmpretrain_vit())
            self.query = nn.Parameter(torch.zeros(3))
            self.neck = nn.Sequential(nn.BatchNorm1d(32), nn.Dropout(0.5))
            self.head = nn.Linear(32, 2)

        def init_weights(self):
            super().init_weights()
            nn.init.normal_(self.query)
            for param in self.parameters():
                if param.ndim > 1:
                    nn.init.normal_(param)

        def forward(self, inputs, data_samples=None, mode='tensor'):
            feats = self.trunk(inputs)[-1]
            feats = feats[0] if isinstance(feats, list | tuple) else feats
            feats = feats.flatten(2).mean(-1) if feats.ndim == 4 else feats
            out = self.head(self.neck(feats))
            return {'loss': out.square().mean()} if mode == 'loss' else out

    config = {'type': 'mmpetl.PETLModel', 'of': Toy, 'petl': 'LoRA', **more}
    return MODELS.build(config)


def test_a_second_initialisation_changes_nothing():
    """``Runner.train`` makes one; a parent's ``init_cfg`` would redraw deltas too."""
    model = toy(init_cfg={'type': 'Normal', 'layer': 'Linear', 'std': 1.0})
    assert bool(model.query.abs().sum())  # upstream's own has run
    before = copy.deepcopy(model.state_dict())
    model.init_weights()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert not base_changes(model)


def test_where_is_found_or_asked_for():
    assert toy().trunk.layers[0].petl is not None
    two = toy(parts=('trunk', 'other'), where=('trunk', 'other'))
    assert two.other.layers[0].petl is not None
    for more, words in (
        (
            {'parts': ('trunk', 'other')},
            r'say where=PATH.*trunk .mmpretrain\.Vis.*other',
        ),
        ({'where': 'trunc'}, r"where='trunc' is no .*Did you mean 'trunk'.*Described"),
        ({'where': ('trunk', 'trunk.layers')}, 'name each trunk once'),
        ({'where': 'neck'}, 'no site map for|finds nothing to train'),
    ):
        with pytest.raises(PETLError, match=words) as caught:
            toy(**more)
        assert '\n' not in str(caught.value)


def test_layers_and_blocks_are_handed_on_where_they_are_given(monkeypatch):
    seen = []

    def narrow(module, method, *, head, **given):
        seen.append(given)
        return inject(module, method, head=head)

    # The package gives the function under the name of its module.
    monkeypatch.setattr(sys.modules['mmpetl.models.petl_model'], 'inject', narrow)
    toy()
    toy(layers='*.qkv', blocks='1:')
    assert seen == [{}, {'layers': '*.qkv', 'blocks': '1:'}]


def test_frozen_modules_outside_stay_as_they_are():
    model = toy(freeze='neck')
    before = copy.deepcopy(model.neck.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    for _ in range(2):
        model.train()
        model(torch.randn(4, 3, 32, 32), mode='loss')['loss'].backward()
        optimizer.step()
    for key, value in model.neck.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert not model.neck[1].training
    for path, words in (
        ('nek', 'no such module; there are'),
        ('trunk', 'frozen anyway'),
    ):
        with pytest.raises(PETLError, match=words):
            toy(freeze=path)


def test_bad_input_is_one_line(tmp_path):
    good = {'backbone': {'type': 'mmpretrain.VisionTransformer'}}
    for more, words in (
        ({'of': None}, 'got no type; name the model of upstream'),
        ({'of': 'mmpetl.PETLModel'}, 'name the model of upstream'),
        ({'petl': None}, 'got no method'),
        ({'petl': 'Lora'}, "Did you mean 'LoRA'"),
        ({'of': 'mmnowhere.Model'}, "needs the package 'mmnowhere'"),
        ({'of': 'mmpretrain.Nothing'}, 'Nothing is not in the .* registry'),
        ({'heads': 3}, "unexpected keyword argument 'heads'"),
        ({'base': str(tmp_path / 'none.pth')}, 'No weight file at .*none.pth'),
        ({'backbone': {'type': 'mmpetl.PETLBackbone'}}, 'tunes the backbone already'),
    ):
        config = {'of': 'mmpretrain.ImageClassifier', 'petl': 'LoRA', **good, **more}
        with pytest.raises(PETLError, match=words) as caught:
            MODELS.build({'type': 'mmpetl.PETLModel', **config})
        assert '\n' not in str(caught.value), words


def test_a_missing_file_of_init_cfg_is_one_line(tmp_path):
    config = upstream.config_of('mmdet', tmp_path)
    config.model.backbone.init_cfg = {'type': 'Pretrained', 'checkpoint': 'none.pth'}
    with pytest.raises(PETLError, match='none.pth does not load as init_cfg') as caught:
        upstream.build(config)
    assert '\n' not in str(caught.value)


def test_pretraining_is_refused():
    with pytest.raises(PETLError, match='MAE pre-trains a backbone and hides parts'):
        MODELS.build(
            {
                'type': 'mmpetl.PETLModel',
                'of': 'mmpretrain.MAE',
                'petl': 'LoRA',
                'backbone': {'type': 'mmpretrain.MAEViT', 'arch': 'b', 'img_size': 32},
                'neck': {
                    'type': 'mmpretrain.MAEPretrainDecoder',
                    'num_patches': 4,
                    'decoder_depth': 1,
                },
                'head': {
                    'type': 'mmpretrain.MAEPretrainHead',
                    'loss': {
                        'type': 'mmpretrain.PixelReconstructionLoss',
                        'criterion': 'L2',
                    },
                },
            }
        )


def test_a_model_that_renames_its_state_is_refused():
    with pytest.raises(PETLError, match=r'mmpretrain\.TIMMBackbone for timm'):
        MODELS.build(
            {
                'type': 'mmpetl.PETLModel',
                'of': 'mmpretrain.TimmClassifier',
                'petl': 'LoRA',
                'model_name': 'test_vit',
            }
        )
    backbone = {'type': 'mmpretrain.TIMMBackbone', 'model_name': 'test_vit'}
    head = {'type': 'mmpretrain.LinearClsHead', 'num_classes': 3, 'in_channels': 64}
    model = MODELS.build(
        {
            'type': 'mmpetl.PETLModel',
            'of': 'mmpretrain.ImageClassifier',
            'petl': 'LoRA',
            'backbone': backbone,
            'head': head,
        }
    )
    assert any('petl' in name.split('.') for name, _ in model.named_parameters())


def test_syncbn_is_reverted_before_the_injection(tmp_path):
    config = without_file(upstream.config_of('mmseg', tmp_path))
    assert config.model.decode_head.norm_cfg.type == 'SyncBN'
    model = upstream.build(config)
    kinds = {type(part).__name__ for part in model.modules()}
    assert 'SyncBatchNorm' not in kinds
    assert 'BatchNorm2d' in kinds or '_BatchNormXd' in kinds


def test_a_module_that_was_exchanged_after_the_injection_stops():
    """What ``convert_sync_batchnorm`` does: a new module with the old children."""
    import tiny

    model = toy()
    fresh = tiny.mmpretrain_vit().layers[0]
    fresh.load_state_dict(model.trunk.layers[0].state_dict(), strict=False)
    fresh.add_module('petl', model.trunk.layers[0].petl)
    model.trunk.layers[0] = fresh
    with pytest.raises(PETLError, match=r'layers\.0 .*(no delta any more|no longer)'):
        model.train()(torch.randn(2, 3, 32, 32), mode='loss')


def test_a_reentrant_checkpoint_around_blocks_stops():
    from mmengine.runner.activation_checkpointing import (
        turn_on_activation_checkpointing,
    )

    model = toy()
    turn_on_activation_checkpointing(model.trunk, ['layers'])
    turn_on_activation_checkpointing(model, ['trunk'])
    model.train()
    with pytest.raises(PETLError, match='set with_cp=True of the backbone'):
        model(torch.randn(2, 3, 32, 32), mode='loss')


def step(model, params=None, times=1, **options):
    optimizer = torch.optim.SGD(params or model.parameters(), 0.1, **options)
    model.train()
    for _ in range(times):
        model(torch.randn(4, 3, 32, 32), mode='loss')['loss'].backward()
        optimizer.step()


def test_the_first_step_is_looked_at():
    with pytest.raises(PETLError, match=r'does not hold trunk.*petl'):
        step(model := toy(), list(model.head.parameters()), times=2)
    model = toy()
    split = [
        {'params': list(model.trunk.parameters()), 'lr': 0.01},
        {'params': list(model.head.parameters())},
    ]
    with pytest.raises(PETLError, match=r'train at 0\.1 of the rate.*TuningRunner'):
        step(model, split)
    model = toy()
    forward = model.trunk.forward
    model.trunk.forward = torch.no_grad()(forward)
    with pytest.raises(PETLError, match='no gradient reaches'):
        step(model)
    step(toy(), times=2)
    # Two optimizers that take turns.
    model = toy()
    step(model, list(model.head.parameters()))
    step(model, list(model.trunk.parameters()))
    with pytest.raises(PETLError, match='SCT needs a pass over the data'):
        step(toy(petl={'type': 'SCT', 'num_channels': 4}))


def test_copies_and_pickles_keep_all_of_it(tmp_path):
    model = upstream.build(without_file(upstream.config_of('mmpretrain', tmp_path)))
    other = upstream.build(without_file(upstream.config_of('mmpretrain', tmp_path)))
    delta = {k: v for k, v in other.state_dict().items() if 'petl' in k.split('.')}
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same(tensors(twin, 'mmpretrain'), tensors(model, 'mmpretrain'))
        assert torch.equal(
            twin.state_dict()['petl.base'], model.state_dict()['petl.base']
        )
        with pytest.raises(PETLError, match='was made on the base'):
            twin.load_state_dict(delta, strict=False)
        twin.load_state_dict(model.state_dict())


def test_the_base_may_move_no_more_in_training(tmp_path):
    model = toy()
    model.train()
    with torch.no_grad():
        model.trunk.layers[0].ln1.weight.add_(1)
    with pytest.raises(PETLError, match='overwritten after the injection'):
        model.train()


@pytest.mark.parametrize('petl', [{'type': 'VQT'}, ['BitFit', 'VQT']], ids=len)
def test_a_method_that_widens_the_feature_wants_a_wider_head(petl, tmp_path):
    config = without_file(upstream.config_of('mmpretrain', tmp_path, petl))
    with pytest.raises(PETLError, match=r'set model\.head\.in_channels=\d+'):
        upstream.build(config)


def test_injecting_once_more_by_hand_is_allowed(tmp_path):
    model = upstream.build(without_file(upstream.config_of('mmpretrain', tmp_path)))
    inject(model.backbone, 'BitFit')
    assert any(o is Owner.SELECTED for o in owners(model).values())


def stages(tmp_path, petl, **backbone):
    config = without_file(upstream.config_of('mmdet', tmp_path, petl))
    config.model.backbone.update(backbone)
    model = upstream.build(config)
    model.train()
    trains = {n for n, p in model.backbone.named_parameters() if p.requires_grad}
    return model, trains


def test_frozen_stages_stay_frozen_and_deltas_train_in_them(tmp_path):
    model, trains = stages(tmp_path, 'LoRA', frozen_stages=1)
    assert any(n.startswith('stages.0.') for n in trains)
    assert all('petl' in n.split('.') for n in trains)
    model, trains = stages(tmp_path, 'Full', frozen_stages=1)
    plain, _ = stages(tmp_path, 'Full')
    reference = upstream.config_of('mmdet', tmp_path, None)
    reference = without_file(reference)
    reference.model.backbone.frozen_stages = 1
    own = upstream.build(reference)
    own.train()
    assert trains == {n for n, p in own.backbone.named_parameters() if p.requires_grad}
    for name, part in own.backbone.named_modules():
        # Upstream keeps dropout of frozen stages asleep.
        if name.startswith('stages.0'):
            assert model.backbone.get_submodule(name).training == part.training, name


@pytest.mark.parametrize('name', ['mmpretrain', 'mmdet'])
def test_with_cp_hands_gradients_to_every_delta(name, tmp_path):
    grads = []
    samples = upstream.DrawnData(upstream.SHRUNK[name].data)
    for with_cp in (False, True):
        torch.manual_seed(0)
        config = without_file(upstream.config_of(name, tmp_path))
        config.model.train_cfg.pop('augments', None)  # draws how it mixes
        model = upstream.build(config)
        for part in model.backbone.modules():
            if hasattr(part, 'with_cp'):
                part.with_cp = with_cp
        for param in model.parameters():
            if param.requires_grad and not bool(
                param.detach().abs().sum()
            ):  # heads and deltas start so
                nn.init.normal_(param, std=0.1)
        model.train()
        torch.manual_seed(0)
        batch = pseudo_collate([samples[i] for i in (0, 1)])
        losses = model(**model.data_preprocessor(batch, True), mode='loss')
        model.parse_losses(losses)[0].backward()
        grads.append({n: p.grad for n, p in model.named_parameters()})
    deltas = [n for n in grads[0] if 'petl' in n.split('.')]
    assert deltas
    for key in deltas:
        torch.testing.assert_close(grads[1][key], grads[0][key])
        assert bool(grads[0][key].abs().sum()), key


def test_an_image_swin_starts_a_video_swin_by_either_name(tmp_path):
    import tiny

    image = tiny.mmpretrain_swin(window_size=4)
    file = tmp_path / 'image.pth'
    torch.save({'model': authors_names(image.state_dict())}, file)
    arch = {'embed_dims': 16, 'depths': (2, 2), 'num_heads': (2, 4)}
    backbone = {
        'type': 'mmaction.SwinTransformer3D',
        'arch': arch,
        'pretrained2d': True,
        'patch_size': (2, 4, 4),
        'window_size': (2, 4, 4),
        'out_indices': (1,),
    }
    head = {'type': 'mmaction.I3DHead', 'in_channels': 32, 'num_classes': 3}
    common = {
        'type': 'mmpetl.PETLModel',
        'of': 'mmaction.Recognizer3D',
        'petl': 'LoRA',
        'cls_head': head,
    }
    with DefaultScope.overwrite_default_scope('mmaction'):
        own = MODELS.build(
            {**common, 'backbone': {**backbone, 'pretrained': str(file)}}
        )
        ours = MODELS.build({**common, 'backbone': backbone, 'base': str(file)})
        with pytest.raises(PETLError, match='wants to inflate'):
            MODELS.build({**common, 'backbone': backbone})
    state = ours.backbone.state_dict()
    for key, value in own.backbone.state_dict().items():
        if 'petl' not in key.split('.'):
            torch.testing.assert_close(state[key], value)
