"""The swapped backbone without a method against the original.

Example: python speed/backbones.py --rounds 10 --write
         python speed/backbones.py --only Swin

Both hold the same weights; the swapped one has every site and nothing plugged in.

Seconds are those of the processor (``--wall``: of the clock). Every row is kept in
``--out`` as it is done, and a call goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path

import torch
from page import keep, read_rows, write_table
from timing import device_name, markdown, ratio, time_rounds
from torch import nn

import mmpetl
from mmpetl.core import Method, Role


class Nothing(Method):
    """Swaps the classes, plugs nothing, trains everything."""

    family = 'baseline'

    def selects(self, role: Role) -> bool:
        """All of the base."""
        return True


def make_cases() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    """Backbones as papers use them, fewer frames and blocks where a CPU is slow."""
    import mmaction.models as video
    import mmdet.models as det
    import mmpretrain.models as image
    import mmseg.models as seg
    import timm
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope('mmaction'):
        timesformer = video.TimeSformer(
            num_frames=8, img_size=224, patch_size=16, num_transformer_layers=4
        )
    vit_b = {
        'embed_dims': 768,
        'num_layers': 6,
        'num_heads': 12,
        'feedforward_channels': 3072,
    }
    seg_b = {'num_layers': 6, 'out_indices': (2, 5)}
    swin_b = {'embed_dims': 128, 'depths': (2, 2, 4, 2), 'num_heads': (4, 8, 16, 32)}
    return {
        'mmpretrain ViT-B/16, 224 px': (
            image.VisionTransformer(arch='base'),
            torch.randn(2, 3, 224, 224),
        ),
        'timm ViT-B/16, 224 px': (
            timm.create_model('vit_base_patch16_224', num_classes=0),
            torch.randn(2, 3, 224, 224),
        ),
        'timm DINOv3 ViT-B/16 (6 blocks), 256 px': (
            timm.create_model('vit_base_patch16_dinov3', num_classes=0, depth=6),
            torch.randn(2, 3, 256, 256),
        ),
        'timm EVA-02-B/14 (6 blocks), 224 px': (
            timm.create_model('eva02_base_patch14_224', num_classes=0, depth=6),
            torch.randn(2, 3, 224, 224),
        ),
        'timm Sapiens2-B/16 (6 blocks, half the key heads), 256 px': (
            timm.create_model(
                'vit_base_patch16_sapiens2',
                num_classes=0,
                img_size=256,
                depth=6,
                num_kv_heads=6,
            ),
            torch.randn(2, 3, 256, 256),
        ),
        'timm BEiT-B/16 (6 blocks), 224 px': (
            timm.create_model('beit_base_patch16_224', num_classes=0, depth=6),
            torch.randn(2, 3, 224, 224),
        ),
        'timm DeiT-S/16 distilled (6 blocks), 224 px': (
            timm.create_model(
                'deit_small_distilled_patch16_224', num_classes=0, depth=6
            ),
            torch.randn(2, 3, 224, 224),
        ),
        'timm ViT-B/16 side by side (6 blocks), 224 px': (
            timm.create_model('vit_base_patch16_xp_224', num_classes=0, depth=6),
            torch.randn(2, 3, 224, 224),
        ),
        'timm SAM ViT-B/16 (4 blocks), 512 px': (
            timm.create_model(
                'samvit_base_patch16',
                num_classes=0,
                img_size=512,
                depth=4,
                global_attn_indexes=(3,),
            ),
            torch.randn(1, 3, 512, 512),
        ),
        'mmpretrain ViT-B/16, gated networks (6 blocks), 224 px': (
            image.VisionTransformer(
                arch=vit_b, layer_cfgs={'ffn_type': 'swiglu_fused'}
            ),
            torch.randn(2, 3, 224, 224),
        ),
        'mmpretrain BEiT-B/16 (6 blocks), 224 px': (
            image.BEiTViT(arch=vit_b),
            torch.randn(2, 3, 224, 224),
        ),
        'mmpretrain DeiT-B/16 distilled (6 blocks), 224 px': (
            image.DistilledVisionTransformer(arch=vit_b, out_type='featmap'),
            torch.randn(2, 3, 224, 224),
        ),
        'mmpretrain DeiT III-B/16 (6 blocks), 224 px': (
            image.DeiT3(arch=vit_b),
            torch.randn(2, 3, 224, 224),
        ),
        'mmpretrain EVA-02-B/14 (6 blocks), 224 px': (
            image.ViTEVA02(
                arch={**vit_b, 'feedforward_channels': 2048}, patch_size=14, sub_ln=True
            ),
            torch.randn(2, 3, 224, 224),
        ),
        'mmpretrain SAM ViT-B/16 (4 blocks), 512 px': (
            image.ViTSAM(
                arch={**vit_b, 'num_layers': 4, 'global_attn_indexes': [3]},
                img_size=512,
            ),
            torch.randn(1, 3, 512, 512),
        ),
        'mmseg ViT-B/16 (6 blocks), 384 px': (
            seg.VisionTransformer(img_size=384, **seg_b),
            torch.randn(1, 3, 384, 384),
        ),
        'mmseg BEiT-B/16 (6 blocks), 384 px': (
            seg.BEiT(img_size=384, **seg_b),
            torch.randn(1, 3, 384, 384),
        ),
        'mmseg MAE-B/16 (6 blocks), 384 px': (
            seg.MAE(img_size=384, **seg_b),
            torch.randn(1, 3, 384, 384),
        ),
        'mmpretrain Swin-B (4 blocks in stage 3), 224 px': (
            image.SwinTransformer(arch=swin_b, drop_path_rate=0.0),
            torch.randn(2, 3, 224, 224),
        ),
        'mmpretrain Swin-B (4 blocks in stage 3), dense, 300 x 420': (
            image.SwinTransformer(
                arch=swin_b,
                drop_path_rate=0.0,
                out_indices=(0, 1, 2, 3),
                pad_small_map=True,
            ),
            torch.randn(1, 3, 300, 420),
        ),
        **{
            f'{name} Swin-B (4 blocks in stage 3), dense, 300 x 420': (
                package.SwinTransformer(drop_path_rate=0.0, **swin_b),
                torch.randn(1, 3, 300, 420),
            )
            for name, package in (('mmdet', det), ('mmseg', seg))
        },
        'mmpretrain Swin V2-B (4 blocks in stage 3), 256 px': (
            image.SwinTransformerV2(
                arch={**swin_b, 'extra_norm_every_n_blocks': 0}, drop_path_rate=0.0
            ),
            torch.randn(2, 3, 256, 256),
        ),
        'timm Swin-B (4 blocks in stage 3), 224 px': (
            timm.create_model(
                'swin_base_patch4_window7_224',
                num_classes=0,
                depths=(2, 2, 4, 2),
                drop_path_rate=0.0,
            ),
            torch.randn(2, 3, 224, 224),
        ),
        'timm Swin V2-B (4 blocks in stage 3), 256 px': (
            timm.create_model(
                'swinv2_base_window8_256',
                num_classes=0,
                depths=(2, 2, 4, 2),
                drop_path_rate=0.0,
            ),
            torch.randn(2, 3, 256, 256),
        ),
        'mmaction VideoMAE ViT-B (4 blocks), 8 x 224 px': (
            video.VisionTransformer(depth=4, num_frames=8),
            torch.randn(1, 3, 8, 224, 224),
        ),
        'mmaction TimeSformer-B divided (4 blocks), 8 x 224 px': (
            timesformer,
            torch.randn(1, 3, 8, 224, 224),
        ),
        'mmaction UniFormerV2-B/16 (4 blocks, 2 of the decoder), 8 x 224 px': (
            video.UniFormerV2(
                layers=4,
                return_list=[2, 3],
                n_layers=2,
                mlp_dropout=[0.0, 0.0],
                clip_pretrained=False,
            ),
            torch.randn(1, 3, 8, 224, 224),
        ),
        'mmaction Video Swin-B (4 blocks in stage 3), 8 x 224 px': (
            video.SwinTransformer3D(
                arch=swin_b,
                pretrained2d=False,
                patch_size=(2, 4, 4),
                window_size=(8, 7, 7),
                drop_path_rate=0.0,
            ),
            torch.randn(1, 3, 8, 224, 224),
        ),
    }


def pyramids() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    """Trunks with fewer keys than queries, at the size of a crop for segmentation."""
    import mmdet.models.backbones as detection
    import mmpretrain.models as image
    import mmseg.models.backbones as segmentation
    import timm

    mit = {'embed_dims': 64, 'num_layers': [3, 4, 6, 3], 'num_heads': [1, 2, 5, 8]}
    pvt = {'num_layers': [3, 4, 6, 3], 'drop_path_rate': 0.0}
    svt = {
        'embed_dims': [64, 128, 256, 512],
        'num_heads': [2, 4, 8, 16],
        'mlp_ratios': [4, 4, 4, 4],
        'depths': [2, 2, 10, 4],
        'windiow_sizes': [7, 7, 7, 7],
        'sr_ratios': [8, 4, 2, 1],
        'qkv_bias': True,
        'drop_path_rate': 0.0,
    }
    mscan = {'mlp_ratios': [8, 8, 4, 4], 'depths': [3, 3, 5, 2]}
    mscan |= {'embed_dims': [32, 64, 160, 256], 'norm_cfg': {'type': 'BN'}}
    all_four = (0, 1, 2, 3)
    x = torch.randn(1, 3, 512, 512)
    return {
        'mmseg MiT-B2, 512 px': (segmentation.MixVisionTransformer(**mit), x),
        'mmdet PVT-S, 512 px': (detection.PyramidVisionTransformer(**pvt), x),
        'mmdet PVTv2-B2, 512 px': (
            detection.PyramidVisionTransformerV2(embed_dims=64, **pvt),
            x,
        ),
        'timm PVTv2-B2, 512 px': (timm.create_model('pvt_v2_b2', num_classes=0), x),
        'mmseg Twins-PCPVT-S, 512 px': (
            segmentation.PCPVT(
                embed_dims=[64, 128, 320, 512],
                num_heads=[1, 2, 5, 8],
                mlp_ratios=[8, 8, 4, 4],
                qkv_bias=True,
            ),
            x,
        ),
        'mmseg Twins-SVT-S, 512 px': (segmentation.SVT(**svt), x),
        'mmpretrain Twins-SVT-S, 512 px': (
            image.SVT(arch='small', qkv_bias=True, out_indices=all_four),
            x,
        ),
        'mmseg MSCAN-T, 512 px': (segmentation.MSCAN(**mscan), x),
    }


def pooling() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    """Trunks that pool queries inside of blocks."""
    import mmaction.models as video
    import mmpretrain.models as image
    import timm

    return {
        'mmpretrain MViTv2-T, 224 px': (
            image.MViT(arch='tiny'),
            torch.randn(2, 3, 224, 224),
        ),
        'mmaction MViTv2-T, 8 x 224 px': (
            video.MViT(arch='tiny', temporal_size=8),
            torch.randn(1, 3, 8, 224, 224),
        ),
        'timm SAM 2 Hiera-T, 448 px': (
            timm.create_model('sam2_hiera_tiny', num_classes=0),
            torch.randn(1, 3, 448, 448),
        ),
        'timm Hiera-T, 224 px': (
            timm.create_model('hiera_tiny_224', num_classes=0),
            torch.randn(2, 3, 224, 224),
        ),
    }


def loss_of(output: torch.Tensor | tuple) -> torch.Tensor:
    """A scalar that depends on every output."""
    if isinstance(output, torch.Tensor):
        return output.square().mean()
    return sum(map(loss_of, output))


def measure(
    model: nn.Module, x: torch.Tensor, rounds: int, clock: Callable[[], float]
) -> list[str]:
    """Forward and forward + backward, swapped relative to original."""
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    original = model.to(device)
    original.eval()  # mmpretrain's eval() returns None
    swapped = copy.deepcopy(original)
    mmpetl.inject(swapped, Nothing())
    swapped.eval()
    x = x.to(device)

    def forward(net: nn.Module) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad():
                net(x)

        return run

    def step(net: nn.Module) -> Callable[[], None]:
        def run() -> None:
            net.zero_grad(set_to_none=True)
            loss_of(net(x)).backward()

        return run

    cells = []
    for kind in (forward, step):
        times = time_rounds(
            {'a': kind(original), 'b': kind(swapped)}, rounds, clock=clock
        )
        cells.append(str(ratio(times, 'b', 'a')))
    # The step of a frozen trunk: relative tables train in neither, so that attention
    # may take its fastest kernel.
    for net in (original, swapped):
        net.requires_grad_(False)
        next(net.parameters()).requires_grad_(True)
    times = time_rounds({'a': step(original), 'b': step(swapped)}, rounds, clock=clock)
    cells.append(str(ratio(times, 'b', 'a')))
    return cells


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--only', default='', help='part of a backbone name')
    parser.add_argument('--wall', action='store_true', help='time by the clock')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/backbones.jsonl'))
    parser.add_argument('--again', action='store_true', help='also what is done')
    parser.add_argument('--write', action='store_true', help='write docs/speed.md')
    args = parser.parse_args()
    wall = args.wall or torch.cuda.is_available()
    case = {
        'rounds': args.rounds,
        'time': 'wall' if wall else 'processor',
        'device': device_name(),
        'threads': torch.get_num_threads(),
        'torch': torch.__version__,
    }
    rows = {r['backbone']: r for r in read_rows(args.out) if r.get('case') == case}
    clock = time.perf_counter if wall else time.process_time
    cases = make_cases() | pyramids() | pooling()
    for name, (model, x) in cases.items():
        if args.only.lower() in name.lower() and (args.again or name not in rows):
            cells = measure(model, x, args.rounds, clock)
            rows[name] = {'case': case, 'backbone': name, 'ratios': cells}
            keep(args.out, rows[name])
            print(name, *cells, sep='  ', flush=True)
    lines = [['swapped / original', 'forward', 'full step', 'frozen-trunk step']]
    lines += [[name, *rows[name]['ratios']] for name in cases if name in rows]
    text = markdown(lines)
    print(f'\n{case}\n\n{text}')
    if args.write:
        write_table('swapped', case, text)


if __name__ == '__main__':
    main()
