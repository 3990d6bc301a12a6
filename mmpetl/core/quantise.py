"""The frozen trunk in 8 or 4 bits, under a method that stays as it is."""

from __future__ import annotations

from torch import Tensor, nn

from mmpetl.core.errors import PETLError
from mmpetl.core.fingerprint import converting
from mmpetl.core.injection import Injection, injections
from mmpetl.core.packed import BITS, BLOCK, PackedWeight, stored


def quantise(model: nn.Module, bits: int = 8) -> nn.Module:
    """Put the weights of the frozen trunk's Linear layers into few bits, in place.

    Call it behind :func:`mmpetl.inject`, before training. Methods start from the base
    as it was, and so does its fingerprint; what a delta learns, it learns on the
    packed base, and :func:`mmpetl.save_delta` notes the bits. Weights that a method or
    a head trains stay as they are, and so do biases, norms, tables and convolutions.

    Args:
        model: An injected backbone, or a model that contains some.
        bits: 8 (a scale per row) or 4 (NF4, a scale per 64 entries).

    Returns:
        The same object. Each weight keeps its name, shape and dtype.

    Raises:
        PETLError: ``bits`` is neither, torchao is not installed, nothing is injected,
            the base has been quantised before, or there is no layer to quantise.

    Examples:
        >>> import importlib.util, timm, mmpetl
        >>> model = mmpetl.inject(timm.create_model('test_vit'), 'LoRA')
        >>> if importlib.util.find_spec('torchao'):
        ...     _ = mmpetl.quantise(model, bits=8)
    """
    if isinstance(bits, bool) or bits not in BITS:
        raise PETLError(f'a base is quantised to 8 or 4 bits, got {bits!r}')
    found = injections(model)
    if not found:
        raise PETLError(
            f'{type(model).__name__} holds no method, so nothing of it is frozen; '
            'inject first, then quantise'
        )
    chosen = []
    for path, module, record in found:
        if record.bits is not None:
            raise PETLError(
                f'the base of {type(module).__name__} is in {record.bits} bits already'
            )
        layers = _layers(module, record, bits)
        if not layers:
            raise PETLError(
                f'{type(module).__name__}{f" at {path}" * bool(path)} has no frozen '
                f'Linear layer that could be put into {bits} bits'
            )
        chosen.append((module, record, layers))
    for module, record, layers in chosen:
        packed = {
            weight: nn.Parameter(PackedWeight.of(weight, bits), requires_grad=False)
            for weight in dict.fromkeys(layer.weight for layer in layers)
        }
        converting(module, record, lambda p=packed, ls=layers: _replace(ls, p))
        record.bits = bits
    return model


def _replace(layers: list[nn.Linear], packed: dict[Tensor, nn.Parameter]) -> None:
    for layer in layers:
        layer.weight = packed[layer.weight]


def _layers(module: nn.Module, record: Injection, bits: int) -> list[nn.Linear]:
    """The Linear layers whose weight is the base's own, whatever is switched on."""
    trained = set(record.head).union(*(s.selected for s in record.slots.values()))
    names: dict[int, set[str]] = {}
    for name, param in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(param), set()).add(name)
    found = []
    for path, layer in module.named_modules():
        weight = getattr(layer, 'weight', None)
        if not isinstance(layer, nn.Linear) or not isinstance(weight, nn.Parameter):
            continue
        own = names[id(weight)]
        name = f'{path}.weight'.lstrip('.')
        frozen = name in record.base and not own & trained and not weight.requires_grad
        if frozen and _can_be(layer, bits):
            found.append(layer)
    return found


def _can_be(layer: nn.Linear, bits: int) -> bool:
    """Whether a layer's weight may be packed.

    Of the projection behind torch's own attention the weight is read by fused kernels.
    """
    fused = isinstance(layer, nn.modules.linear.NonDynamicallyQuantizableLinear)
    weight = layer.weight
    plain = type(weight) is nn.Parameter and weight.is_floating_point()
    if fused or not plain or weight.is_meta:
        return False
    return bits == 8 or weight.numel() % BLOCK == 0


def base_bytes(model: nn.Module) -> int:
    """Bytes that parameters and buffers take as they are stored, each counted once."""
    tensors = [*model.parameters(), *model.buffers()]
    parts = {id(t): t.numel() * t.element_size() for x in tensors for t in stored(x)}
    return sum(parts.values())
