"""Rein's link to Mask2Former: the queries of the decoder are made of the tokens.

Wei et al., "Stronger, Fewer, & Superior: Harnessing Vision Foundation Models for Domain
Generalized Semantic Segmentation", CVPR 2024, https://arxiv.org/abs/2312.04265,
section 3.3.
"""

from __future__ import annotations

from typing import Any

from mmseg.models import EncoderDecoder
from mmseg.models.decode_heads import Mask2FormerHead
from torch import Tensor, nn

from mmpetl.core import PETLError
from mmpetl.methods.rein import queries


class LinkedQueries(nn.Module):
    """Stands where a head keeps the positions of its queries, and asks the backbone.

    Args:
        num_queries: How many the head has.
        dims: Their width.
    """

    def __init__(self, num_queries: int, dims: int) -> None:
        super().__init__()
        self.shape = num_queries, dims

    def attach(self, backbone: nn.Module) -> None:
        """Remember the backbone, which is registered at the model and not here."""
        self.__dict__['backbone'] = backbone

    @property
    def weight(self) -> Tensor:
        """(num_queries, dims).

        Raises:
            PETLError: No backbone is attached, or what it gives has another shape.
        """
        backbone = self.__dict__.get('backbone')
        if backbone is None:
            raise PETLError(
                'ReinHead does not know its backbone; build the model as '
                'mmpetl.ReinSegmentor'
            )
        found = queries(backbone)
        if tuple(found.shape) != self.shape:
            raise PETLError(
                f'ReinHead has {self.shape[0]} queries of {self.shape[1]} channels, '
                f'Rein gives {found.shape[0]} of {found.shape[1]}; set num_tokens and '
                'query_dims of the method to those of the head'
            )
        return found


class LinkedFeatures(nn.Module):
    """Stands where a head keeps the features of its queries: a map of the linked ones.

    Args:
        linked: The queries.
    """

    def __init__(self, linked: LinkedQueries) -> None:
        super().__init__()
        self.linked = linked
        dims = linked.shape[1]
        self.map = nn.Linear(dims, dims)

    @property
    def weight(self) -> Tensor:
        """(num_queries, dims)."""
        return self.map(self.linked.weight)


class ReinHead(Mask2FormerHead):
    """Mask2Former whose queries come from a Rein with ``query_dims``.

    They are the positions of its queries, and through a Linear their features.

    Args:
        replace_query_feat: Whether the features come from them too, as in all configs
            of the authors; otherwise they are learned as in Mask2Former.
        kwargs: Of mmseg's ``Mask2FormerHead``.
    """

    def __init__(self, replace_query_feat: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.query_embed = LinkedQueries(*self.query_embed.weight.shape)
        if replace_query_feat:
            self.query_feat = LinkedFeatures(self.query_embed)


class ReinSegmentor(EncoderDecoder):
    """An ``EncoderDecoder`` whose :class:`ReinHead` knows the backbone.

    Args:
        kwargs: Of mmseg's ``EncoderDecoder``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        linked = getattr(self.decode_head, 'query_embed', None)
        if not isinstance(linked, LinkedQueries):
            raise PETLError(
                'ReinSegmentor links a decode_head of type mmpetl.ReinHead, got '
                f'{type(self.decode_head).__name__}; set that, or take EncoderDecoder'
            )
        linked.attach(self.backbone)
