"""Known weight files: facts, and files that bear a known name wrongly."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import mmpetl
from mmpetl import compat

compat.install()

from mmpetl.core import PETLError  # noqa: E402
from mmpetl.models.weights import (  # noqa: E402
    KNOWN_FILES,
    WeightsError,
    check_file,
    describe_file,
    find_known,
    load_base_weights,
    needed_by,
)
from mmpetl.models.weights.layouts import LAYOUTS  # noqa: E402


def vit_state(width=768, depth=12, head=None, **extra) -> dict[str, torch.Tensor]:
    """timm names and the shapes that tell a size, all else left out."""
    state = {'patch_embed.proj.weight': torch.zeros(width, 1, 1, 1)}
    for i in range(depth):
        state[f'blocks.{i}.attn.qkv.weight'] = torch.zeros(1)
    if head:
        state['head.weight'] = torch.zeros(head, 1)
    return state | extra


def npz(path, head=None, pre_logits=False, width=768, depth=12):
    arrays = {'embedding/kernel': np.zeros((1, 1, 1, width), np.float32)}
    for i in range(depth):
        arrays[f'Transformer/encoderblock_{i}/LayerNorm_0/scale'] = np.zeros(1)
    if head:
        arrays['head/kernel'] = np.zeros((1, head), np.float32)
    if pre_logits:
        arrays['pre_logits/bias'] = np.zeros(1, np.float32)
    np.savez(path, **arrays)
    return path


def module_of(tensors: dict[str, torch.Tensor]) -> torch.nn.Module:
    root = torch.nn.Module()
    for name, tensor in tensors.items():
        *way, leaf = name.split('.')
        node = root
        for part in way:
            if not hasattr(node, part):
                node.add_module(part, torch.nn.Module())
            node = getattr(node, part)
        node.register_parameter(leaf, torch.nn.Parameter(tensor))
    return root


def test_the_registry_holds_facts_in_their_forms():
    names = [known.name for known in KNOWN_FILES]
    assert len(set(names)) == len(names)
    layouts = {layout.name: layout.family for layout in LAYOUTS}
    for known in KNOWN_FILES:
        assert layouts[known.layout] == known.family
        assert known.url is None or known.url.startswith('https://')
        for digest, length in ((known.sha256, 64), (known.sha256_start, 8)):
            assert digest is None or re.fullmatch(f'[0-9a-f]{{{length}}}', digest)
        assert known.md5_start is None or re.fullmatch('[0-9a-f]{6}', known.md5_start)
        # A file without an address tells the user how to get it.
        assert known.url or known.note


def test_what_is_published_of_checksums_is_what_is_registered():
    assert find_known('ViT-B_16.npz').md5_start == 'd9715d'
    assert find_known('swin_base_patch4_window7_224_22k.pth').md5_start == 'bf9cc1'
    assert find_known('mae_pretrain_vit_base.pth').md5_start == '8cad7c'


def test_recipes_start_from_the_files_that_say_so():
    """One recipe of each folder, and all that lie in none."""
    from mmengine.config import Config

    folder = Path(mmpetl.__file__).parents[1] / 'configs' / 'recipes'
    paths = sorted(folder.glob('*.py'))
    paths += [
        min(below.glob('*.py'))
        for below in folder.iterdir()
        if below.is_dir() and any(below.glob('*.py'))
    ]
    named = set()
    for path in paths:
        recipe = path.relative_to(folder).with_suffix('').as_posix()
        checkpoint = Path(Config.fromfile(path).model.backbone.checkpoint).name
        assert [known.name for known in needed_by(recipe)] == [checkpoint], recipe
        named.add(recipe.partition('/')[0])
    for known in KNOWN_FILES:
        listed = [name for name in known.recipes if name.count('/') < 2]
        assert {name.partition('/')[0] for name in listed} <= named


def test_leaves_start_from_the_files_that_say_so():
    from mmpetl.apis import load_config
    from mmpetl.apis.compose import published_pairs

    own = {}
    for stem, recipe in published_pairs():
        files = needed_by(f'{stem}/{recipe}') or needed_by(recipe)
        own.setdefault((stem, recipe.partition('/')[0]), (recipe, files))
    for (stem, _), (recipe, files) in own.items():
        checkpoint = load_config(
            f'configs/{stem}/{recipe}.py'
        ).model.backbone.checkpoint
        assert Path(checkpoint).name in [known.name for known in files], (stem, recipe)


def test_files_are_found_by_recipe_and_name():
    assert [k.name for k in needed_by('vtab/cifar100')] == ['ViT-B_16.npz']
    assert [k.name for k in needed_by('coco')] == [
        'swin_base_patch4_window7_224_22k.pth'
    ]
    assert needed_by('ssf/vtab/cifar100')[0].release == 'AugReg in21k'
    assert needed_by('nothing') == ()
    with pytest.raises(PETLError, match=r'ViT-B_16\.npz'):
        find_known('vit-b_16.npz')


@pytest.mark.parametrize(
    ('head', 'pre_logits', 'release'),
    [
        (21843, True, 'original in21k'),
        (21843, False, 'AugReg in21k'),
        (None, True, 'original in21k'),
        (1000, False, None),
        (None, False, None),
    ],
)
def test_both_in21k_families_are_told_apart_by_their_keys(
    tmp_path, head, pre_logits, release
):
    facts = describe_file(npz(tmp_path / 'x.npz', head, pre_logits))
    assert facts.release == release
    assert (facts.size, facts.layout) == ('ViT-B', 'Google npz')
    assert facts.head_classes == (head or 0)


@pytest.mark.parametrize(
    ('width', 'depth', 'size'),
    [(768, 12, 'ViT-B'), (1024, 24, 'ViT-L'), (1280, 32, 'ViT-H'), (48, 2, None)],
)
def test_sizes_are_named(tmp_path, width, depth, size):
    facts = describe_file(npz(tmp_path / 'x.npz', width=width, depth=depth))
    assert facts.size == size
    assert (facts.width, facts.depth) == (width, depth)
    assert size is None or size in str(facts)


def refusal(path) -> str:
    with pytest.raises(WeightsError) as caught:
        load_base_weights(module_of(vit_state()), path)
    message = str(caught.value)
    assert '\n' not in message
    assert str(path) in message
    return message


def test_a_fine_tuned_vit_under_the_name_of_the_21k_trunk_is_refused(tmp_path):
    """No recipe has to ask for it: the name alone promises ImageNet-21k."""
    message = refusal(npz(tmp_path / 'ViT-B_16.npz', head=1000))
    assert 'not the published file of that name' in message
    assert 'a classifier of 1000 classes, not one of 21843' in message
    assert 'rename it if it is your own' in message
    assert 'no classifier, not one of 21843' in refusal(npz(tmp_path / 'ViT-B_16.npz'))


def test_a_fine_tuned_mae_under_the_name_of_the_encoder_is_refused(tmp_path):
    path = tmp_path / 'mae_pretrain_vit_base.pth'
    torch.save({'model': vit_state(head=1000)}, path)
    assert 'a classifier of 1000 classes, not none' in refusal(path)


def test_augreg_under_the_original_name_loads_and_says_so(tmp_path):
    """Much code renames it so; both are trunks of ImageNet-21k."""
    path = tmp_path / 'ViT-B_16.npz'
    arrays = {'embedding/kernel': np.ones((1, 1, 1, 768), np.float32)}
    for i in range(12):
        stem = f'Transformer/encoderblock_{i}/MultiHeadDotProductAttention_1'
        for name in ('query', 'key', 'value'):
            arrays[f'{stem}/{name}/kernel'] = np.ones((1, 1, 1), np.float32)
    np.savez(path, **arrays, **{'head/kernel': np.zeros((1, 21843), np.float32)})
    host = vit_state()
    for i in range(12):
        host[f'blocks.{i}.attn.qkv.weight'] = torch.zeros(3, 1)
    report = load_base_weights(module_of(host), path)
    assert report.release == 'AugReg in21k'
    assert 'not the published ViT-B_16.npz' in report.notes[0]
    assert 'AugReg in21k' in report.notes[0]
    assert 'AugReg in21k' in report.summary()


def test_a_known_name_on_a_model_of_another_size_is_somebodys_own(tmp_path):
    path = npz(tmp_path / 'ViT-B_16.npz', head=10, width=48, depth=2)
    with pytest.raises(WeightsError) as caught:
        load_base_weights(module_of(vit_state(48, 2)), path)
    assert 'published' not in str(caught.value)


def test_check_file_says_what_is_wrong(tmp_path):
    known = find_known('dinov2_vitb14_pretrain.pth')
    path = tmp_path / known.name

    def wrong(state) -> str:
        torch.save(state, path)
        return '; '.join(check_file(path, known))

    assert wrong(vit_state()) == ''
    assert 'width 1024 and depth 24, not 768 and 12: a ViT-L' in wrong(
        vit_state(1024, 24)
    )
    assert 'depth 13' in wrong(vit_state(depth=13))
    assert 'a classifier of 1000 classes, not none' in wrong(vit_state(head=1000))
    swin = {
        'patch_embed.proj.weight': torch.zeros(128, 1, 1, 1),
        'layers.0.blocks.0.attn.qkv.weight': torch.zeros(1),
        'layers.0.downsample.norm.weight': torch.zeros(1),
    }
    assert 'it holds an image Swin, not an image ViT' in wrong(swin)
    path.write_text('<!DOCTYPE html><html>Sign in</html>')
    assert 'is a web page' in check_file(path, known)[0]
    content = tmp_path / 'whole'
    torch.save(vit_state(), content)
    path.write_bytes(content.read_bytes()[:2000])
    assert 'truncated or damaged' in check_file(path, known)[0]
    # A file with a known checksum is held against it, whatever else it holds.
    clip = find_known('ViT-B-16.pt')
    path.write_bytes(content.read_bytes())
    assert re.match(
        'sha256 begins [0-9a-f]{8}, not 5806e77c', check_file(path, clip)[0]
    )
