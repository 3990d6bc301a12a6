"""Small models of every family, and files in the formats of their authors."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from torch import nn

from mmpetl import compat

compat.install()

import mmaction.models as mmaction  # noqa: E402
import mmpretrain.models as mmpretrain  # noqa: E402
import timm  # noqa: E402

from mmpetl.models.weights import WeightsError, load_base_weights  # noqa: E402

WIDTH, DEPTH, HEADS, HIDDEN, PATCH, SIZE = 48, 2, 4, 96, 8, 32


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter away from its start, so that a mix-up shows in the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            is_gain = name.endswith('weight') and p.dim() == 1
            p.copy_(1 + 0.2 * noise if is_gain else 0.1 * noise)
    module.train(False)
    return module


def mm_vit(**kwargs) -> nn.Module:
    arch = dict(
        embed_dims=WIDTH,
        num_layers=DEPTH,
        num_heads=HEADS,
        feedforward_channels=HIDDEN,
    )
    defaults = dict(arch=arch, img_size=SIZE, patch_size=PATCH)
    return randomise(mmpretrain.VisionTransformer(**{**defaults, **kwargs}), 99)


def timm_vit(**kwargs) -> nn.Module:
    defaults = dict(
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
        mlp_ratio=HIDDEN / WIDTH,
        img_size=SIZE,
        patch_size=PATCH,
        num_classes=0,
    )
    return randomise(timm.models.VisionTransformer(**{**defaults, **kwargs}))


def video_mae(**kwargs) -> nn.Module:
    defaults = dict(
        img_size=SIZE,
        patch_size=PATCH,
        embed_dims=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
        mlp_ratio=2,
        num_frames=4,
    )
    cls = mmaction.backbones.vit_mae.VisionTransformer
    return randomise(cls(**{**defaults, **kwargs}))


def swin_kwargs(**kwargs) -> dict:
    return dict(embed_dims=16, depths=(2, 2, 2, 1), num_heads=(2, 2, 4, 4), **kwargs)


def mm_swin(window_size: int = 4, **kwargs) -> nn.Module:
    arch = swin_kwargs()
    model = mmpretrain.SwinTransformer(
        arch=arch, window_size=window_size, **{'img_size': 128, **kwargs}
    )
    return randomise(model, 99)


def video_swin(**kwargs) -> nn.Module:
    arch = swin_kwargs()
    model = mmaction.SwinTransformer3D(
        arch=arch, pretrained2d=False, **{'window_size': (2, 4, 4), **kwargs}
    )
    return randomise(model)


def image(size: int = SIZE, seed: int = 3) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


def clip(frames: int = 4, size: int = SIZE) -> torch.Tensor:
    return torch.randn(
        1, 3, frames, size, size, generator=torch.Generator().manual_seed(3)
    )


def positions(grid: tuple[int, int], channels: int = WIDTH) -> torch.Tensor:
    """(1, h*w, C) as training leaves them: neighbours are close, far ones are not."""
    generator = torch.Generator().manual_seed(1)
    waves = torch.rand(3, channels, generator=generator) - 0.5
    rows, columns = torch.meshgrid(*map(torch.arange, grid), indexing='ij')
    places = torch.stack([rows, columns, torch.full(grid, 6)], dim=-1).flatten(0, 1)
    return torch.cos(places.float() @ waves)[None]


def google_arrays(
    head: int | None = 11, pre_logits: bool = False, patch: int = PATCH
) -> dict:
    """Random arrays in the shapes of the official Flax checkpoints."""
    rng = np.random.default_rng(1)
    dim = WIDTH // HEADS

    def draw(*shape):
        return (0.1 * rng.standard_normal(shape)).astype(np.float32)

    arrays = {
        'cls': draw(1, 1, WIDTH),
        'embedding/kernel': draw(patch, patch, 3, WIDTH),
        'embedding/bias': draw(WIDTH),
        'Transformer/posembed_input/pos_embedding': draw(1, 17, WIDTH),
        'Transformer/encoder_norm/scale': 1 + draw(WIDTH),
        'Transformer/encoder_norm/bias': draw(WIDTH),
    }
    for i in range(DEPTH):
        block = f'Transformer/encoderblock_{i}'
        attention = f'{block}/MultiHeadDotProductAttention_1'
        for name in ('query', 'key', 'value'):
            arrays[f'{attention}/{name}/kernel'] = draw(WIDTH, HEADS, dim)
            arrays[f'{attention}/{name}/bias'] = draw(HEADS, dim)
        arrays[f'{attention}/out/kernel'] = draw(HEADS, dim, WIDTH)
        arrays[f'{attention}/out/bias'] = draw(WIDTH)
        for norm in (0, 2):
            arrays[f'{block}/LayerNorm_{norm}/scale'] = 1 + draw(WIDTH)
            arrays[f'{block}/LayerNorm_{norm}/bias'] = draw(WIDTH)
        arrays[f'{block}/MlpBlock_3/Dense_0/kernel'] = draw(WIDTH, HIDDEN)
        arrays[f'{block}/MlpBlock_3/Dense_0/bias'] = draw(HIDDEN)
        arrays[f'{block}/MlpBlock_3/Dense_1/kernel'] = draw(HIDDEN, WIDTH)
        arrays[f'{block}/MlpBlock_3/Dense_1/bias'] = draw(WIDTH)
    if pre_logits:
        arrays['pre_logits/kernel'] = draw(WIDTH, WIDTH)
        arrays['pre_logits/bias'] = draw(WIDTH)
    if head:
        arrays['head/kernel'] = draw(WIDTH, head)
        arrays['head/bias'] = draw(head)
    return arrays


def clip_reference() -> nn.Module:
    return timm_vit(
        pre_norm=True,
        act_layer=timm.layers.QuickGELU,
        norm_layer=functools.partial(timm.layers.LayerNorm, eps=1e-5),
    )


def clip_host(**kwargs) -> nn.Module:
    layer = dict(act_cfg=dict(type='mmpretrain.QuickGELU'))
    norm = dict(type='LN', eps=1e-5)
    return mm_vit(**{'pre_norm': True, 'layer_cfgs': layer, 'norm_cfg': norm, **kwargs})


def openai_state() -> dict[str, torch.Tensor]:
    """Random image tower and a token of a text tower, in OpenAI's names."""
    generator = torch.Generator().manual_seed(5)

    def draw(*shape):
        return 0.1 * torch.randn(shape, generator=generator)

    state = {
        'class_embedding': draw(WIDTH),
        'positional_embedding': draw(17, WIDTH),
        'proj': draw(WIDTH, 7),
        'conv1.weight': draw(WIDTH, 3, PATCH, PATCH),
    }
    shapes = {
        'attn.in_proj_weight': (3 * WIDTH, WIDTH),
        'attn.in_proj_bias': (3 * WIDTH,),
        'attn.out_proj.weight': (WIDTH, WIDTH),
        'attn.out_proj.bias': (WIDTH,),
        'mlp.c_fc.weight': (HIDDEN, WIDTH),
        'mlp.c_fc.bias': (HIDDEN,),
        'mlp.c_proj.weight': (WIDTH, HIDDEN),
        'mlp.c_proj.bias': (WIDTH,),
    }
    for i in range(DEPTH):
        block = f'transformer.resblocks.{i}.'
        for name, shape in shapes.items():
            state[block + name] = draw(*shape)
        for norm in ('ln_1', 'ln_2'):
            state[f'{block}{norm}.weight'] = 1 + draw(WIDTH)
            state[f'{block}{norm}.bias'] = draw(WIDTH)
    for norm in ('ln_pre', 'ln_post'):
        state[f'{norm}.weight'] = 1 + draw(WIDTH)
        state[f'{norm}.bias'] = draw(WIDTH)
    state = {f'visual.{k}': v for k, v in state.items()}
    state['transformer.resblocks.0.attn.in_proj_weight'] = draw(3, 3)
    state['logit_scale'] = draw(1)[0]
    return state


class Branch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def scripted(state: dict[str, torch.Tensor]) -> torch.jit.ScriptModule:
    """A TorchScript module whose tensors have the names of ``state``."""
    root = Branch()
    for name, tensor in state.items():
        *path, leaf = name.split('.')
        node = root
        for part in path:
            if part not in dict(node.named_children()):
                node.add_module(part, Branch())
            node = node.get_submodule(part)
        node.register_parameter(leaf, nn.Parameter(tensor))
    return torch.jit.script(root)


def timm_swin(**kwargs) -> nn.Module:
    defaults = dict(
        embed_dim=16,
        depths=(2, 2, 2, 1),
        num_heads=(2, 2, 4, 4),
        img_size=128,
        window_size=4,
        num_classes=21,
    )
    cls = timm.models.swin_transformer.SwinTransformer
    return randomise(cls(**{**defaults, **kwargs}))


def official_swin(model: nn.Module) -> dict[str, torch.Tensor]:
    """timm's state in the authors' names: merging one stage earlier, buffers stored."""
    state = {}
    for name, tensor in model.state_dict().items():
        parts = name.split('.')
        if parts[2:3] == ['downsample']:
            parts[1] = str(int(parts[1]) - 1)
        if parts[0] == 'head':
            parts.remove('fc')
        state['.'.join(parts)] = tensor
        if parts[-1] == 'relative_position_bias_table':
            index = torch.zeros(16, 16, dtype=torch.long)
            state['.'.join([*parts[:-1], 'relative_position_index'])] = index
            state['.'.join([*parts[:-2], 'attn_mask'])] = torch.zeros(4, 16, 16)
    return state


def official_videomae(model: nn.Module, prefix: str = '') -> dict[str, torch.Tensor]:
    state = {}
    for name, tensor in model.named_parameters():
        name = name.replace('projection', 'proj')
        name = name.replace('layers.0.0', 'fc1').replace('mlp.layers.1', 'mlp.fc2')
        state[prefix + name] = tensor.detach()
    return state


def refuse(host: nn.Module, path, *parts: str, **kwargs) -> None:
    """One line that names the file and says each of ``parts``; nothing has moved."""
    before = {k: v.clone() for k, v in host.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_base_weights(host, path, **kwargs)
    message = str(caught.value)
    print(message)
    assert '\n' not in message
    assert path.name in message
    for part in parts:
        assert part in message
    for name, tensor in host.state_dict().items():
        assert torch.equal(tensor, before[name])


class Payload:
    def __reduce__(self):
        return (math.sqrt, (4.0,))


def module_of(tensors: dict[str, torch.Tensor]) -> nn.Module:
    """A module whose parameters have these names."""
    root = nn.Module()
    for name, tensor in tensors.items():
        *way, leaf = name.split('.')
        node = root
        for part in way:
            if not hasattr(node, part):
                node.add_module(part, nn.Module())
            node = getattr(node, part)
        node.register_parameter(leaf, nn.Parameter(tensor))
    return root
