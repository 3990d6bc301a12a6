"""FourierFT and WaveFT: an increment with few coefficients in another basis.

Papers: Gao et al., "Parameter-Efficient Fine-Tuning with Discrete Fourier Transform",
ICML 2024, https://arxiv.org/abs/2405.03003; Bilican et al., "Exploring Sparsity for
Parameter Efficient Fine Tuning Using Wavelets", 2025,
https://arxiv.org/abs/2505.12532 (``transform='haar'``).
Differs from the paper: coefficients start at zero, so that the model starts as the
frozen one (``start='random'`` draws them from N(0, 1)). Wavelets other than Haar's,
which pad the increment, are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpetl.core import (
    ATTENTION,
    PROJECTIONS,
    Affine,
    Context,
    Delta,
    Method,
    PETLError,
    Site,
    check_kinds,
    check_range,
    convolve,
    in_networks,
    uncast,
)
from mmpetl.core.lean import merged
from mmpetl.core.peft_format import (
    PeftAdapter,
    PeftFormat,
    PeftLayer,
    TunedLinear,
    by_layer,
    in_pattern,
)
from mmpetl.registry import METHODS

TRANSFORMS = ('fourier', 'haar', 'none')
STARTS = ('zero', 'random')


class Places(nn.Module):
    """Where the coefficients lie, one buffer for each shape of a weight.

    ``at_<out>x<in>``: (n,), numbers of entries row by row. They are saved: a seed alone
    need not draw the same ones in another release of PyTorch.
    """

    def __init__(self, sites: Sequence[Site], number: int, seed: int) -> None:
        super().__init__()
        for site in sites:
            size = site.out_dims * site.in_dims
            if name_of(site) in self._buffers:
                continue
            drawn = drawn_places(size, number, seed)
            # Where nothing has memory, this has none either.
            places = torch.empty(len(drawn), dtype=torch.int32).copy_(drawn)
            self.register_buffer(name_of(site), places)


def drawn_places(size: int, number: int, seed: int) -> Tensor:
    """So many of the numbers below ``size``, drawn by a seed: (number,)."""
    generator = torch.Generator('cpu').manual_seed(seed)
    return torch.randperm(size, generator=generator, device='cpu')[:number]


def name_of(site: Site) -> str:
    """Name of the buffer with the places for a site."""
    return f'at_{site.out_dims}x{site.in_dims}'


def from_haar(coefficients: Tensor) -> Tensor:
    """The inverse of one level of Haar's transform in two dimensions.

    Args:
        coefficients: (out, in), both even; its quarters are the averages (top left),
            the details along columns (top right), along rows (bottom left) and both.

    Returns:
        (out, in), of the same Frobenius norm.
    """
    top, bottom = coefficients.chunk(2)
    (average, vertical), (horizontal, both) = top.chunk(2, 1), bottom.chunk(2, 1)
    rows = (
        (average + vertical, horizontal + both),
        (average - vertical, horizontal - both),
    )
    lines = [torch.stack((a + b, a - b), dim=-1).flatten(1) / 2 for a, b in rows]
    return torch.stack(lines, dim=1).flatten(0, 1)


def from_waves(c: Tensor, places: Tensor, shape: tuple[int, int]) -> Tensor:
    """Real part of the inverse Fourier transform of a matrix with few entries.

    Those of the real parts of ``C`` and of its mirror image ``C[-k, -l]`` are the same,
    so half of the columns say all, and a transform to real numbers costs half.

    Args:
        c: The entries, (n,).
        places: Numbers of these, row by row, (n,).
        shape: Of the matrix, (out, in).

    Returns:
        (out, in).
    """
    rows, columns = shape
    k, column = places // columns, places % columns
    half = columns // 2 + 1
    beyond = column >= half
    k = torch.where(beyond, -k % rows, k)
    column = torch.where(beyond, columns - column, column)
    # The first column and the middle one of an even number are their own mirrors.
    alone = (column == 0) | (2 * column == columns)
    value = torch.where(alone, c, c / 2)
    C = c.new_zeros(rows * half).index_add(0, k * half + column, value)
    return torch.fft.irfft2(C.view(rows, half), s=shape)


class FourierFTDelta(Delta):
    """``y + x dW^T``.  x: (B, N, in_dims), y: (B, N, out_dims).

    ``dW = scale * T(C)`` for a matrix C of zeros that holds ``c``, (n,), at the shared
    places; T is the real part of the inverse Fourier transform, or Haar's.
    """

    shared: Places

    def __init__(
        self, site: Site, number: int, scale: float, transform: str, start: str
    ) -> None:
        super().__init__()
        self.c = nn.Parameter(torch.zeros(number))
        self.shape = site.out_dims, site.in_dims
        self.name = name_of(site)
        self.scale = scale
        self.transform = transform
        if start == 'random':
            nn.init.normal_(self.c)

    def increment(self, c: Tensor) -> Tensor:
        """dW, (out_dims, in_dims), for these coefficients and in their dtype."""
        c = c * self.scale
        places = self.shared.get_buffer(self.name)[: len(c)].long()
        if self.transform == 'fourier':
            return from_waves(c, places, self.shape)
        C = c.new_zeros(self.shape[0] * self.shape[1]).index_copy(0, places, c)
        C = C.view(self.shape)
        return from_haar(C) if self.transform == 'haar' else C

    def weight(self, x: Tensor) -> Tensor:
        """The increment in the dtype of ``x``; no transform is in half precision."""
        with uncast(x):
            dtype = torch.promote_types(self.c.dtype, torch.float32)
            return self.increment(self.c.to(dtype)).to(x.dtype)

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        return y + F.linear(x, self.weight(x))

    def within(
        self, module: Callable[[Tensor], Tensor], x: Tensor, ctx: Context
    ) -> Tensor | None:
        def written(weight: Tensor, c: Tensor) -> Tensor:
            return weight + self.increment(c)

        return merged(module, x, ctx, written, (self.c,))


class FourierFTConvDelta(FourierFTDelta):
    """The same beside a convolution, over what it sees at a place.

    x: (B, C, *extents), y: (B, *out_extents, out_dims).
    """

    def __init__(
        self, site: Site, number: int, scale: float, transform: str, start: str
    ) -> None:
        super().__init__(site, number, scale, transform, start)
        self.site = site

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        return y + convolve(x, self.weight(x), self.site)


class FourierFTInPeft(PeftFormat):
    """``fourierft_spectrum`` is c; both draw the places by the seed."""

    kind = 'FOURIERFT'
    names = ('fourierft_spectrum',)
    reads = ('n_frequency', 'n_frequency_pattern', 'scaling', 'random_loc_seed')

    def arguments(
        self, config: Mapping[str, Any], layers: Sequence[PeftLayer]
    ) -> dict[str, Any]:
        return {
            'num_coefficients': by_layer({x.path: len(self.c(x)) for x in layers}),
            'scale': config.get('scaling', 150.0),
            'seed': config.get('random_loc_seed', 777),
        }

    def c(self, layer: PeftLayer) -> Tensor:
        """The coefficients of a layer."""
        return layer.need('fourierft_spectrum')

    def load(
        self, delta: FourierFTDelta, layer: PeftLayer, shared: Mapping[str, Tensor]
    ) -> None:
        layer.take('fourierft_spectrum', delta.c)

    def write(self, method: FourierFT, linears: Sequence[TunedLinear]) -> PeftAdapter:
        if method.transform != 'fourier':
            raise PETLError(
                f'FourierFT with transform={method.transform!r} has no equal in peft'
            )
        layers, numbers = {}, {}
        for linear in linears:
            delta = linear.whole('FourierFT')
            places = delta.shared.get_buffer(delta.name)
            size = linear.out_dims * linear.in_dims
            drawn = drawn_places(size, len(places), method.seed)
            if not torch.equal(places.cpu().long(), drawn):
                raise PETLError(
                    'FourierFT has places that its seed does not draw here, and peft '
                    'keeps the seed alone; write it under the PyTorch of its training'
                )
            layers[linear.path] = {'fourierft_spectrum': delta.c}
            numbers[linear.path] = len(delta.c)
        most, pattern = in_pattern(numbers)
        entries = {
            'n_frequency': most,
            'n_frequency_pattern': pattern,
            'scaling': method.scale,
            'random_loc_seed': method.seed,
        }
        return PeftAdapter(entries, layers)


@METHODS.register_module()
class FourierFT(Method):
    """Sparse coefficients of the increment of a projection.

    Args:
        num_coefficients: Coefficients of each projection, at random places, which are
            the same for all weights of one shape. The paper has 3,000 and 10,000 on
            ViT-B; WaveFT 2,592. By layer: ``{'*.attn.q': 1000, '*': 3000}``.
        scale: Factor of the increment, 300 in the paper. The Fourier transform divides
            by out x in, the others by nothing, so it says little without the learning
            rate.
        transform: ``'fourier'`` (FourierFT), ``'haar'`` (WaveFT), or ``'none'``: the
            coefficients are entries of the increment.
        start: ``'zero'``, or ``'random'``: N(0, 1).
        seed: Of the places.
        targets: Projections that get an increment of their own. A trunk without
            attention has no queries and values; there the default stands for both
            projections of its feed-forward networks. In a model that no file describes
            every Linear and convolution has one.
    """

    leaf_kinds = ('layer.linear', 'layer.conv')
    sized = ('num_coefficients',)
    peft = FourierFTInPeft()
    family = 'reparameterisation'
    neutral: ClassVar[Mapping[str, float]] = {'c': 0.0}

    def __init__(
        self,
        num_coefficients: int = 3000,
        scale: float = 300.0,
        transform: Literal['fourier', 'haar', 'none'] = 'fourier',
        start: Literal['zero', 'random'] = 'zero',
        seed: int = 777,
        targets: Sequence[str] = ATTENTION,
    ) -> None:
        check_range(self, 'num_coefficients', num_coefficients, 1)
        check_range(self, 'scale', scale, 0)
        check_range(self, 'seed', seed, 0)
        for name, given, known in (
            ('transform', transform, TRANSFORMS),
            ('start', start, STARTS),
        ):
            if given not in known:
                raise PETLError(
                    f'FourierFT needs {name} {" or ".join(known)}, got {given!r}'
                )
        self.num_coefficients = num_coefficients
        self.scale = scale
        self.transform = transform
        self.start = start
        self.seed = seed
        self.targets = check_kinds(self, targets, PROJECTIONS)
        self.starts_as_identity = start == 'zero'
        self.substitutes = in_networks(self.targets)

    def has_room(self, site: Site) -> bool:
        return not self._trouble(site)

    def check(self, sites: list[Site]) -> None:
        for site in sites:
            if trouble := self._trouble(site):
                raise PETLError(f'FourierFT {trouble}')

    def _trouble(self, site: Site) -> str:
        """Why there can be no increment at a site, empty where there can."""
        shape = f'{site.out_dims} x {site.in_dims} at {site}'
        if self.num_coefficients > site.out_dims * site.in_dims:
            return (
                f'needs num_coefficients of at most the entries of a weight, {shape}, '
                f'got {self.num_coefficients}'
            )
        if self.transform == 'haar' and (site.out_dims % 2 or site.in_dims % 2):
            return f"with transform='haar' needs even sizes, got {shape}"
        return ''

    def share(self, sites: list[Site]) -> Places:
        number = self.num_coefficients
        most = max(number.values()) if isinstance(number, Mapping) else number
        return Places(sites, most, self.seed)

    def build(self, site: Site) -> FourierFTDelta:
        cls = FourierFTDelta if site.kernel is None else FourierFTConvDelta
        return cls(site, self.num_coefficients, self.scale, self.transform, self.start)

    def fold(self, site: Site, delta: FourierFTDelta, affine: Affine) -> None:
        affine.add_(delta.increment(delta.c.double()))
