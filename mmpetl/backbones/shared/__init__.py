"""What several files of ``mmpetl/backbones`` share.

A file imports no foreign package but the one that its name starts with.
"""
