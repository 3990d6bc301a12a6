"""A config elsewhere may inherit one of ours: ``_base_ = 'mmpetl::lora/vtab/svhn.py'``.

MMEngine has a closed list of packages whose configs it finds.
"""

from __future__ import annotations

import importlib
from typing import Any

OWN = 'mmpetl::'


def find_own(config: Any) -> None:
    """Let ``mmengine.config.Config`` find our configs too.

    Their types without a scope are those of the toolbox that they name as
    ``default_scope``, so that no scope is handed on.
    """
    get = config._get_cfg_path
    if hasattr(get, 'finds_own'):
        return

    def found(cfg_path: str, filename: str) -> tuple[str, str | None]:
        """MMEngine's ``_get_cfg_path``, and ours."""
        if not str(cfg_path).startswith(OWN):
            return get(cfg_path, filename)
        own = importlib.import_module('mmpetl.config.own')
        return str(own.own_file(str(cfg_path).removeprefix(OWN))), None

    found.finds_own = True
    config._get_cfg_path = staticmethod(found)
