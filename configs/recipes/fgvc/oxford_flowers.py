"""Oxford Flowers-102, official split (fine-grained): linear probing as it stands."""

_base_ = '../../_base_/recipes/fgvc.py'

dataset = 'oxford_flowers'
