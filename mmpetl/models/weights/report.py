"""What became of each key of a weight file."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class LoadReport:
    """Outcome of one load. Keys of the model are meant unless said otherwise.

    Attributes:
        path: The file, as it was given.
        sha256: Hex digest of the whole file.
        container: How the tensors were packed, e.g. ``'torch zip, model'``.
        layout: Naming that was recognised in the file, e.g. ``'Google npz'``.
        family: ``'vit'``, ``'swin'``, ``'videomae'``, ``'video_swin'``, or
            ``'own:mmseg.SVT'`` for a class that is read by its own names.
        matched: Keys that now hold the file's values.
        dropped: (key in the file, reason) for tensors that were left aside.
        resized: (key, shape in the file, shape in the model); both are alike where
            as many positions lay on another grid.
        fresh: (key, reason) for keys that keep the model's own initial values.
        head_classes: Outputs of the classifier in the file, if it has one. 1000
            tells a fine-tuned ImageNet-1k file from a 21k trunk.
        release: ``'original in21k'`` or ``'AugReg in21k'`` for Google's ImageNet-21k
            files, told apart by their keys.
        notes: Anything else that the user should see.
    """

    path: str
    sha256: str
    container: str
    layout: str
    family: str
    matched: tuple[str, ...]
    dropped: tuple[tuple[str, str], ...] = ()
    resized: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    fresh: tuple[tuple[str, str], ...] = ()
    head_classes: int | None = None
    release: str | None = None
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """One paragraph for the log: counts by reason, not one line per key."""
        origin = ', '.join(filter(None, [self.layout, self.release]))
        parts = [f'{len(self.matched)} tensors from {self.path} ({origin})']
        if self.head_classes is not None:
            parts.append(f'classifier of {self.head_classes} classes left aside')
        for key, old, new in self.resized[:1]:
            more = f' and {len(self.resized) - 1} more' if len(self.resized) > 1 else ''
            same = ' on another grid' if old == new else ''
            parts.append(f'resized {key} {old} -> {new}{same}{more}')
        for reason, count in Counter(r for _, r in self.dropped).items():
            parts.append(f'{count} dropped ({reason})')
        for reason, count in Counter(r for _, r in self.fresh).items():
            parts.append(f'{count} freshly initialised ({reason})')
        parts.extend(self.notes)
        parts.append(f'sha256 {self.sha256[:12]}')
        return '; '.join(parts)
