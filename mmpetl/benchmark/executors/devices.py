"""Which device a job goes to: as many on each as was said, or as many as fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

MARGIN = 0.15
"""Share by which a job may need more than was measured."""
CONTEXT = 768 * 2**20
"""Bytes that a process takes on a GPU beside its tensors: context and kernels."""


@dataclass
class Device:
    """A GPU, or the cores of this machine.

    Attributes:
        name: For ``CUDA_VISIBLE_DEVICES``; None for cores.
        most: Jobs at a time.
        memory: Bytes that jobs share by what they were measured to need; None where
            only their number counts.
        needs: Bytes of each job on it; None of one that was not measured.
    """

    name: str | None
    most: int = 1
    memory: int | None = None
    needs: list[int | None] = field(default_factory=list)

    @property
    def free(self) -> int:
        """Jobs that may be added, as far as their number goes."""
        return self.most - len(self.needs)

    def takes(self, need: int | None) -> bool:
        """Whether a job of so many bytes may be added.

        One that was never measured has a device for itself, and so does one that does
        not fit beside anything.
        """
        if not self.free:
            return False
        if self.memory is None or not self.needs:
            return True
        known = [*self.needs, need]
        return None not in known and sum(n for n in known if n) <= self.memory

    def add(self, need: int | None) -> None:
        """Take a job."""
        self.needs.append(need)

    def remove(self, need: int | None) -> None:
        """The job of so many bytes has ended."""
        self.needs.remove(need)


def need_of(measured: int | None) -> int | None:
    """Bytes to keep free for a job whose tensors took so many at their peak."""
    return None if measured is None else int(measured * (1 + MARGIN)) + CONTEXT


def choose(
    devices: Sequence[Device], need: int | None = None, number: int = 1
) -> list[Device] | None:
    """Devices for the processes of a job; None where there is no room now.

    Where memory is shared, the first that fits: full ones stay full, and whole ones are
    left for what is large. Else the one with the fewest jobs.

    Args:
        devices: Those of this machine.
        need: Bytes of each process; None where it was not measured.
        number: Processes. Each has a GPU that no other of them has.
    """
    if devices and devices[0].name is None:
        cores = devices[0]
        return [cores] * number if cores.free >= number else None
    found = [device for device in devices if device.takes(need)]
    if found and found[0].memory is None:
        found.sort(key=lambda device: len(device.needs))
    return found[:number] if len(found) >= number else None
