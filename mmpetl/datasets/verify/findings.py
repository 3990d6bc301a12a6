"""What a look at a data set ends in."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Finding:
    """One thing that is not as expected.

    Args:
        split: Where; empty for the data set as a whole.
        what: What was found, with the first place it was found at.
        todo: What to do about it.
        fault: False for a remark that does not make the data set faulty.
    """

    split: str
    what: str
    todo: str
    fault: bool = True


@dataclass
class Report:
    """What A look found of one data set.

    Args:
        id: The data set.
        folder: Where it was looked for.
        present: Whether there is anything.
        mini: Whether it is a drawn stand-in.
        counts: Split to samples found and expected, None where copies differ.
        classes: Classes found and expected, None where nothing was read.
        opened: Files that were opened.
        listed: Files that the lists name.
        findings: What is wrong, and remarks.
    """

    id: str
    folder: str
    present: bool = True
    mini: bool = False
    counts: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    classes: tuple[int | None, int] = (None, 0)
    opened: int = 0
    listed: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def faults(self) -> list[Finding]:
        """Findings that make the data set faulty."""
        return [finding for finding in self.findings if finding.fault]

    @property
    def state(self) -> Literal['absent', 'faulty', 'healthy', 'healthy mini set']:
        """One word for it all."""
        if not self.present:
            return 'absent'
        if self.faults:
            return 'faulty'
        return 'healthy mini set' if self.mini else 'healthy'

    @property
    def ok(self) -> bool:
        """Whether training may begin."""
        return self.present and not self.faults

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), 'state': self.state}
