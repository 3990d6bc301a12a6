"""The builder that MMEngine sees, and loading of base weights."""

from mmpetl.models.petl_backbone import petl_backbone
from mmpetl.models.weights import load_base_weights

__all__ = ['load_base_weights', 'petl_backbone']
