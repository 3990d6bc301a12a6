"""DistributedDataParallel that runs on GPUs (nccl) and on CPUs (gloo)."""

from __future__ import annotations

from typing import Any

from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from torch import nn

from mmpetl.registry import MODEL_WRAPPERS


@MODEL_WRAPPERS.register_module()
class PETLDistributedDataParallel(MMDistributedDataParallel):
    """MMEngine's wrapper, without device ids where there is no GPU.

    Synchronised batch norm exists on GPUs only, so on CPUs the heads' SyncBN layers
    become ordinary ones.

    Args:
        module: The model.
        device_ids: GPU of this process, ignored on CPUs.
        kwargs: Arguments of ``torch.nn.parallel.DistributedDataParallel``.
    """

    def __init__(
        self, module: nn.Module, device_ids: list[int] | None = None, **kwargs: Any
    ) -> None:
        if not next(module.parameters()).is_cuda:
            module = revert_sync_batchnorm(module)
            device_ids = None
        kwargs.setdefault('broadcast_buffers', False)
        super().__init__(module=module, device_ids=device_ids, **kwargs)
