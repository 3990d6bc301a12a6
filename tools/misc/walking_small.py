"""Configs of upstream made small: two blocks per stage, no files, small pictures."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import string
import tempfile
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

MODULES = {
    'mmpretrain': 'mmpretrain.models',
    'mmseg': 'mmseg.models',
    'mmdet': 'mmdet.models',
    'mmaction': 'mmaction.models',
}

DEPTHS = ('depths', 'num_layers', 'depth', 'num_blocks', 'n_layers')
"""How classes call their number of blocks, per stage or in all."""

WEIGHTS = ('pretrained', 'pretrained2d', 'load_from', 'init_cfg')


def make_small(package: str, config: Config) -> None:
    """Fewer blocks and no files to load; widths and heads stay as they are."""
    _forget_files(config.model)
    config.load_from = None
    backbone = config.model.backbone
    cls = class_of(package, backbone['type'])
    _shrink(backbone, cls)
    head = config.model.get('cls_head')
    if isinstance(head, MutableMapping) and 'channel_map' in head:
        # Rows of a file, which is gone; the class starts otherwise without any entry.
        head.pop('channel_map')
        head.pop('init_cfg', None)
    if isinstance(config.model.get('num_queries'), int):
        config.model.num_queries = min(config.model.num_queries, 50)
    if isinstance(config.model.get('language_model'), MutableMapping):
        config.model.language_model.name = text_model()
        head = config.model.bbox_head
        if 'lang_model_name' in head:
            head.lang_model_name = text_model()
    pre = config.model.get('data_preprocessor') or config.get('data_preprocessor')
    if isinstance(pre, MutableMapping):
        pre.pop('batch_augments', None)
        pre.pop('blending', None)  # with classes that a config need not agree with
    teacher = config.model.get('teacher_config')
    if isinstance(teacher, str) and teacher.startswith('configs/'):
        root = Path(importlib.import_module(package).__file__).parent / '.mim'
        config.model.teacher_config = str(root / teacher)


def text_model() -> str:
    """Folder of a BERT of two layers whose words are letters, as `transformers` reads.

    It stands for ``bert-base-uncased``, which cannot be downloaded everywhere; widths
    are kept. Its weights are drawn once.
    """
    folder = Path(tempfile.gettempdir()) / 'mmpetl_walk_bert'
    if not folder.exists():
        from transformers import BertConfig, BertModel

        letters = string.ascii_lowercase + string.digits
        words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *'.,?-()/', *letters]
        words += [f'##{letter}' for letter in letters]
        made = Path(tempfile.mkdtemp(dir=folder.parent))
        small = BertConfig(vocab_size=len(words), num_hidden_layers=2)
        BertModel(small).save_pretrained(made)
        (made / 'vocab.txt').write_text('\n'.join(words))
        kind = {'tokenizer_class': 'BertTokenizer', 'do_lower_case': True}
        (made / 'tokenizer_config.json').write_text(json.dumps(kind))
        os.replace(made, folder)
    return str(folder)


def _forget_files(node: Any) -> None:
    """Remove every name of a file with weights."""
    if isinstance(node, list | tuple):
        for child in node:
            _forget_files(child)
    if not isinstance(node, MutableMapping):
        return
    for key in list(node):
        value = node[key]
        if key in ('pretrained', 'load_from', 'teacher_ckpt') and isinstance(
            value, str | Mapping
        ):
            node[key] = None
        elif key in ('pretrained2d', 'clip_pretrained') and value:
            node[key] = False
        elif key == 'num_cp':  # checkpointing by fairscale, which saves memory alone
            node[key] = -1
        elif key == 'init_cfg' and _is_file(value):
            del node[key]
        elif key == 'init_cfg' and isinstance(value, list | tuple):
            node[key] = [v for v in value if not _is_file(v)]
        else:
            _forget_files(value)


def _is_file(value: Any) -> bool:
    return isinstance(value, Mapping) and (
        'checkpoint' in value or 'Pretrained' in str(value.get('type'))
    )


def class_of(package: str, kind: Any) -> type | None:
    """The class behind a name with or without its package."""
    if not isinstance(kind, str):
        return kind
    scope, _, name = kind.rpartition('.')
    module = MODULES.get(scope or package)
    return getattr(importlib.import_module(module), name, None) if module else None


def _shrink(backbone: MutableMapping, cls: type | None) -> None:
    """Two blocks per stage; as many as there are outputs where there is one stage."""
    size, patch = backbone.get('img_size'), backbone.get('patch_size', 16)
    name = cls.__name__ if cls else ''
    # Swin V2 refuses maps that are smaller than its windows.
    if size is not None and isinstance(patch, int) and name != 'SwinTransformerV2':
        kind = type(size)
        backbone['img_size'] = 8 * patch if kind is int else kind((8 * patch,) * 2)
    outputs = backbone.get('out_indices')
    count = len(outputs) if isinstance(outputs, list | tuple) else 1
    zoo = getattr(cls, 'arch_zoo', getattr(cls, 'arch_settings', None))
    arch = backbone.get('arch')
    if isinstance(arch, str) and isinstance(zoo, Mapping) and _takes_dicts(cls):
        entry = next((zoo[key] for key in zoo if arch in _names(key)), None)
        if isinstance(entry, Mapping):
            backbone['arch'] = arch = dict(entry)
    plain = False
    for node in (backbone, arch if isinstance(arch, MutableMapping) else {}):
        for key in DEPTHS:
            value = node.get(key)
            if isinstance(value, list | tuple) and all(
                isinstance(v, int) for v in value
            ):
                node[key] = type(value)(min(v, 2) for v in value)
            elif isinstance(value, int) and node is not backbone:
                node[key], plain = min(value, max(2, count)), True
    if 'ResNet' in name or 'ResNeXt' in name or name in ('Res2Net', 'ResNeSt'):
        if backbone.get('depth') in (101, 152, 200):
            backbone['depth'] = 50
    elif any(word in name for word in ('Transformer', 'ViT', 'BEiT', 'MAE', 'Former')):
        for key in ('num_layers', 'depth', 'depths'):
            if isinstance(backbone.get(key), int):
                backbone[key], plain = min(backbone[key], max(2, count)), True
    if name == 'TimeSformer':
        backbone['num_transformer_layers'] = 2
    elif name == 'UniFormerV2':  # blocks of its decoder read those of the trunk
        backbone.update(layers=2, return_list=[0, 1], n_layers=2, mlp_dropout=[0.5] * 2)
        backbone.update(input_resolution=8 * patch, clip_pretrained=False)
    elif name == 'MViT':
        backbone.pop('pretrained_type', None)
    if cls and 'pretrained2d' in inspect.signature(cls).parameters:
        backbone['pretrained2d'] = False  # else it asks for a file
    if plain and isinstance(outputs, list | tuple) and count > 1:
        backbone['out_indices'] = list(range(count))
    elif plain and isinstance(outputs, list | tuple | int):
        backbone['out_indices'] = [-1] if isinstance(outputs, list | tuple) else -1


def _takes_dicts(cls: type | None) -> bool:
    """Whether the architecture may be given as the dict that its name stands for."""
    return cls is not None and cls.__name__ not in ('LeViT', 'MobileViT')


def _names(key: Any) -> tuple:
    return key if isinstance(key, tuple) else (key,)
