"""Focal losses, and their gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import wide


def _class_weight(weight: Tensor, target: Tensor) -> Tensor:
    """Weight of each row's class, (N,). Background (label C) weighs 1."""
    padded = torch.cat([weight, weight.new_ones(1)])
    return padded[target.clamp(0, len(weight))]


def sigmoid_focal_loss_forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    output: Tensor,
    *,
    gamma: float,
    alpha: float,
) -> None:
    """Fill ``output`` (N, C) with the focal loss of each logit.

    Args:
        input: (N, C) logits.
        target: (N,) labels in 0..C, C being background.
        weight: (C,) per class, or empty.
        output: Result, written in place.
        gamma: Focusing exponent.
        alpha: Share of the positive term.
    """
    logits = wide(input)
    classes = torch.arange(logits.shape[1], device=target.device)
    prob = logits.sigmoid()
    positive = -alpha * (1 - prob) ** gamma * F.logsigmoid(logits)
    negative = -(1 - alpha) * prob**gamma * F.logsigmoid(-logits)
    loss = torch.where(target[:, None] == classes, positive, negative)
    if weight.numel():
        loss = loss * _class_weight(wide(weight), target)[:, None]
    output.copy_(loss)


def sigmoid_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    grad_input: Tensor,
    *,
    gamma: float,
    alpha: float,
) -> None:
    """Fill ``grad_input`` (N, C) with d loss / d logit of the forward kernel."""
    logits = wide(input)
    classes = torch.arange(logits.shape[1], device=target.device)
    prob = logits.sigmoid()
    log_prob, log_rest = F.logsigmoid(logits), F.logsigmoid(-logits)
    positive = -alpha * (1 - prob) ** gamma * (1 - prob - gamma * prob * log_prob)
    negative = -(1 - alpha) * prob**gamma * (gamma * (1 - prob) * log_rest - prob)
    grad = torch.where(target[:, None] == classes, positive, negative)
    if weight.numel():
        grad = grad * _class_weight(wide(weight), target)[:, None]
    grad_input.copy_(grad)


def _picked(softmax: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Probability of each row's label and its logarithm, both (N,)."""
    prob = softmax.gather(1, target.clamp(min=0)[:, None])[:, 0]
    return prob, prob.clamp(min=torch.finfo(prob.dtype).tiny).log()


def softmax_focal_loss_forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    output: Tensor,
    *,
    gamma: float,
    alpha: float,
) -> None:
    """Fill ``output`` (N,); ``input`` (N, C) is already a softmax.

    Rows with a negative label are ignored: they get 0.
    """
    prob, log_prob = _picked(wide(input), target)
    loss = -alpha * (1 - prob) ** gamma * log_prob
    if weight.numel():
        loss = loss * _class_weight(wide(weight), target)
    output.copy_(torch.where(target >= 0, loss, torch.zeros_like(loss)))


def softmax_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    *,
    gamma: float,
    alpha: float,
) -> None:
    """Fill ``grad_input`` (N, C) with d loss / d logit, ``buff`` (N,) with p dL/dp."""
    softmax = wide(input)
    prob, log_prob = _picked(softmax, target)
    focus = (1 - prob) ** gamma
    # gamma (1 - p)^(gamma - 1) p log p, which tends to 0 as p tends to 1
    rest = (1 - prob).clamp(min=torch.finfo(prob.dtype).tiny)
    slope = torch.where(
        prob < 1, gamma * focus / rest * prob * log_prob, torch.zeros_like(prob)
    )
    per_row = alpha * (slope - focus)
    if weight.numel():
        per_row = per_row * _class_weight(wide(weight), target)
    per_row = torch.where(target >= 0, per_row, torch.zeros_like(per_row))
    buff.copy_(per_row)
    hot = torch.zeros_like(softmax).scatter_(1, target.clamp(min=0)[:, None], 1.0)
    grad_input.copy_(per_row[:, None] * (hot - softmax))
