"""GPS: the few weights of every neuron whose gradients are largest.

Paper: Zhang et al., "Gradient-based Parameter Selection for Efficient Fine-Tuning",
CVPR 2024, https://arxiv.org/abs/2312.10136, section 3.
Differs from the authors' code: none in the algebra. There a mask zeroes the gradients
of whole weights (``mode='mask'`` here); by default a vector of values at fixed places
is added to frozen weights, so that optimizer state and checkpoint are as small as the
count, and neither weight decay nor momentum can move what is not selected. With Adam
and no weight decay both take the same steps. Relative position tables count as position
embeddings and stay.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpetl.core import (
    Affine,
    Calibrated,
    Context,
    Delta,
    Method,
    PETLError,
    Place,
    Role,
    Site,
    batch_size,
    check_range,
    gradient_at,
    in_rows,
    inputs_and_labels,
    one_epoch,
    only_trains,
    parameters_behind,
    places_of,
    records_gradients,
    task_loss,
    warn_uncalibrated,
    watching,
    without_extra,
)
from mmpetl.core.lean import merged
from mmpetl.registry import METHODS

CRITERIA = ('supcon', 'task')
MODES = ('values', 'mask')
TEMPERATURE = 0.07
MOST_FOR_TASK = 1000
FEW = 8
"""Adding so many entries per row one by one is faster than a product of matrices."""
TOKENS = 128
"""So many at a time stay in the cache of a processor."""


def columns(x: Tensor, index: Tensor) -> Tensor:
    """``x[..., index]``, (..., in_dims) -> (..., out_dims).

    Token by token, as features lie in memory: ``index_select``, which goes column by
    column, takes ten times as long.
    """
    return x.gather(-1, index.long().expand(*x.shape[:-1], -1))


def add_columns_(total: Tensor, x: Tensor, index: Tensor) -> Tensor:
    """``total[..., index] += x``, what :func:`columns` sends back.

    total: (..., in_dims), x: (..., out_dims).
    """
    return total.scatter_add_(-1, index.long().expand(*x.shape[:-1], -1), x)


class Columns(torch.autograd.Function):
    """:func:`columns` that keeps nothing of x for the backward pass."""

    forward = staticmethod(columns)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, index = inputs
        ctx.save_for_backward(index)
        ctx.dims = x.shape[-1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return add_columns_(
            grad.new_zeros(*grad.shape[:-1], ctx.dims), grad, index
        ), None


def add_rows(
    y: Tensor,
    x: Tensor,
    values: Tensor,
    index: Tensor,
    columns: Callable[[Tensor, Tensor], Tensor] = columns,
) -> Tensor:
    """``y_o + sum_k values_ok x[index_ok]``, without a dense weight.

    y: (..., out_dims), x: (..., in_dims), values and index: (out_dims, K). What leaves
    has the strides of y, and with them the order of later sums.
    """
    for k in range(index.shape[1]):
        y = torch.addcmul(y, columns(x, index[:, k]), values[:, k])
    return y


class SparseRows(torch.autograd.Function):
    """:func:`add_rows` that keeps nothing but its inputs for the backward pass."""

    @staticmethod
    def forward(y: Tensor, x: Tensor, values: Tensor, index: Tensor) -> Tensor:
        return add_rows(y, x, values, index)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        x, values, index = ctx.saved_tensors
        to_x = to_values = None
        rows, inside = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        if ctx.needs_input_grad[1]:
            to_x = _to_inputs(rows, values, index, x.shape[-1]).view(x.shape)
        if ctx.needs_input_grad[2]:
            to_values = _to_values(rows, inside, index)
        return grad, to_x, to_values, None


def _to_inputs(grad: Tensor, values: Tensor, index: Tensor, dims: int) -> Tensor:
    """``grad D``, (M, dims), for the D of :func:`dense_rows`."""
    if index.shape[1] > FEW or torch.is_grad_enabled():  # of this pass, a second one
        return grad @ dense_rows(values, index, dims)
    total = grad.new_zeros(grad.shape[0], dims)
    for into, part in _few_tokens(total, grad):
        for value, place in zip(values.T, index.long().T, strict=True):
            add_columns_(into, part * value, place)
    return total


def _to_values(grad: Tensor, x: Tensor, index: Tensor) -> Tensor:
    """``sum_m grad_mo x[m, index_ok]``, (out_dims, K)."""
    if torch.is_grad_enabled():  # a backward pass of this one writes to no views
        return (grad.t() @ x).gather(1, index.long())
    total = grad.new_zeros(index.shape)
    for part, inside in _few_tokens(grad, x):
        for into, place in zip(total.T, index.long().T, strict=True):
            into += columns(inside, place).mul_(part).sum(0)
    return total


def _few_tokens(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of a few tokens of each tensor, (M, ...); on a GPU of all of them."""
    size = len(tensors[0]) if tensors[0].is_cuda else TOKENS
    return zip(*(tensor.split(max(size, 1)) for tensor in tensors), strict=True)


def dense_rows(values: Tensor, index: Tensor, dims: int) -> Tensor:
    """The weight with ``values`` at ``index`` and zeros elsewhere, (out_dims, dims)."""
    weight = values.new_zeros(len(values), dims)
    return weight.scatter(1, index.long(), values)


class GPSDelta(Delta):
    """``y + x D^T``, D with K entries per row at ``index``.

    x: (B, N, in_dims), y: (B, N, out_dims); values: (out_dims, K), zero at the start;
    index: (out_dims, K).
    """

    def __init__(self, in_dims: int, out_dims: int, num_weights: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(out_dims, num_weights))
        first = torch.arange(num_weights, dtype=torch.int32)
        self.register_buffer('index', first.repeat(out_dims, 1))
        self.in_dims = in_dims

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        warn_uncalibrated(self, 'GPS trains the first weights of every neuron')
        args = y, x.to(y.dtype), self.values.to(y.dtype), self.index
        if not records_gradients():
            return add_rows(*args)
        # Backward reads x or its columns, so the narrower of both is kept.
        if self.index.numel() < self.in_dims:
            return add_rows(*args, Columns.apply)
        return SparseRows.apply(*args)

    def within(
        self, module: Callable[[Tensor], Tensor], x: Tensor, ctx: Context
    ) -> Tensor | None:
        warn_uncalibrated(self, 'GPS trains the first weights of every neuron')
        index = self.index.long()

        def written(weight: Tensor, values: Tensor) -> Tensor:
            return weight.scatter_add(1, index, values)

        def to_values(grad: Tensor, x: Tensor, *_: Tensor) -> tuple[Tensor]:
            if index.shape[1] > FEW:
                return ((grad.t() @ x).gather(1, index),)
            return (_to_values(grad, x, index),)

        # Beside so few entries a copy of the weight costs less than to gather columns
        # for all tokens and to send their gradients back.
        return merged(module, x, ctx, written, (self.values,), collect=to_values)


class GPSConvDelta(GPSDelta):
    """The same beside a convolution. x: (B, C, *extents)."""

    def __init__(self, site: Site, num_weights: int) -> None:
        super().__init__(site.in_dims, site.out_dims, num_weights)
        self.site = site

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        return super().after(places_of(x, self.site), y, ctx)


class GPSMask(Delta):
    """Passes y on; the gradient of the weight keeps K entries per row, at ``index``.

    index: (out_dims, K).
    """

    def __init__(self, in_dims: int, out_dims: int, num_weights: int) -> None:
        super().__init__()
        first = torch.arange(num_weights, dtype=torch.int32)
        self.register_buffer('index', first.repeat(out_dims, 1))
        self.in_dims = in_dims

    def watch(
        self,
        parts: Sequence[tuple[nn.Parameter, int, int]],
        closed: Sequence[tuple[nn.Parameter, list[int]]] = (),
    ) -> None:
        """Name the weights whose gradients are masked.

        Args:
            parts: For the rows of the site in their order: a parameter, the first of
                its rows that are meant, and how many.
            closed: Parameters, each with the rows of it that do not train at all.
        """
        # In tuples they are no parameters of this module, and copies keep the link.
        self.__dict__['_parts'] = tuple(parts)
        self.__dict__['_closed'] = tuple(closed)
        self.__dict__['_hooked'] = {}

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        warn_uncalibrated(self, 'GPS trains the first weights of every neuron')
        # A copy of the model has weights of its own, on which nothing hangs yet.
        hooked = self.__dict__['_hooked']
        me, first = weakref.ref(self), 0  # the mask ends with the delta
        masks = []
        for weight, row, count in self._parts:
            masks.append((weight, partial(_masked, me, (row, first, count))))
            first += count
        masks += [(weight, partial(_closed, me, rows)) for weight, rows in self._closed]
        for number, (weight, mask) in enumerate(masks):
            if weight.requires_grad and hooked.get(number) != id(weight):
                hooked[number] = id(weight)
                weight.register_hook(mask)
        return y


def _masked(
    delta: Callable[[], GPSMask | None], rows: tuple[int, int, int], grad: Tensor
) -> Tensor | None:
    """The gradient at the chosen places; None (as it is) where none are to be kept.

    Args:
        delta: Gives the delta as long as there is one.
        rows: First row in the weight, first row of the site, and how many.
        grad: Of the whole weight; rows of others stay as they are.
    """
    delta = delta()
    if delta is None or getattr(delta.shared, 'sees_all', False):
        return None
    row, first, count = rows
    index = delta.index[first : first + count]
    ones = torch.ones_like(index, dtype=grad.dtype)
    kept = dense_rows(ones, index, delta.in_dims)
    if count == len(grad):
        return grad * kept.view_as(grad)
    grad = grad.clone()
    inside = grad[row : row + count]
    inside.mul_(kept.view_as(inside))
    return grad


def _closed(
    delta: Callable[[], GPSMask | None], rows: list[int], grad: Tensor
) -> Tensor | None:
    """The gradient with zeros at some rows; as :func:`_masked`."""
    delta = delta()
    if delta is None or getattr(delta.shared, 'sees_all', False):
        return None
    return grad.index_fill(0, torch.tensor(rows, device=grad.device), 0)


def supervised_contrast(features: Tensor, labels: Tensor) -> Tensor | None:
    """Supervised contrastive loss, mean over the anchors that have a positive.

    ``-1 / |P| sum_p log(exp(f_a f_p / t) / sum_{j != a} exp(f_a f_j / t))`` with
    unit vectors f and the positives P, the others of the anchor's label.

    Args:
        features: (B, C), of any length.
        labels: (B,).

    Returns:
        A scalar, None where no anchor has a positive.
    """
    f = F.normalize(features, dim=-1)
    self_pair = torch.eye(len(f), dtype=torch.bool, device=f.device)
    logits = (f @ f.T / TEMPERATURE).masked_fill(self_pair, -torch.inf)
    log_share = logits - logits.logsumexp(-1, keepdim=True)
    positive = (labels[:, None] == labels[None]) & ~self_pair
    count = positive.sum(-1)
    if not count.any():
        return None
    per_anchor = -log_share.masked_fill(~positive, 0).sum(-1)
    return (per_anchor[count > 0] / count[count > 0]).mean()


@METHODS.register_module()
class GPS(Method):
    """Gradient-based parameter selection.

    Which weights train is chosen by a pass over the labelled training data before
    training (:meth:`calibrate`, which ``mmpetl.CalibrationHook`` runs) and kept in the
    state. Every linear map of the backbone takes part, patch embedding and patch
    merging included.

    Args:
        num_weights: K, how many weights of every row train, 1 <= K <= width of the
            narrowest input; 1 on most tasks in the authors' scripts. By layer:
            ``{'*.attn.qkv': 4, '*': 1}``, the first pattern that fits.
        criterion: Whose gradients choose: ``'supcon'``, the supervised contrastive loss
            of two views of every image, which no head takes part in; or ``'task'``, the
            model's own loss (cross-entropy through the head in a classifier). Dense
            tasks have no label per image and need ``'task'``.
        train_bias: Whether all biases but those of norms train as well, and layer
            scales, as in the authors' code.
        max_images: Most images that the pass looks at; None means all, and 1000 for
            ``criterion='task'``.
        mode: ``'values'``, or ``'mask'`` to train whole weights with masked gradients,
            for comparison: optimizer state and checkpoint are then those of full
            fine-tuning, and weight decay moves every weight.

    In a model that no file describes every Linear and convolution takes part, and
    ``criterion`` is ``'task'``, since no output is known to contrast.
    """

    leaf_kinds = ('layer.linear', 'layer.conv')
    sized = ('num_weights',)

    targets = ('embed.proj', 'attn.qkv', 'attn.proj', 'ffn.fc1', 'ffn.fc2')
    substitutes = {'attn.qkv': ('attn.q', 'attn.k', 'attn.v')}
    targets_any = True
    optional = ('downsample.reduction',)
    family = 'specification'

    def __init__(
        self,
        num_weights: int = 1,
        criterion: Literal['supcon', 'task'] = 'supcon',
        train_bias: bool = True,
        max_images: int | None = None,
        mode: Literal['values', 'mask'] = 'values',
    ) -> None:
        check_range(self, 'num_weights', num_weights, 1)
        if criterion not in CRITERIA:
            raise PETLError(
                f'GPS needs criterion {" or ".join(CRITERIA)}, got {criterion!r}'
            )
        if mode not in MODES:
            raise PETLError(f'GPS needs mode {" or ".join(MODES)}, got {mode!r}')
        if max_images is not None:
            check_range(self, 'max_images', max_images, 1)
        self.num_weights = num_weights
        self.criterion = criterion
        self.train_bias = train_bias
        self.max_images = max_images
        self.mode = mode

    def check(self, sites: list[Site]) -> None:
        narrow = min(site.in_dims for site in sites)
        if self.num_weights > narrow:
            raise PETLError(
                f'GPS needs num_weights of at most {narrow}, the weights in a row of '
                f'the narrowest projection, got {self.num_weights}'
            )

    def choose_leaves(self, sites: list[Site]) -> list[Site]:
        if self.criterion != 'task':
            raise PETLError(
                "GPS with criterion='supcon' contrasts the features at `out`, which no "
                "file describes for this model; choose criterion='task'"
            )
        return super().choose_leaves(sites)

    def share(self, sites: list[Site]) -> Calibrated:
        return Calibrated()

    def build(self, site: Site) -> GPSDelta | GPSMask:
        if self.mode == 'mask':
            return GPSMask(site.in_dims, site.out_dims, self.num_weights)
        if site.kernel is not None:
            return GPSConvDelta(site, self.num_weights)
        return GPSDelta(site.in_dims, site.out_dims, self.num_weights)

    def initialise(
        self, deltas: Mapping[Site, Delta], weights: Callable[[str, str], Affine]
    ) -> None:
        if self.mode != 'mask':
            return
        parts = {
            site: _parts_of(site, weights(site.host, site.kind, site.index))
            for site in deltas
        }
        closed = _rows_of_none([part for some in parts.values() for part in some])
        for site, delta in deltas.items():
            own = dict.fromkeys(param for param, _, _ in parts[site])
            # The first that reads a parameter closes the rows that no site has.
            rows = [(param, closed.pop(param)) for param in own if param in closed]
            delta.watch(parts[site], rows)

    @property
    def trains_weights(self) -> bool:
        return self.mode == 'mask'

    def selects(self, role: Role) -> bool:
        if role.is_norm or not self.train_bias:
            return False
        return role.kind == 'scale' or role.part == 'bias'

    def gradients(
        self, backbone: nn.Module, batches: Iterable[Any]
    ) -> dict[Site, Tensor]:
        """Gradient of the criterion at every weight, summed over the batches.

        Nothing is updated. Dropout and stochastic depth act, also in the frozen trunk.

        Returns:
            (out_dims, in_dims) in float32 by site.

        Raises:
            PETLError: There are no data, labels of one class only, or none.
        """
        place = Place(backbone, self)
        with in_rows(place.module):
            return self._gradients(backbone, place, batches)

    def _gradients(
        self, backbone: nn.Module, place: Place, batches: Iterable[Any]
    ) -> dict[Site, Tensor]:
        module = place.module
        weights = {
            site: place.record.site_map.affine(module, site).weights
            for site in place.sites
        }
        params = parameters_behind(
            module, [view for views in weights.values() for view in views]
        )
        limit = self.max_images
        if limit is None and self.criterion == 'task':
            limit = MOST_FOR_TASK
        seen, classes = 0, set()
        views = 2 if self.criterion == 'supcon' else 1
        with (
            only_trains(
                backbone, list(dict.fromkeys(params.values())), train_mode=True
            ),
            _whole_gradients(place),
        ):
            for batch in one_epoch(batches, views=views, shuffle=True):
                if limit is not None and seen >= limit:
                    break
                if self.criterion == 'task':
                    loss, count = task_loss(backbone, batch[0]), batch_size(batch[0])
                else:
                    loss, labels = self._contrast(backbone, place, batch)
                    classes |= set(labels.tolist())
                    count = len(labels)
                seen += count
                if loss is not None:
                    loss.backward()
            grads = {
                site: torch.cat([gradient_at(view, params[view]) for view in views])
                for site, views in weights.items()
            }
        if not seen:
            raise PETLError('GPS chooses weights by data, and there are none')
        if self.criterion == 'supcon' and len(classes) == 1:
            raise PETLError(
                'GPS contrasts classes, and the data hold one only '
                f'({classes.pop()}); give it labelled data of two classes or more'
            )
        return {site: grad.float() for site, grad in grads.items()}

    def _contrast(
        self, backbone: nn.Module, place: Place, batch: list[Any]
    ) -> tuple[Tensor | None, Tensor]:
        """Loss and labels of the views of one batch, without the head."""
        found: list[Tensor] = []
        out = [site for site in place.record.sites if site.kind == 'out'][-1]

        def look(x: Tensor, y: Tensor, ctx: Context) -> None:
            found.append(_feature(out, without_extra(x, ctx), ctx))

        pairs = [inputs_and_labels(backbone, place.module, view) for view in batch]
        if any(labels is None for _, labels in pairs):
            raise PETLError(
                "GPS with criterion='supcon' needs one label per image, and these data "
                "have none; choose criterion='task'"
            )
        with watching(place.module, {out: look}):
            inputs = torch.cat([inputs for inputs, _ in pairs])
            if getattr(place.module, 'clip_frames', 1) > 1:
                inputs = inputs.transpose(1, 2).flatten(0, 1)
            place.module(inputs)
        labels = torch.cat([labels for _, labels in pairs])
        if len(found[0]) != len(labels):
            raise PETLError(
                f"GPS with criterion='supcon' needs one feature per label, and the "
                f'blocks of this backbone give {len(found[0])} for {len(labels)} '
                "(frames are images to them); choose criterion='task'"
            )
        return supervised_contrast(found[0].float(), labels), pairs[0][1]

    def calibrate(self, backbone: nn.Module, batches: Iterable[Any]) -> None:
        """Choose, in every row, the weights with the largest :meth:`gradients`.

        Raises:
            PETLError: There are no data, labels of one class only, or none.
        """
        place = Place(backbone, self)
        for site, grad in self.gradients(backbone, batches).items():
            index = place.delta(site).index
            chosen = grad.abs().topk(index.shape[1], dim=-1).indices
            index.copy_(chosen.sort(dim=-1).values)
        place.shared.done.fill_(True)

    def fold(self, site: Site, delta: GPSDelta | GPSMask, affine: Affine) -> None:
        if self.mode == 'values':  # a masked weight is in place
            affine.add_(dense_rows(delta.values, delta.index, delta.in_dims))


@contextmanager
def _whole_gradients(place: Place) -> Iterator[None]:
    """Leave gradients unmasked, so that a second choice sees all of them."""
    place.shared.sees_all = True
    try:
        yield
    finally:
        del place.shared.sees_all


def _parts_of(site: Site, affine: Affine) -> list[tuple[nn.Parameter, int, int]]:
    """Parameter, first row in it and number of rows, for all rows of a site.

    Raises:
        PETLError: A weight is no rows of a parameter.
    """
    parts = []
    for weight in affine.weights:
        # That of a convolution is seen as a matrix, that of queries as rows.
        param = weight if isinstance(weight, nn.Parameter) else weight._base
        if not isinstance(param, nn.Parameter) or not weight.is_contiguous():
            raise PETLError(
                f"GPS(mode='mask') masks the gradients of rows of a weight, and those "
                f"of {site} are no such rows; mode='values' trains the same weights"
            )
        start = weight.storage_offset() - param.storage_offset()
        parts.append((param, start // weight[0].numel(), len(weight)))
    return parts


def _rows_of_none(
    parts: Iterable[tuple[nn.Parameter, int, int]],
) -> dict[nn.Parameter, list[int]]:
    """The rows of each parameter that are in no part, where there are any.

    Of queries, keys and values in one weight, ``layers`` may name some only.
    """
    rows: dict[nn.Parameter, set[int]] = {}
    for param, row, count in parts:
        left = rows.setdefault(param, set(range(len(param))))
        left.difference_update(range(row, row + count))
    return {param: sorted(left) for param, left in rows.items() if left}


def _feature(out: Site, x: Tensor, ctx: Context) -> Tensor:
    """What a classifier would read: the class token, or the mean of the grid.

    Of the frames of a clip it is their mean.

    Args:
        out: The output.
        x: (B, own prefix + prod(grid), C), normed.
        ctx: Facts of this forward pass.
    """
    own = ctx.num_prefix - ctx.num_extra
    vectors = x[:, own:].mean(1) if out.pooled or not own else x[:, 0]
    return vectors.unflatten(0, (-1, ctx.frames)).mean(1)
