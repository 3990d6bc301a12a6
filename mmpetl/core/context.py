"""What a delta may need beside its features."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor


def records_gradients() -> bool:
    """Whether what is kept for a backward pass matters in this forward pass.

    Not in a trace of TorchScript: what is saved can hold plain operations only, and no
    Python function of autograd or of activation checkpointing; nor in a transform of
    torch.func, which must know the derivative of each operation.
    """
    if not torch.is_grad_enabled() or torch.jit.is_tracing():
        return False
    if torch.compiler.is_compiling():
        return True
    return not torch._C._are_functorch_transforms_active()


def has_values(x: Tensor) -> bool:
    """Whether a program may look at numbers, to decide what to compute.

    Not while compiling, tracing or recording for a GPU, nor in a transform of
    torch.func, nor where there are none.
    """
    return (
        type(x) is Tensor
        and not x.is_meta
        and not torch.jit.is_tracing()
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and not (x.is_cuda and torch.cuda.is_current_stream_capturing())
    )


def autocasts(x: Tensor) -> bool:
    """Whether autocast decides on dtypes here; never where there are no numbers."""
    kind = x.device.type
    return kind != 'meta' and torch.is_autocast_enabled(kind)


def uncast(x: Tensor) -> AbstractContextManager[object]:
    """Where autocast decides on no dtype."""
    # A device without numbers has no autocast, and torch refuses to end it there.
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


class Made(NamedTuple):
    """How a feature can be computed again: :meth:`Context.tell`."""

    x: Tensor
    sources: tuple[Tensor, ...]
    compute: Callable[..., Tensor]
    version: int
    """How often ``x`` had been written to."""


class Share(NamedTuple):
    """The samples of a batch that one slot serves, one behind the other.

    Attributes:
        slot: Its name, None for the base alone.
        first: Which of them is the first.
        count: How many there are.
    """

    slot: str | None
    first: int
    count: int


class Context:
    """Facts of one forward pass, handed to every delta.

    Attributes:
        grid: Extents of the token grid at this place, (H, W) or (T, H, W).
        num_prefix: Tokens in front of the grid: class tokens, then extra tokens.
        frames: Frames of a clip that are images of the batch, one behind the other, so
            that the batch counts clips times frames; 1 for images, and where time is an
            axis of the grid.
        num_extra: How many of the prefix tokens deltas have added. They sit right
            behind the class tokens.
        joined: Slot and number of each group of extra tokens, in their order.
        notes: What the deltas of a slot keep for one another during the pass, by slot.
        masks: Shift masks of this pass, by partition; all blocks of a stage share one.
        handed: What the backbone hands to its next block beside the stream: rotary
            positions, a bias that blocks share. It is replaced, never written to.
        images: What entered the patch projection, (B, 3, H, W) or (B, 3, T, H, W).
        rerun: ``rerun(x, ctx)`` runs the block or the patch merging at hand once more,
            on another sequence, of any dtype, and another context. Set while the sites
            ``tokens``, ``block`` and ``downsample`` run.
        attend: ``attend(x, ctx, entering)`` runs norm and attention of the block at
            hand once more, on another sequence, of any dtype, and another context, with
            the deltas between the ports of the site ``attn`` and without these.
            ``entering`` makes something of what leaves the norm; None leaves it as it
            is. Set while the sites ``tokens`` and ``block`` run.
        silent: Slots whose deltas do not act, for what is run once more; watchers do
            not look on either.
        shares: Which samples have which slot, where slots share a pass, from the first
            sample to the last; then no other slot acts, on or off. None where the slots
            that are on act on all samples.
        affine: ``affine(kind)`` gives the base weights behind a site of the block or
            layer at hand, as an :class:`~mmpetl.core.affine.Affine`: its ``weight`` and
            ``full_bias()`` are frozen and in the dtype of the base, so they go through
            :meth:`Delta.own`. Set while a delta acts. A delta reads them in each pass,
            and says so (:attr:`Delta.reads_base`); it keeps no view of them, since
            conversions, copies and folding put others in their place.
        made: How the latest feature can be computed again, or None (:meth:`tell`;
            :meth:`made_of` reads it).
        output_kept: Whether what follows the site at hand keeps what leaves it for the
            backward pass, as it is.
        products: What deltas made of one input at queries, keys and values, for one
            another (:func:`~mmpetl.core.lean.product`); None at other sites.
        recomputes: Whether blocks make the sum behind attention again in the backward
            pass, for the norm that reads it, and do not keep it: one feature of each
            token, for the product with the output projection. Set where extra tokens
            make the stream much longer.
    """

    __slots__ = (
        'affine',
        'attend',
        'frames',
        'grid',
        'handed',
        'images',
        'joined',
        'made',
        'masks',
        'notes',
        'num_extra',
        'num_prefix',
        'output_kept',
        'products',
        'recomputes',
        'rerun',
        'shares',
        'silent',
    )

    def __init__(
        self, grid: tuple[int, ...], num_prefix: int = 0, frames: int = 1
    ) -> None:
        self.grid = grid
        self.num_prefix = num_prefix
        self.frames = frames
        self.num_extra = 0
        self.joined: list[tuple[str, int]] = []
        self.notes: dict[str, dict[Any, Any]] = {}
        self.masks: dict[Any, Tensor | None] = {}
        self.handed: Any = None
        self.images: Tensor | None = None
        self.rerun: Callable[[Tensor, Context], Tensor] | None = None
        self.attend: Callable[..., Tensor] | None = None
        self.silent: frozenset[str] = frozenset()
        self.shares: tuple[Share, ...] | None = None
        self.affine: Callable[[str], Any] | None = None
        self.made: Made | None = None
        self.output_kept = False
        self.products: list[tuple[Tensor, Tensor, Tensor]] | None = None
        self.recomputes = False

    def tell(
        self, x: Tensor, sources: tuple[Tensor, ...], compute: Callable[..., Tensor]
    ) -> None:
        """Say how a feature can be computed again, by what is cheap and without chance.

        Args:
            x: The feature.
            sources: What it is made of, and is kept for the backward pass by others.
            compute: ``compute(*sources)`` is x. It must hold no tensor itself.
        """
        # A compiler decides itself what is kept and what is computed again.
        if not records_gradients() or torch.compiler.is_compiling() or x.is_inference():
            self.made = None
        else:
            self.made = Made(x, sources, compute, x._version)

    def made_of(self, x: Tensor) -> Made | None:
        """How this very feature can be computed again, None where nobody has said.

        A layer that writes in place hands on the same tensor with other values.
        """
        made = self.made
        if made is None or made.x is not x or made.version != x._version:
            return None
        return made

    def fork(self) -> Context:
        """A copy whose counts stay as they are now; notes and masks are shared.

        Activation checkpointing runs a block again during backward, when the counts
        of the pass have moved on.
        """
        copy = Context(self.grid, self.num_prefix, self.frames)
        copy.num_extra = self.num_extra
        copy.joined = list(self.joined)
        copy.notes = self.notes
        copy.masks = self.masks
        copy.handed = self.handed
        copy.images = self.images
        copy.rerun = self.rerun
        copy.attend = self.attend
        copy.silent = self.silent
        copy.shares = self.shares
        copy.affine = self.affine
        copy.recomputes = self.recomputes
        return copy

    def own(self) -> Context:
        """A copy for the stream without the tokens that deltas have added."""
        copy = self.fork()
        copy.num_prefix = copy.num_prefix - copy.num_extra
        copy.num_extra, copy.joined = 0, []
        return copy

    def apart(self, num_tokens: int) -> Context:
        """A copy for tokens that pass a block by themselves, in front of no grid.

        What the slots have noted is there to be read; what they note stays apart.
        """
        copy = self.fork()
        copy.num_prefix, copy.num_extra, copy.joined = num_tokens, 0, []
        copy.grid = (0,) * len(self.grid)
        copy.notes = {slot: dict(notes) for slot, notes in self.notes.items()}
        return copy
