"""Methods that teach themselves: a second pass over each batch, in a fuller form.

A wrapper of MMEngine makes that pass, and adds its losses to that of the task before it
scales and accumulates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mmpetl.compat.counting import LISTENERS
from mmpetl.core.errors import PETLError
from mmpetl.core.injection import Place, injections
from mmpetl.core.losses import add_and_log


def teachers(model: nn.Module) -> list[Place]:
    """Where the methods are that teach: those that act and train."""
    return [
        Place.of(module, record, name)
        for _, module, record in injections(model)
        for name, slot in record.slots.items()
        if slot.method.teaches and slot.enabled and not slot.frozen
    ]


@contextmanager
def teaching(model: nn.Module) -> Iterator[None]:
    """Passes inside of it are those of the teacher."""
    with ExitStack() as stack:
        for place in teachers(model):
            stack.enter_context(place.method.as_teacher(place))
        yield


def teacher_losses(
    model: nn.Module, scores: Tensor, again: Callable[[], tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """Losses of a second pass over a batch, by which the first one learns.

    Args:
        model: A model with injected backbones.
        scores: What it made of the batch, (B, classes, ...).
        again: Makes the pass once more: the loss of the task, and scores of that shape.

    Returns:
        ``<stem>_teacher``, the loss of the task in the second pass, and
        ``<stem>_distill``, the mean over the batch of ``sum(p_t (log p_t - log p_s))``
        with the second pass for t, whence no gradient comes. Nothing without a method
        that teaches.
    """
    places = teachers(model)
    if not places:
        return {}
    with teaching(model):
        loss, taught = again()
    stem = '_'.join(dict.fromkeys(place.method.stem() for place in places))
    student, teacher = scores.float(), taught.detach().float()
    distance = F.kl_div(
        F.log_softmax(student, dim=1), F.softmax(teacher, dim=1), reduction='batchmean'
    )
    return {f'{stem}_teacher': loss, f'{stem}_distill': distance}


class _LastPass:
    """What a model of OpenMMLab was called with in training, and its heads' scores."""

    def __init__(self, model: nn.Module) -> None:
        self.call: tuple[tuple, dict[str, Any]] | None = None
        self.scores: list[Any] = []
        self.heads = [
            part for part in model.children() if callable(getattr(part, 'loss', None))
        ]
        model.register_forward_pre_hook(self.begins, with_kwargs=True)
        for head in self.heads:
            head.register_forward_hook(self.scored)

    def begins(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """A pass begins."""
        self.scores = []
        losses = model.training and kwargs.get('mode') == 'loss'
        self.call = (args, kwargs) if losses else None

    def scored(self, head: nn.Module, args: tuple, scores: Any) -> None:
        """A head has given scores."""
        if self.call is not None:
            self.scores.append(scores)

    def take(self) -> Tensor:
        """The scores of the pass.

        Raises:
            PETLError: No head has given scores, or several have.
        """
        found, self.scores = self.scores, []
        if len(found) != 1 or not isinstance(found[0], Tensor):
            kinds = ', '.join(type(head).__name__ for head in self.heads) or 'none'
            raise PETLError(
                'a method that teaches compares the scores of one head, as classifiers '
                f'have it; this model has the heads: {kinds}. Give it distill=False'
            )
        return found[0]


def _begin(wrapper: Any, model: nn.Module, done: int, passes: int) -> None:
    """Let a wrapper make the second pass for a model's methods, once."""
    if 'teaches' in wrapper.__dict__ or not teachers(model):
        return
    plain = getattr(model, 'module', model)  # of a distributed wrapper
    last, update = _LastPass(plain), wrapper.update_params

    def taught(loss: Tensor, *args: Any, **kwargs: Any) -> None:
        call, scores = last.call, last.take()

        def again() -> tuple[Tensor, Tensor]:
            with wrapper.optim_context(model):
                losses = plain(*call[0], **call[1])
            return plain.parse_losses(losses)[0], last.take()

        found = teacher_losses(plain, scores, again)
        last.call = None
        update(add_and_log(wrapper, loss, found), *args, **kwargs)

    wrapper.teaches = True
    wrapper.update_params = taught


LISTENERS.append(_begin)
