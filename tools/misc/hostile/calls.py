"""All healthy calls."""

from __future__ import annotations

from hostile import converters, kept, plans
from hostile.case import Base
from hostile.healthy import bases


def all_bases() -> dict[str, Base]:
    """The healthy calls by name."""
    more = (*converters.BASES, *plans.BASES, *kept.BASES)
    return {**bases(), **{base.name: base for base in more}}
