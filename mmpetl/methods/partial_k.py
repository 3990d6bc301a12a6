"""Partial-k: the last blocks train as they are, everything in front stays frozen.

A baseline without a paper of its own; as in Jia et al., "Visual Prompt Tuning", ECCV
2022, https://arxiv.org/abs/2203.12119, section 4.1.
Differs from public code: blocks are counted, not matched by letters in names, and the
final norm trains on self-supervised video models too (theirs looks for a bare name and
leaves ``norm`` frozen there).
"""

from __future__ import annotations

from mmpetl.core import Method, PETLError, Role, Site, check_range
from mmpetl.registry import METHODS


@METHODS.register_module()
class PartialK(Method):
    """Train the last blocks, what merges patches between them, and the final norm.

    Args:
        num_blocks: How many of the last blocks, k >= 1; 1, 2 and 4 in the literature.
            Where they reach over a patch merging, that trains as well.
        include_final_norm: Whether the norm behind the last block trains. Public code
            for classification has it, public code for dense tasks has not.

    In a model that no file describes the blocks are the members of its lists of equal
    modules, which ``python -m mmpetl.layers`` counts.
    """

    family = 'baseline'

    def __init__(self, num_blocks: int = 1, include_final_norm: bool = True) -> None:
        check_range(self, 'num_blocks', num_blocks, 1)
        self.num_blocks = num_blocks
        self.include_final_norm = include_final_norm

    def choose(self, sites: list[Site]) -> list[Site]:
        """No site at all; it only looks where the blocks are."""
        blocks = {site.block for site in sites if site.block is not None}
        if self.num_blocks > len(blocks):
            raise PETLError(
                f'PartialK needs num_blocks of at most {len(blocks)}, the blocks of '
                f'this backbone, got {self.num_blocks}'
            )
        return []

    def choose_leaves(self, sites: list[Site]) -> list[Site]:
        if all(site.block is None for site in sites):
            raise PETLError(
                'PartialK counts blocks, and this model has no list of equal modules '
                'that could be blocks; name what trains: BitFit, LNTune or Full with '
                'layers='
            )
        return self.choose(sites)

    def select(self, roles: list[Role]) -> set[str]:
        stages = {role.block: role.stage for role in roles if role.block is not None}
        last = max(stages, default=-1)
        first = last - self.num_blocks + 1
        # Tokens and the vector that they are pooled to may have a norm each.
        ends = [role for role in roles if role.kind == 'final_norm']
        stage = max((role.stage for role in ends), default=0)
        final = {role.name.rpartition('.')[0] for role in ends if role.stage == stage}
        return {
            role.name
            for role in roles
            if (role.block is not None and role.block >= first)
            or (
                role.place == 'merging'
                and stages.get(first, 0) <= role.stage < stages[last]
            )
            or (self.include_final_norm and role.name.rpartition('.')[0] in final)
        }
