"""The text of a config is laid out once.

MMEngine lets yapf lay out the whole config for the log, for the file in the work
folder and for the meta data of every checkpoint, though it is the same.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any


def format_once(module: ModuleType) -> None:
    """Let ``mmengine.config.config`` remember the last texts that it laid out."""
    if hasattr(module.FormatCode, 'kept'):
        return
    lay_out = module.FormatCode
    kept: dict[tuple[str, str], tuple] = {}

    def remembered(text: str, style_config: Any = None, **options: Any) -> tuple:
        """Yapf's ``FormatCode``, a pure function of its arguments."""
        key = text, repr((style_config, sorted(options.items())))
        # Popped and put back, so that the oldest stands first.
        found = kept.pop(key, None)
        if found is None:
            found = lay_out(text, style_config=style_config, **options)
        kept[key] = found
        if len(kept) > 16:
            del kept[next(iter(kept))]
        return found

    remembered.kept = kept
    module.FormatCode = remembered
