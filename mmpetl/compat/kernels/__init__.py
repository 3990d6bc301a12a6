"""The kernels of ``mmcv._ext``, by torchvision and torch.

Names, arguments and the in-place outputs are those that ``mmcv.ops`` calls with; only
what is listed in ``__all__`` exists. Half precision on CPU is computed in float32.
Where the compiled kernels leave a case undefined, the choice made here is stated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import torch

from .boxes import (
    nms,
    roi_align_backward,
    roi_align_forward,
)
from .deformable import (
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
    ms_deform_attn_backward,
    ms_deform_attn_forward,
)
from .losses import (
    sigmoid_focal_loss_backward,
    sigmoid_focal_loss_forward,
    softmax_focal_loss_backward,
    softmax_focal_loss_forward,
)

__all__ = [
    'deform_conv_backward_input',
    'deform_conv_backward_parameters',
    'deform_conv_forward',
    'get_compiler_version',
    'get_compiling_cuda_version',
    'modulated_deform_conv_backward',
    'modulated_deform_conv_forward',
    'ms_deform_attn_backward',
    'ms_deform_attn_forward',
    'nms',
    'roi_align_backward',
    'roi_align_forward',
    'sigmoid_focal_loss_backward',
    'sigmoid_focal_loss_forward',
    'softmax_focal_loss_backward',
    'softmax_focal_loss_forward',
]


def missing_op(name: str) -> Callable:
    """A function in place of op ``name`` that says, when called, what to install."""

    def op(*args, **kwargs) -> NoReturn:
        raise NotImplementedError(
            f'mmcv op {name!r} has no substitute in torch or torchvision; it needs '
            'compiled mmcv: pip uninstall -y mmcv-lite, then '
            'pip install mmcv==2.1.0 --no-build-isolation '
            "(needs a compiler, ninja and 'setuptools<81')"
        )

    op.__name__ = op.__qualname__ = name
    return op


def get_compiler_version() -> str:
    """Shown by ``mmcv.utils.collect_env``."""
    return 'none (kernels by torchvision, through mmpetl)'


def get_compiling_cuda_version() -> str:
    """Shown by ``mmcv.utils.collect_env``."""
    return torch.version.cuda or 'not available'
