"""What several files of ``mmpetl/backbones`` share, without any foreign package."""
