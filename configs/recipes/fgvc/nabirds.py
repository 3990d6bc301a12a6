"""NABirds (fine-grained): linear probing as it stands."""

_base_ = '../../_base_/recipes/fgvc.py'

dataset = 'nabirds'
