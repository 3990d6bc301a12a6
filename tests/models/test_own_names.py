"""Files in a model's own names: any class, any path, whole models, tables, refusals."""

from __future__ import annotations

import pytest
import torch
from small_weights import image, mm_vit, positions, randomise, refuse
from torch import nn

from mmpetl import compat

compat.install()

import mmdet.models.backbones as mmdet_backbones  # noqa: E402
import mmpretrain.models.backbones as mmpretrain_backbones  # noqa: E402
import mmseg.models.backbones as mmseg_backbones  # noqa: E402
import numpy as np  # noqa: E402
import timm  # noqa: E402
from mmpretrain.models import ImageClassifier, TimmClassifier  # noqa: E402
from scipy.interpolate import CubicSpline  # noqa: E402
from timm.models.beit import Beit  # noqa: E402

from mmpetl.core.sitemap import SiteMap  # noqa: E402
from mmpetl.models.weights import convert, load_base_weights  # noqa: E402
from mmpetl.models.weights.resize import (  # noqa: E402
    resize_geometric,
    resize_line,
    resize_plane,
)


class Net(nn.Module):
    """A model that nobody has described: convolutions, BatchNorm, a tied weight."""

    def __init__(self, classes: int = 3, width: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3)
        self.body = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3), nn.BatchNorm2d(width))
            for _ in range(depth)
        )
        self.embed = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.out.weight = self.embed.weight
        self.head = nn.Linear(width, classes)
        self.register_buffer('index', torch.arange(5))
        self.register_buffer('drawn', torch.randn(2))


def states_equal(a: nn.Module, b: nn.Module, leave: tuple[str, ...] = ()) -> bool:
    other = b.state_dict()
    return all(
        torch.equal(t, other[k])
        for k, t in a.state_dict().items()
        if not k.startswith(leave)
    )


def moved(net: nn.Module) -> nn.Module:
    """Values that no initialiser gives, statistics among them."""
    randomise(net)
    for name, buffer in net.named_buffers():
        if buffer.is_floating_point():
            buffer.add_(0.5)
        elif name.endswith('num_batches_tracked'):
            buffer.fill_(7)
    return net


@pytest.mark.parametrize(
    'prefix', ['', 'backbone.', 'module.model.', 'image_encoder.', 'a.b.c.']
)
def test_any_model_below_any_path(tmp_path, prefix):
    net = moved(Net())
    state = {prefix + k: t for k, t in net.state_dict().items()}
    if prefix:
        state['neck.conv.weight'] = torch.zeros(2)
    path = tmp_path / 'net.pth'
    torch.save({'state_dict': state, 'meta': {'epoch': 1}}, path)
    other = Net()
    report = load_base_weights(other, path)
    assert states_equal(net, other, ('index',))
    assert report.layout == 'own names'
    assert report.family == 'own:test_own_names.Net'
    assert 'body.0.1.running_mean' in report.matched
    assert 'body.0.1.num_batches_tracked' in report.matched
    dropped = dict(report.dropped)
    assert dropped.pop(f'{prefix}index') == 'index or mask, rebuilt'
    assert ('neck.conv.weight' in dropped) == bool(prefix)


def test_another_classifier_is_left_aside(tmp_path):
    net = moved(Net(classes=9))
    path = tmp_path / 'net.pth'
    torch.save(net.state_dict(), path)
    other = Net()
    report = load_base_weights(other, path)
    assert report.fresh == (('head.weight', 'head'), ('head.bias', 'head'))
    assert 'classifier of 9 classes left aside' in report.summary()
    assert states_equal(net, other, ('index', 'head'))


def test_a_tied_weight_may_be_stored_once(tmp_path):
    net = moved(Net())
    state = net.state_dict()
    del state['out.weight']
    path = tmp_path / 'net.pth'
    torch.save(state, path)
    other = Net()
    load_base_weights(other, path)
    assert torch.equal(other.out.weight, net.embed.weight)


def test_what_does_not_fit_is_listed(tmp_path):
    path = tmp_path / 'net.pth'
    state = Net().state_dict()
    state['body.0.2.weight'] = state.pop('body.0.1.weight')
    torch.save(state, path)
    refuse(
        Net(),
        path,
        '1 of 22 tensors of the model are not in it',
        'body.0.1.weight; nearest to the first: body.0.2.weight',
        '1 of its tensors have no place',
    )
    torch.save(Net(depth=3).state_dict(), path)
    refuse(Net(), path, '7 of its tensors have no place (body.2.0.weight')
    state = Net().state_dict()
    del state['body.0.1.running_var']
    torch.save(state, path)
    refuse(Net(), path, 'not in it (body.0.1.running_var)')
    torch.save(Net(width=5).state_dict(), path)
    refuse(Net(), path, 'stem.weight (5, 3, 3, 3) in the file, (4, 3, 3, 3) in the')
    state = Net().state_dict()
    state['stem.bias'][0] = float('nan')
    torch.save(state, path)
    refuse(Net(), path, 'stem.bias has non-finite values')
    torch.save({'x': torch.ones(2), 'y': torch.ones(2)}, path)
    refuse(Net(), path, 'none of its 2 tensors (x, y, ...) has a name of the model')


def test_two_models_in_one_file(tmp_path):
    path = tmp_path / 'net.pth'
    a, b = moved(Net()), Net()
    state = {f'left.{k}': t for k, t in a.state_dict().items()}
    state |= {f'right.{k}': t for k, t in b.state_dict().items()}
    torch.save(state, path)
    refuse(
        Net(), path, "holds 2 trunks (below 'left.' and 'right.')", 'checkpoint_part'
    )
    other = Net()
    load_base_weights(other, path, part='left')
    assert states_equal(a, other, ('index',))


def classifier(classes: int) -> nn.Module:
    arch = dict(embed_dims=48, num_layers=2, num_heads=4, feedforward_channels=96)
    backbone = dict(
        type='mmpretrain.VisionTransformer', arch=arch, img_size=32, patch_size=8
    )
    neck = nn.Conv2d(48, 48, 1)
    head = dict(type='mmpretrain.LinearClsHead', num_classes=classes, in_channels=48)
    model = ImageClassifier(backbone=backbone, head=head)
    model.neck = neck
    return model


def test_a_pair_of_which_one_has_more(tmp_path):
    """The student has a mask token: it was taken for the only model of the file."""
    net = moved(Net())
    state = {f'online.{k}': t for k, t in net.state_dict().items()}
    state |= {f'target.{k}': t + 1 for k, t in net.state_dict().items()}
    for name in ('head.weight', 'head.bias'):
        del state[f'target.{name}']
    path = tmp_path / 'pair.pth'
    torch.save(state, path)
    refuse(Net(), path, '2 trunks', 'online', 'target', 'checkpoint_part')
    model = Net()
    load_base_weights(model, path, part='target')
    assert torch.equal(model.stem.weight, net.stem.weight + 1)


def test_a_pair_in_names_that_are_converted(tmp_path):
    official = timm.models.ConvNeXt(depths=(1,) * 4, dims=(8,) * 4, num_classes=0)
    arch = dict(depths=[1] * 4, channels=[8] * 4)
    one = {f'online.{k}': t for k, t in moved(official).state_dict().items()}
    two = {f'target.{k[7:]}': t + 1 for k, t in one.items()}
    path = tmp_path / 'pair.pth'
    torch.save(one | two, path)
    model = mmpretrain_backbones.ConvNeXt(arch=arch)
    refuse(model, path, '2 trunks', 'online', 'target')
    load_base_weights(model, path, part='target')
    ours = model.state_dict()['downsample_layers.0.0.weight']
    assert torch.equal(ours, official.stem[0].weight + 1)


def test_values_beyond_the_dtype_of_the_model(tmp_path):
    """They would become infinite in silence."""
    state = {k: t * 1e6 for k, t in moved(Net()).state_dict().items()}
    path = tmp_path / 'large.pth'
    torch.save(state, path)
    load_base_weights(Net(), path)
    refuse(Net().half(), path, 'stem.weight', 'torch.float16')
    vit = mm_vit()
    torch.save({k: t * 1e6 for k, t in vit.state_dict().items()}, path)
    refuse(mm_vit().half(), path, 'cls_token', 'torch.float16')


def test_a_whole_model(tmp_path):
    whole = randomise(classifier(5))
    path = tmp_path / 'whole.pth'
    torch.save({'state_dict': whole.state_dict()}, path)
    other = classifier(5)
    report = load_base_weights(other, path)
    assert states_equal(whole, other)
    assert report.head_classes is None
    # A task of other classes, and a neck that is new.
    other = classifier(7)
    report = load_base_weights(other, path)
    assert [name for name, _ in report.fresh] == ['head.fc.weight', 'head.fc.bias']
    other = classifier(7)
    other.neck = nn.Conv2d(48, 48, 3)
    refuse(
        other,
        path,
        'neck.weight (48, 48, 1, 1) in the file, (48, 48, 3, 3) in',
        'trunk=(',
    )
    report = load_base_weights(other, path, trunk=('backbone',))
    fresh = dict(report.fresh)
    assert (
        fresh['neck.weight']
        == '(48, 48, 3, 3) in the model, (48, 48, 1, 1) in the file'
    )
    assert torch.equal(other.neck.bias, whole.neck.bias)
    assert states_equal(whole.backbone, other.backbone)
    # The trunk has to be there in full, whatever else is.
    state = whole.state_dict()
    del state['backbone.ln1.bias']
    torch.save(state, path)
    refuse(other, path, 'not in it (backbone.ln1.bias)', trunk=('backbone',))
    refuse(
        other, path, "has no tensors below 'trunk'; it has backbone", trunk=('trunk',)
    )


def test_a_backbone_alone_does_not_fill_a_whole_model(tmp_path):
    path = tmp_path / 'vit.pth'
    torch.save(mm_vit().state_dict(), path)
    refuse(classifier(5), path, 'pass the backbone alone, which is .backbone')


# --- wrappers -------------------------------------------------------------------------


@pytest.mark.parametrize('inside', [False, True])
def test_features_of_timm(tmp_path, inside):
    """A feature list names ``stages.0`` ``stages_0`` and ends before the head."""
    sizes = dict(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))
    reference = randomise(timm.create_model('convnext_atto', **sizes))
    path = tmp_path / 'convnext.pth'
    torch.save(reference.state_dict(), path)
    options = dict(features_only=True, out_indices=(1, 2), **sizes)
    if inside:
        model = mmpretrain_backbones.TIMMBackbone('convnext_atto', **options)
    else:
        model = timm.create_model('convnext_atto', **options)
    report = load_base_weights(model, path)
    dropped = dict(report.dropped)
    assert dropped['stages.3.blocks.0.norm.weight'].startswith('beyond the layers')
    model.train(False)
    expected = reference.forward_intermediates(image(64), indices=[1, 2])[1]
    for ours, theirs in zip(model(image(64)), expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize('wrapper', ['backbone', 'classifier', 'getter'])
def test_wrappers_of_timm(tmp_path, wrapper):
    """Also one whose ``state_dict`` renames what is in it."""
    sizes = dict(
        img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2, init_values=0.1
    )
    name = 'eva02_tiny_patch14_224'
    reference = randomise(timm.create_model(name, **sizes))
    path = tmp_path / 'eva.pth'
    torch.save(reference.state_dict(), path)
    if wrapper == 'backbone':
        model = mmpretrain_backbones.TIMMBackbone(name, **sizes)
    elif wrapper == 'classifier':
        model = TimmClassifier(name, **sizes)
    else:
        model = timm.create_model(name, features_only=True, out_indices=(0,), **sizes)
    report = load_base_weights(model, path)
    assert all(n in dict(model.named_parameters()) for n in report.matched)
    found = {n.rpartition('model.')[2]: p for n, p in model.named_parameters()}
    for key, tensor in found.items():
        assert torch.equal(tensor, reference.get_parameter(key)), key
    state = reference.state_dict()
    del state['blocks.0.norm1.weight']
    torch.save(state, path)
    refuse(model, path, 'blocks.0.norm1.weight')


# --- a description's own verb ---------------------------------------------------------


def test_a_description_may_convert(tmp_path, monkeypatch):
    net = moved(Net())
    path = tmp_path / 'net.pth'
    torch.save({f'x_{k}': t for k, t in net.state_dict().items()}, path)
    refuse(Net(), path, 'none of its')

    class Described(SiteMap):
        host = Net

        def convert(self, backbone, state):
            assert isinstance(backbone, Net)
            return {k.removeprefix('x_'): t for k, t in state.items()}

    monkeypatch.setattr(convert, 'find_site_map', lambda model: Described())
    other = Net()
    report = load_base_weights(other, path)
    assert report.layout == 'Described.convert'
    assert states_equal(net, other, ('index',))
    assert SiteMap().convert(Net(), {}) is None


# --- position tables ------------------------------------------------------------------


def spline(table: np.ndarray, old: int, new: int) -> np.ndarray:
    """BEiT's rule, from one-axis splines: distances grow by a constant factor."""
    half, goal = old // 2, new // 2
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        q = (low + high) / 2
        total = (1 - q**half) / (1 - q)
        low, high = (low, q) if total > goal else (q, high)
    reach = [(1 - q ** (i + 1)) / (1 - q) for i in range(half)]
    x = np.array([-r for r in reversed(reach)] + [0.0] + reach)
    asked = np.clip(np.arange(-goal, goal + 1), x[0], x[-1])
    plane = table.reshape(old, old, -1)
    rows = CubicSpline(x, plane, axis=0, bc_type='not-a-knot')(asked)
    return CubicSpline(x, rows, axis=1, bc_type='not-a-knot')(asked).reshape(new**2, -1)


@pytest.mark.parametrize(('old', 'new'), [(7, 15), (27, 47), (15, 7)])
def test_beit_tables_follow_one_axis_splines(old, new):
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(old * old + 3, 2, generator=generator, dtype=torch.double)
    ours = resize_geometric(table, (old, old), (new, new), 3)
    assert ours.shape == (new * new + 3, 2)
    expected = torch.from_numpy(spline(table[:-3].numpy(), old, new))
    torch.testing.assert_close(ours[:-3], expected, rtol=0, atol=1e-9)
    assert torch.equal(ours[-3:], table[-3:])
    centre = (old * old) // 2
    torch.testing.assert_close(ours[(new * new) // 2], table[centre])


def test_lines_and_planes():
    line = torch.arange(5.0)[:, None]
    # Centres of 10 cells on 5: half steps, and the ends held.
    expected = torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.25, 3.75, 4])
    torch.testing.assert_close(resize_line(line, 10)[:, 0], expected)
    plane = torch.full((1, 2, 3, 3), 1.5)
    torch.testing.assert_close(
        resize_plane(plane, (5, 4)), torch.full((1, 2, 5, 4), 1.5)
    )


SEG = dict(patch_size=8, embed_dims=16, num_layers=1, num_heads=2, mlp_ratio=2)


def test_beit_at_another_size(tmp_path):
    small = randomise(
        mmseg_backbones.BEiT(img_size=32, qv_bias=True, init_values=0.1, **SEG)
    )
    path = tmp_path / 'beit.pth'
    torch.save(small.state_dict(), path)
    name = 'layers.0.attn.relative_position_bias_table'
    table = small.state_dict()[name]
    expected = spline(table[:-3].double().numpy(), 7, 15)
    for model in (
        mmseg_backbones.BEiT(img_size=64, qv_bias=True, init_values=0.1, **SEG),
        mmpretrain_backbones.BEiTViT(
            arch=dict(
                embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=32
            ),
            img_size=64,
            patch_size=8,
        ),
    ):
        report = load_base_weights(model, path)
        assert report.resized == ((name, (52, 2), (228, 2)),)
        ours = model.state_dict()[name]
        torch.testing.assert_close(
            ours[:-3], torch.from_numpy(expected).float(), rtol=0, atol=1e-5
        )
        assert torch.equal(ours[-3:], table[-3:])
        randomise(model)
        assert model(image(64))


@pytest.mark.parametrize('rows', [(64, 64), (32, 64)])
def test_absolute_positions_at_another_size(tmp_path, rows):
    path = tmp_path / 'vit.pth'
    small = randomise(mmseg_backbones.VisionTransformer(img_size=32, **SEG))
    torch.save(small.state_dict(), path)
    model = mmseg_backbones.VisionTransformer(img_size=rows, **SEG)
    report = load_base_weights(model, path)
    count = 1 + rows[0] * rows[1] // 64
    assert report.resized == (('pos_embed', (1, 17, 16), (1, count, 16)),)
    assert torch.equal(model.pos_embed[:, 0], small.pos_embed[:, 0])
    new = (rows[0] // 8, rows[1] // 8)
    theirs = type(model).resize_pos_embed(small.pos_embed, new, (4, 4), 'bicubic')
    torch.testing.assert_close(model.pos_embed.data, theirs.data)


@pytest.mark.parametrize('old', [(8, 8), (4, 16), (16, 4), (8, 32)])
def test_absolute_positions_on_another_grid(tmp_path, old):
    """8 x 8 and 16 x 4 are as many as 4 x 16."""
    cls, sizes = mmseg_backbones.VisionTransformer, (8 * old[0], 8 * old[1])
    state = randomise(cls(img_size=sizes, **SEG)).state_dict()
    state['pos_embed'][:, 1:] = positions(old, 16)
    path = tmp_path / 'vit.pth'
    torch.save(state, path)
    model = cls(img_size=(32, 128), **SEG)
    report = load_base_weights(model, path)
    assert bool(report.resized) == (old != (4, 16))
    theirs = cls.resize_pos_embed(state['pos_embed'], (4, 16), old, 'bicubic')
    torch.testing.assert_close(model.pos_embed.data, theirs)


def test_positions_of_a_model_that_states_no_grid_stay(tmp_path):
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pos_embed = nn.Parameter(torch.zeros(1, 65, 16))

    path = tmp_path / 'plain.pth'
    table = torch.cat([torch.zeros(1, 1, 16), positions((8, 8), 16)], dim=1)
    torch.save({'pos_embed': table}, path)
    model = Plain()
    assert not load_base_weights(model, path).resized
    assert torch.equal(model.pos_embed, table)


def test_pvt_positions_at_another_size(tmp_path):
    sizes = dict(
        embed_dims=8,
        num_stages=1,
        num_layers=[1],
        num_heads=[1],
        patch_sizes=[4],
        strides=[4],
        paddings=[0],
        sr_ratios=[1],
        mlp_ratios=[2],
        out_indices=(0,),
    )
    cls = mmdet_backbones.PyramidVisionTransformer
    small = randomise(cls(pretrain_img_size=32, **sizes))
    path = tmp_path / 'pvt.pth'
    torch.save(small.state_dict(), path)
    model = cls(pretrain_img_size=48, **sizes)
    report = load_base_weights(model, path)
    assert report.resized == (('layers.0.1.0.pos_embed', (1, 64, 8), (1, 144, 8)),)


def test_sam_at_another_size(tmp_path):
    def sam(size: int) -> nn.Module:
        arch = dict(embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=32)
        return mmpretrain_backbones.ViTSAM(
            arch=dict(arch, global_attn_indexes=[0]),
            img_size=size,
            patch_size=8,
            use_rel_pos=True,
            out_channels=8,
        )

    path = tmp_path / 'sam.pth'
    torch.save(randomise(sam(32)).state_dict(), path)
    model = sam(64)
    report = load_base_weights(model, path)
    assert {old for _, old, _ in report.resized} == {(1, 4, 4, 16), (7, 8)}
    assert model.pos_embed.shape == (1, 8, 8, 16)


def test_a_table_of_no_grid_is_refused(tmp_path):
    path = tmp_path / 'vit.pth'
    state = mmseg_backbones.VisionTransformer(img_size=32, **SEG).state_dict()
    state['pos_embed'] = torch.zeros(1, 15, 16)
    torch.save(state, path)
    with pytest.raises(Exception, match='14 positions are no square grid') as caught:
        load_base_weights(mmseg_backbones.VisionTransformer(img_size=32, **SEG), path)
    assert '\n' not in str(caught.value)


def test_a_key_bias_is_not_lost(tmp_path):
    """A file with a key's bias does not go into a model that has none."""
    sizes = dict(img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2)
    options = dict(use_abs_pos_emb=False, use_rel_pos_bias=True, init_values=0.1)
    state = Beit(num_classes=0, **options, **sizes).state_dict()
    for name in list(state):
        if name.endswith('q_bias'):
            stem = name.removesuffix('q_bias')
            del state[name], state[f'{stem}v_bias']
            state[f'{stem}qkv.bias'] = torch.ones(48)
    path = tmp_path / 'beit.pth'
    torch.save(state, path)
    model = mmseg_backbones.BEiT(
        img_size=32, qv_bias=True, init_values=0.1, **(SEG | {'mlp_ratio': 4})
    )
    refuse(model, path, 'does not fit mmseg BEiT', 'attn.q_bias')
