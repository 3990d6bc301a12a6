"""Small models that no file describes."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn


class Plain(nn.Module):
    """A CNN with every kind of convolution and norm, a reused layer, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.wide = nn.Conv2d(8, 12, 3, dilation=2, padding='same')
        self.mirror = nn.Conv2d(12, 12, 3, padding=1, padding_mode='reflect')
        self.point = nn.Conv2d(12, 16, 1, stride=2, bias=False)
        self.deep = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.gn = nn.GroupNorm(4, 16)
        self.linear = nn.Linear(16, 16)
        self.ln = nn.LayerNorm(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.stem(x)).relu_()
        x = self.mirror(self.wide(x)).relu_()
        x = self.gn(self.deep(self.point(x))).relu_()
        x = x.flatten(2).transpose(1, 2)
        x = self.ln(self.linear(self.linear(x)))
        return self.head(x.mean(1))


class Wrapped(nn.Module):
    """A described backbone inside of a class that no file knows."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Encoder(nn.Module):
    """``nn.TransformerEncoder`` on a sequence."""

    def __init__(self, **args) -> None:
        super().__init__()
        facts = {'dim_feedforward': 32, 'dropout': 0.0, 'batch_first': True, **args}
        layer = nn.TransformerEncoderLayer(16, 2, **facts)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor, **masks) -> Tensor:
        return self.encoder(x, **masks)


def vit(**args) -> nn.Module:
    return timm.create_model(
        'vit_tiny_patch16_224',
        img_size=32,
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=2,
        num_classes=0,
        **args,
    )


MAKERS = {
    'plain': (Plain, (2, 3, 16, 16)),
    'wrapped': (lambda: Wrapped(vit()), (2, 3, 32, 32)),
    'encoder': (Encoder, (2, 5, 16)),
    'last': (lambda: Encoder(batch_first=False), (5, 2, 16)),
    'convnext': (
        lambda: Wrapped(timm.create_model('test_convnext', num_classes=3)),
        (2, 3, 32, 32),
    ),
    'resnet': (lambda: timm.create_model('test_resnet', num_classes=3), (2, 3, 32, 32)),
}
"""What makes each model, and the shape of its input."""


WHERE = {'wrapped': {'layers': '*'}, 'convnext': {'layers': '*'}}
"""What says that a model around a described backbone is itself meant."""


def make(name: str) -> tuple[nn.Module, Tensor]:
    """A model in eval mode with statistics of its own, and an input."""
    torch.manual_seed(3)
    maker, shape = MAKERS[name]
    model = maker().eval()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):  # timm starts some at zero
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
            nn.init.normal_(part.running_mean, std=0.1)
    return model, torch.randn(shape)
