"""The weight files that recipes start from: what is known of each, and no more.

A field is None where nothing is known; nobody's guess stands in for a checksum. A file
without a full checksum is still told from others by what it holds (``identity.py``).
Addresses are those that the files' authors, or upstream packages, publish.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmpetl.core import PETLError, suggest

VIT_MODELS = 'https://storage.googleapis.com/vit_models/'
SWIN = 'https://github.com/SwinTransformer/storage/releases/download/'


@dataclass(frozen=True)
class KnownFile:
    """One published weight file, or one of which only an address is known.

    Attributes:
        name: File name, as configs state it below ``MMPETL_WEIGHTS``.
        title: What it is, for people.
        url: Where it is published; None where a person has to fetch it.
        layout: Naming of its keys, as ``LoadReport.layout`` says it.
        family: ``'vit'``, ``'swin'``, ``'videomae'`` or ``'video_swin'``; empty where
            nothing is known of the content.
        width: Channels of the first stage.
        depth: Number of blocks, all stages together.
        head_classes: Outputs of its classifier; 0 if it must have none, None if
            unknown.
        release: Which of two releases of one model, told from the keys.
        size_bytes: Exact size.
        sha256: Whole hex digest.
        sha256_start: First digits of it, where only those are published.
        md5_start: First digits of the md5.
        recipes: Names below ``configs/recipes`` that start from it, ``vtab/*`` for a
            folder, and leaves below ``configs`` of which no recipe says it,
            ``ssf/vtab/*``.
        licence: Identifier of its licence.
        note: What a user must know to fetch or to use it.
    """

    name: str
    title: str
    url: str | None
    layout: str = ''
    family: str = ''
    width: int = 0
    depth: int = 0
    head_classes: int | None = None
    release: str | None = None
    size_bytes: int | None = None
    sha256: str | None = None
    sha256_start: str | None = None
    md5_start: str | None = None
    recipes: tuple[str, ...] = ()
    licence: str | None = None
    note: str = ''

    @property
    def is_listed(self) -> bool:
        """Whether it is known what the file holds."""
        return bool(self.family)


ORIGINAL, AUGREG = 'original in21k', 'AugReg in21k'

KNOWN_FILES: tuple[KnownFile, ...] = (
    KnownFile(
        'ViT-B_16.npz',
        'ViT-B/16, ImageNet-21k, original release',
        f'{VIT_MODELS}imagenet21k/ViT-B_16.npz',
        'Google npz',
        'vit',
        768,
        12,
        head_classes=21843,
        release=ORIGINAL,
        md5_start='d9715d',
        recipes=(
            'vtab/*',
            'fgvc/*',
            'many_shot/*',
            'dtl/vtab_plus/*',
            'rep_adapter/vtab_attn/*',
            'binary/vtab_adaptformer/*',
        ),
    ),
    KnownFile(
        'B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz',
        'ViT-B/16, ImageNet-21k, AugReg release',
        f'{VIT_MODELS}augreg/'
        'B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz',
        'Google npz',
        'vit',
        768,
        12,
        head_classes=21843,
        release=AUGREG,
        recipes=tuple(
            f'{method}/{benchmark}/*'
            for method in ('ssf', 'hst', 'gps')
            for benchmark in ('vtab', 'fgvc')
        ),
        note='another accuracy than the original release; state which one was used',
    ),
    KnownFile(
        'ViT-L_16.npz',
        'ViT-L/16, ImageNet-21k, original release',
        f'{VIT_MODELS}imagenet21k/ViT-L_16.npz',
        'Google npz',
        'vit',
        1024,
        24,
        head_classes=21843,
        release=ORIGINAL,
    ),
    KnownFile(
        'L_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.1-sd_0.1.npz',
        'ViT-L/16, ImageNet-21k, AugReg release',
        f'{VIT_MODELS}augreg/'
        'L_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.1-sd_0.1.npz',
        'Google npz',
        'vit',
        1024,
        24,
        head_classes=21843,
        release=AUGREG,
    ),
    KnownFile(
        'ViT-H_14.npz',
        'ViT-H/14, ImageNet-21k, original release',
        f'{VIT_MODELS}imagenet21k/ViT-H_14.npz',
        'Google npz',
        'vit',
        1280,
        32,
        head_classes=21843,
        release=ORIGINAL,
        note='patch 14: 256 + 1 tokens at 224 px',
    ),
    KnownFile(
        'swin_base_patch4_window7_224_22k.pth',
        'Swin-B, ImageNet-22k',
        f'{SWIN}v1.0.0/swin_base_patch4_window7_224_22k.pth',
        'official Swin',
        'swin',
        128,
        24,
        head_classes=21841,
        md5_start='bf9cc1',
        recipes=('coco',),
    ),
    KnownFile(
        'swin_large_patch4_window7_224_22k.pth',
        'Swin-L, ImageNet-22k',
        f'{SWIN}v1.0.0/swin_large_patch4_window7_224_22k.pth',
        'official Swin',
        'swin',
        192,
        24,
        head_classes=21841,
        recipes=('ade20k', 'voc', 'voc_seg'),
    ),
    KnownFile(
        'swin_tiny_patch4_window7_224.pth',
        'Swin-T, ImageNet-1k',
        f'{SWIN}v1.0.0/swin_tiny_patch4_window7_224.pth',
        'official Swin',
        'swin',
        96,
        12,
        recipes=('nyud_mt',),
    ),
    KnownFile(
        'videomae_pretrain_vit_b_1600.pth',
        'VideoMAE ViT-B, Kinetics-400, self-supervised, 1600 epochs, as AdaptFormer '
        're-packed it',
        'https://github.com/ShoufaChen/AdaptFormer/releases/download/v0.1/'
        'videomae_pretrain_vit_b_1600.pth',
        'AdaptFormer VideoMAE',
        'videomae',
        768,
        12,
        head_classes=0,
        recipes=('ssv2', 'hmdb51', 'kinetics400'),
    ),
    KnownFile(
        'videomae_vit_b_k400_1600e_checkpoint.pth',
        "VideoMAE ViT-B, Kinetics-400, self-supervised, 1600 epochs, authors' file",
        None,
        'VideoMAE',
        'videomae',
        768,
        12,
        head_classes=0,
        note="checkpoint.pth of VideoMAE's model zoo, on Google Drive: fetch it in a "
        'browser and save it under this name',
    ),
    KnownFile(
        'swin_base_patch244_window877_kinetics400_22k.pth',
        'Video Swin-B, ImageNet-22k then Kinetics-400',
        f'{SWIN}v1.0.4/swin_base_patch244_window877_kinetics400_22k.pth',
        'Video Swin',
        'video_swin',
        128,
        24,
        head_classes=400,
        recipes=('ssv2_swin', 'hmdb51_swin', 'kinetics400_swin'),
    ),
    KnownFile(
        'ViT-B-16.pt',
        'CLIP ViT-B/16, OpenAI',
        'https://openaipublic.azureedge.net/clip/models/'
        '5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f/ViT-B-16.pt',
        'OpenAI CLIP',
        'vit',
        768,
        12,
        recipes=('imagenet_clip', 'kinetics400_clip'),
        # OpenAI's own reader takes the digest from this folder of the address.
        sha256='5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f',
    ),
    KnownFile(
        'dinov2_vitb14_pretrain.pth',
        'DINOv2 ViT-B/14',
        'https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/'
        'dinov2_vitb14_pretrain.pth',
        'timm ViT',
        'vit',
        768,
        12,
        head_classes=0,
        note='trained at 518 px; at 224 px its 37 x 37 positions are resized',
    ),
    KnownFile(
        'dinov2_vitl14_pretrain.pth',
        'DINOv2 ViT-L/14',
        'https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/'
        'dinov2_vitl14_pretrain.pth',
        'timm ViT',
        'vit',
        1024,
        24,
        head_classes=0,
        recipes=(
            'upstream/ade20k_upernet_dinov2/*',
            'upstream/ade20k_mask2former_dinov2/*',
        ),
        licence='apache-2.0',
        note='trained at 518 px; timm names the same address',
    ),
    KnownFile(
        'mae_pretrain_vit_base.pth',
        'MAE ViT-B/16, encoder alone',
        'https://dl.fbaipublicfiles.com/mae/pretrain/mae_pretrain_vit_base.pth',
        'timm ViT',
        'vit',
        768,
        12,
        head_classes=0,
        md5_start='8cad7c',
    ),
)
"""In the order in which people ask for them."""


def known_file(name: str) -> KnownFile | None:
    """The entry for a file name, None for a file that is not known here."""
    return next((entry for entry in KNOWN_FILES if entry.name == name), None)


def find_known(name: str) -> KnownFile:
    """The entry for a file name.

    Raises:
        PETLError: No known file has this name; the nearest one is named.
    """
    entry = known_file(name)
    if entry is None:
        names = [known.name for known in KNOWN_FILES]
        raise PETLError(
            f'no known weight file is called {name!r}.{suggest(name, names)} '
            'There are: ' + ', '.join(names)
        )
    return entry


def needed_by(recipe: str) -> tuple[KnownFile, ...]:
    """The files of a recipe, or of a leaf that has some of its own.

    Args:
        recipe: ``'vtab/cifar100'``, ``'ade20k'``, ``'ssf/vtab/cifar100'``.
    """
    folder = f'{recipe.rpartition("/")[0]}/*'
    return tuple(
        entry for entry in KNOWN_FILES if {recipe, folder} & set(entry.recipes)
    )
