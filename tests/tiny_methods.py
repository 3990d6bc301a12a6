"""Methods with the arguments that fit the tiny backbones of ``tiny.py``.

A method needs an entry in :data:`SETTINGS` only where its defaults do not fit 32
channels and two blocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from mmpetl.core import Method, build_method, registered_methods

SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    # Its mean over patches is another feature than the class token of the base.
    'DTL': {
        '': {'rank': 2, 'patch_mean': False},
        'plus': {
            'rank': 2,
            'add_after': [0, 1],
            'patch_mean': False,
            'kernel_size': 4,
        },
    },
    'FacTTK': {'': {'rank': 4}},
    'FacTTT': {'': {'rank': 4}},
    # By eight, a norm of the narrowest would see two channels, and give signs alone.
    'LST': {
        '': {'reduction': 2},
        'random': {'reduction': 4, 'init': 'random'},
        'released': {
            'reduction': 2,
            'init': 'random',
            'side_blocks': [1],
            'gated': False,
            'form': 'post_norm',
        },
    },
    'LoRA': {
        '': {'rank': 2},
        'all': {
            'rank': 2,
            'alpha': 4,
            'targets': ['attn.qkv', 'attn.k', 'attn.proj', 'ffn.fc1', 'ffn.fc2'],
        },
        'pissa': {
            'rank': 2,
            'alpha': 3,
            'scaling': 'sqrt',
            'lr_ratio': 4.0,
            'start': 'pissa',
        },
    },
    'BAPAT': {'': {'hidden_dims': 4, 'adapter_dims': 4}},
    'E3VA': {'': {'rank': 4}},
    'GPS': {'': {}, 'mask': {'num_weights': 2, 'mode': 'mask'}},
    'HST': {'': {'dims': [8, 12], 'num_heads': [2, 4]}},
    'LAST': {'': {}, 'groups': {'rank': 3, 'units': 1, 'group_size': 2}},
    'LoRand': {
        '': {'branches': 2, 'rank': 3},
        'zero': {
            'branches': 3,
            'rank': 2,
            'shared_kernels': False,
            'inside_drop_path': True,
            'zero_init': True,
        },
    },
    'NOAH': {
        '': {},
        'lora': {'num_tokens': 0, 'rank': 3, 'hidden_dims': 0},
        'supernet': {
            'num_tokens': 3,
            'rank': 3,
            'hidden_dims': 4,
            'space': {'widths': [1, 3], 'depths': [1, 2]},
        },
    },
    'SCT': {
        '': {'num_channels': 8, 'zero_init': True, 'scale': 0.5},
        'mlp': {'num_channels': 20, 'position': 'mlp', 'scale': 0.5},
        'qkv': {
            'num_channels': 6,
            'position': 'qkv',
            'scale': 0.5,
            'scale_on_x': True,
            'last_blocks': 1,
        },
    },
    'UTuning': {
        '': {'num_tokens': 3, 'hidden_dims': 3},
        'prompt': {
            'mha': 'prompt',
            'ffn': 'lora',
            'block': 'adapter',
            'num_tokens': 2,
            'hidden_dims': 4,
            'rank': 2,
            'ffn_mode': 'parallel',
        },
        'lora': {
            'mha': 'lora',
            'ffn': 'adapter',
            'block': 'lora',
            'hidden_dims': 2,
            'rank': 3,
            'ffn_mode': 'parallel',
            'block_mode': 'parallel',
        },
    },
    'PATT': {'': {}, 'qkv': {'hidden_dims': 4, 'mode': 'qkv', 'zero_init': True}},
    'STAdapter': {
        '': {'hidden_dims': 6},
        'both': {'style': 'both', 'hidden_dims': 4, 'kernel_size': (3, 3, 1)},
    },
    'SNF': {'': {}, 'zero': {'length': 3, 'zero_init': True, 'blocks': 1}},
    'PolyhistorLite': {'': {'rank': 2}},
    'Rein': {
        '': {'num_tokens': 5, 'rank': 2},
        'zero': {'num_tokens': 4, 'rank': None, 'zero_init': True},
    },
    'E2VPT': {
        '': {},
        'separate': {
            'num_tokens': 3,
            'num_kv_tokens': 2,
            'share_kv': False,
            'segment_mask': [[1, 0, 1], [1, 1, 1], [0, 1, 1]],
        },
    },
    'VAPT': {
        '': {'grid_size': (4, 4)},
        'kernels': {'num_tokens': 3, 'one_kernel': False, 'grid_size': (6, 5)},
    },
    'VFPT': {'': {}, 'ortho': {'num_tokens': 3, 'fraction': 1.0, 'norm': 'ortho'}},
    'VPTDeep': {'': {}, 'projected': {'project_dims': 6}},
    'VMTAdapter': {'': {'reduction': 4}, 'lite': {'reduction': 4, 'lite': True}},
    'MTLoRA': {
        '': {'rank': 3, 'task_rank': 2, 'drop_rate': 0.0},
        'v2': {
            'rank': 2,
            'task_rank': 3,
            'task_scale': 2.0,
            'drop_rate': 0.0,
            'mode': 'matrixv2',
        },
    },
    'AdaLoRA': {'': {'rank': 3, 'target_rank': 2}},
    'DyT': {'': {'hidden_dims': 3, 'keep_rate': 0.2}},
    # A depth of its own may leave out all samples of a small batch.
    'SPT': {
        '': {'rank': 2, 'drop_path': 0.0},
        'adapter': {'rank': 3, 'structure': 'adapter'},
    },
    'ARC': {'': {'rank': 6}, 'attn': {'rank': 3, 'style': 'attn'}},
    'AdapterPlus': {
        '': {},
        'parallel': {'position': 'parallel', 'norm': True, 'init': 'lora'},
        'houlsby': {'position': 'houlsby', 'hidden_dims': 4, 'scale': 'learned'},
    },
    'Compacter': {'': {'hidden_dims': 8, 'rank': 2}},
    'KAdaptation': {'': {'num_factors': 4, 'scale': 8.0}},
    'LoHa': {'': {'rank': 2, 'alpha': 3}},
    'LoKr': {
        '': {'rank': 2},
        'both': {
            'rank': 1,
            'alpha': 2,
            'factor': 4,
            'decompose_both': True,
            'init': 'lycoris',
        },
    },
    'VeRA': {'': {'rank': 6}, 'probabilistic': {'rank': 3, 'probabilistic': True}},
    'DoRA': {
        '': {'rank': 2},
        'all': {
            'rank': 2,
            'alpha': 4,
            'targets': ['attn.qkv', 'attn.k', 'attn.proj', 'ffn.fc1', 'ffn.fc2'],
        },
    },
    'GLoRA': {
        '': {'rank': 2},
        'rows': {
            'paths': {
                'A': 'vector',
                'B': 'constant',
                'C': 'vector',
                'D': 'none',
                'E': 'constant',
            },
        },
    },
    'RLRR': {'': {'exact_identity': True}},
    'BOFT': {
        '': {'block_size': 4},
        'rows': {
            'block_size': 4,
            'factors': 3,
            'targets': ['attn.q', 'attn.k', 'attn.v', 'attn.proj'],
        },
    },
    'FourierFT': {
        '': {'num_coefficients': 100},
        'haar': {
            'num_coefficients': 60,
            'scale': 2,
            'transform': 'haar',
            'targets': ['attn.qkv', 'attn.k', 'attn.proj', 'ffn.fc1', 'ffn.fc2'],
        },
    },
    'HRA': {
        '': {'rank': 4},
        'penalty': {'rank': 2, 'penalty': 0.1, 'targets': ['attn.v', 'ffn.fc2']},
        'orthogonal': {
            'rank': 3,
            'start': 'random',
            'orthogonal': True,
            'targets': ['attn.q', 'attn.v', 'ffn.fc1', 'ffn.fc2'],
        },
    },
    'OFT': {
        '': {'block_size': 8},
        'series': {
            'block_size': 4,
            'share_blocks': True,
            'series': True,
            'max_norm': 0.5,
            'targets': ['ffn.fc1', 'ffn.fc2'],
        },
    },
    'AdaptFormer': {'': {}, 'normed': {'activation': 'gelu', 'input_norm': True}},
    'Consolidator': {
        '': {'groups': [4]},
        'shuffle': {'groups': [2, 4], 'shuffle': True, 'zero_init': True},
    },
    'ConvLoRA': {'': {'rank': 2, 'num_experts': 3}},
    'BiAdaptFormer': {'': {'hidden_dims': 4}},
    'BiLoRA': {
        '': {'rank': 2},
        'all': {
            'rank': 3,
            'bits': 4,
            'targets': ['attn.qkv', 'attn.k', 'attn.proj', 'ffn.fc1', 'ffn.fc2'],
        },
    },
    'ConvAdapter': {
        '': {},
        'zero': {'reduction': 4, 'kernel_size': 5, 'zero_init': True},
    },
    'ResTuningBypass': {'': {}, 'zero': {'hidden_dims': 3, 'zero_init_last': True}},
    # A depth of its own may leave out all clips of a small batch.
    'AIM': {
        '': {'drop_path': 0.0},
        'two': {'reduction': 8, 'num_temporal': 2, 'scale': 1.0, 'drop_path': 0.0},
    },
}
"""Arguments by registered name and variant. A method without an entry is run with its
defaults; where those do not fit the tiny backbones, the contract fails and says so."""

STILL: dict[str, dict[str, str]] = {
    # A class token attends for the last time in the last block, so what convolutions
    # do to the patches there is never read.
    'Mona': {
        **dict.fromkeys(
            ('mmpretrain_vit', 'mmpretrain_deit3', 'timm_vit'), r'\.1\.petl\..*\.conv\.'
        ),
        'mmaction_timesformer': r'layers\.1\.(attentions\.1\.)?petl\..*\.conv\.',
    },
    'ConvAdapter': {
        **dict.fromkeys(
            ('mmpretrain_vit', 'mmpretrain_deit3', 'timm_vit'), r'\.1\.petl\.attn\.'
        ),
        'mmaction_timesformer': r'layers\.1\.(attentions\.1\.)?petl\.attn\.',
    },
    'STAdapter': {
        'mmaction_timesformer': r'layers\.1\.(attentions\.1\.)?petl\.attn_sum\.',
        'mmpretrain_vit_frames': r'layers\.1\.petl\.attn_sum\.',
    },
    # Two adapters in a row start at zero, so that this one moves in the third step.
    'AIM': dict.fromkeys(
        ('mmpretrain_vit_frames', 'mmpretrain_swin_frames'), r'\.front\.down\.'
    ),
    # The same holds for the tokens that patches look at behind the last block.
    'Rein': dict.fromkeys(
        ('mmpretrain_vit', 'mmpretrain_deit3', 'timm_vit', 'mmaction_timesformer'),
        r'\.1\.petl\.block\.',
    ),
}
"""Pattern of the tensors that never move, by registered name and backbone."""

SELDOM: dict[str, str] = {
    # Each image runs one of them.
    'ConvLoRA': r'\.experts\.',
    # Read by a pair alone that starts at zero: it moves from the third step on.
    'MTLoRA': r'\.ffn_fc1\..*\.tasks\.task\.A$',
}
"""Pattern of the tensors that only some inputs, or later steps, move, by name."""


def moves_seldom(method: str, name: str) -> bool:
    """Whether a tensor of a registered method may stand still."""
    return method in SELDOM and bool(re.search(SELDOM[method], name))


@dataclass(frozen=True)
class MethodCase:
    """A registered method with the arguments it is tested with."""

    id: str
    name: str
    args: tuple[tuple[str, Any], ...] = field(compare=False)

    def build(self) -> Method:
        """A new instance."""
        return build_method({'type': self.name, **dict(self.args)})


def snake(name: str) -> str:
    """``VPTDeep`` -> ``vpt_deep``, ``LoRA`` -> ``lora``."""
    known = {'LoRA': 'lora', 'LNTune': 'ln_tune', 'BitFit': 'bitfit'}
    parts = re.sub(r'(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])', '_', name)
    return known.get(name, parts.lower())


@cache
def method_cases() -> tuple[MethodCase, ...]:
    """Every registered method, with each of its variants."""
    return tuple(_method_cases())


def _method_cases() -> Iterator[MethodCase]:
    known = registered_methods()
    stems = [cls.stem() for cls in known.values()]
    for name, cls in sorted(known.items()):
        stem = cls.stem() if stems.count(cls.stem()) == 1 else snake(name)
        for variant, args in SETTINGS.get(name, {'': {}}).items():
            case = f'{stem}:{variant}' if variant else stem
            yield MethodCase(case, name, tuple(args.items()))


def covering(case: MethodCase) -> bool:
    """All methods: a backbone with a forward pass of its own."""
    return True


def first_of_a_family(case: MethodCase) -> bool:
    """One method of each family: a backbone inside of a wrapper."""
    return case.id in _first_of_families()


@cache
def _first_of_families() -> set[str]:
    first: dict[str, str] = {}
    for case in method_cases():
        first.setdefault(case.build().family, case.id)
    return set(first.values())


def along_time(case: MethodCase) -> bool:
    """Methods that look along time, and one of each family that does not."""
    return case.build().along_time or first_of_a_family(case)


ENDS = {'out', 'out.norm', 'feature'}
"""Where the vectors are made that leave a backbone."""


def at_the_ends(case: MethodCase) -> bool:
    """Methods that see what leaves: norms, outputs, the feature, the base's tensors.

    One setting of each, as settings differ in what they do inside of blocks. A method
    that plugs nothing trains some of the base, or leaves all to the head.
    """
    method = case.build()
    wanted = {*method.targets, *method.optional}
    plain = ':' not in case.id
    return plain and (bool(wanted & ENDS) or selects(method) or not wanted)


def selects(method: Method) -> bool:
    """Whether a method may train some of the base."""
    return any(
        getattr(type(method), verb) is not getattr(Method, verb)
        for verb in ('selects', 'select')
    )
