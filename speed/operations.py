"""What a step of each method computes and moves, counted beside its bound.

Example: python speed/operations.py --write
         python speed/operations.py --backbone swin_b --batch 2 --methods Mona E3VA

Nothing is timed, so that the table is the same on any machine. Rows, trunks and bounds
are those of ``speed/methods.py``:

- *products*: multiplications of matrix products, convolutions and attention in a step,
  its backward pass and optimizer included, over those of the bound; a matrix and a
  vector are none;
- *traffic*: bytes that its operations read and write, views left out, over those of the
  bound. An operation that is done in several passes counts as one.

A processor that did nothing but products would take the first, a memory that did
nothing but move features the second. Numbers that are drawn (dropout), transforms and
activations are in the second alone. The last column but one is ``products + w *
(traffic - 1)``, for the w that brings it nearest to the measured steps of all methods
(least squares): what a step would take if nothing but products and traffic counted.

Every row is kept in ``--out`` as it is done, and a call goes on where the last stopped.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from methods import (
    BACKBONES,
    COSTS,
    DEPTHS,
    References,
    Step,
    lowest_block,
    methods_for,
)
from page import keep, read_rows, write_table
from timing import markdown
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import mmpetl

aten = torch.ops.aten

IN_PLACE = {
    aten.addmm_: aten.addmm,
    aten.baddbmm_: aten.baddbmm,
}
"""Products that PyTorch's table of formulas knows by another name."""

ATTENTION = {
    # Two products forward; backward the scores once more, and four.
    aten._scaled_dot_product_flash_attention_for_cpu: (0, 2),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: (1, 5),
}
"""Where the queries stand among its arguments, and how many products it is."""


class Tally(TorchDispatchMode):
    """Counts what runs within it.

    Attributes:
        products: Multiplications of products.
        traffic: Bytes that are read and written.
    """

    def __init__(self) -> None:
        super().__init__()
        self.products = self.traffic = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = IN_PLACE.get(func._overloadpacket, func._overloadpacket)
        if packet in flop_registry:
            flops = flop_registry[packet](*args, **(kwargs or {}), out_val=out)
            self.products += flops // 2
        elif packet in ATTENTION:
            first, count = ATTENTION[packet]
            query, key = args[first : first + 2]
            self.products += count * query.numel() * key.shape[-2]
        if not is_free(func):
            self.traffic += sum(map(bytes_of, tensors((args, kwargs, out))))
        return out


TAKEN = (
    '_unsafe_view',
    'empty',
    'empty_like',
    'empty_permuted',
    'empty_strided',
    'new_empty',
    'new_empty_strided',
)
"""Operations that give memory in which nothing is written."""


def is_free(func: Any) -> bool:
    """Whether an operation moves nothing: a view, or memory that is only taken."""
    name = func._overloadpacket.__name__
    aliases = [r.alias_info for r in func._schema.returns]
    is_view = any(alias is not None and not alias.is_write for alias in aliases)
    return is_view or name in TAKEN


def tensors(tree: Any) -> Iterable[Tensor]:
    """The tensors among arguments and results."""
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def bytes_of(tensor: Tensor) -> int:
    """Bytes of a tensor; what is repeated by a stride of zero counts once."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else min(size, 1)
    return count * tensor.element_size()


def tally(run: Callable[[], Any]) -> Tally:
    """What a run computes and moves."""
    run()  # what is built by the first
    with Tally() as counted:
        run()
    return counted


def measure(
    name: str, references: References, bounds: dict[int | None, Tally]
) -> dict[str, Any]:
    """The row of a method.

    Args:
        name: The method.
        references: Of the trunk.
        bounds: Those that are counted already, by lowest block; more are added.
    """
    net = mmpetl.inject(references.make(), name)
    net.train()
    index = lowest_block(net, references.x)
    if index not in bounds:
        bounds[index] = tally(references.bound(index))
    own, bound = tally(Step(net, references.x)), bounds[index]
    return {
        'method': name,
        'products': own.products / bound.products,
        'traffic': own.traffic / bound.traffic,
    }


def measured(backbone: str) -> dict[str, float]:
    """Step / bound of each method as ``speed/methods.py --write`` left it."""
    known = json.loads(COSTS.read_text(encoding='utf-8')) if COSTS.is_file() else {}
    rows = known.get(backbone, {'rows': []})['rows']
    return {row['method']: row['step_bound'][0] for row in rows}


def weight_of_traffic(
    rows: Iterable[Mapping[str, Any]], timed: Mapping[str, float]
) -> float:
    """The w of ``products + w (traffic - 1)`` that is nearest to the measured steps."""
    known = [row for row in rows if row['method'] in timed]
    above = [timed[row['method']] - row['products'] for row in known]
    moved = [row['traffic'] - 1 for row in known]
    squares = sum(m * m for m in moved)
    if not squares:
        return 0.0
    return sum(a * m for a, m in zip(above, moved, strict=True)) / squares


def table(rows: Sequence[Mapping[str, Any]], timed: Mapping[str, float]) -> str:
    """Rows as Markdown, what computes most first."""
    head = 'method, products / bound, traffic / bound, from both, step / bound'
    lines = [head.split(', ')]
    weight = weight_of_traffic(rows, timed)
    for row in sorted(rows, key=lambda row: -row['products']):
        time = timed.get(row['method'])
        both = row['products'] + weight * (row['traffic'] - 1)
        lines.append(
            [
                row['method'],
                f'{row["products"]:.3f}',
                f'{row["traffic"]:.2f}',
                '-' if time is None else f'{both:.2f}',
                '-' if time is None else f'{time:.2f}',
            ]
        )
    return markdown(lines)


def main() -> None:
    """Count, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--backbone', choices=BACKBONES, default='vit_b')
    parser.add_argument('--methods', nargs='+', help='default: those of methods.py')
    parser.add_argument('--batch', type=int, default=4)
    parser.add_argument('--depth', type=int, help='blocks, of Swins in stage 3')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/operations.jsonl'))
    parser.add_argument('--again', action='store_true', help='also what is done')
    parser.add_argument('--write', action='store_true', help='write docs/speed.md')
    args = parser.parse_args()
    make, shape = BACKBONES[args.backbone]
    depth = args.depth or DEPTHS[args.backbone]
    case = {'backbone': args.backbone, 'blocks': depth, 'batch': args.batch}
    case['torch'] = torch.__version__

    def seeded() -> nn.Module:
        torch.manual_seed(0)
        return make(depth)

    wanted = args.methods or methods_for(args.backbone)
    rows = {r['method']: r for r in read_rows(args.out) if r.get('case') == case}
    missing = [name for name in wanted if args.again or name not in rows]
    references, bounds = None, {}
    for number, name in enumerate(missing, 1):
        if references is None:
            references = References(seeded, torch.randn(args.batch, *shape))
        gc.collect()  # the trunk before is in cycles, and holds gigabytes
        try:
            row = measure(name, references, bounds)
        except mmpetl.PETLError as error:
            print(f'{name}: {error}', flush=True)
            continue
        rows[name] = {'case': case, **row}
        keep(args.out, rows[name])
        print(
            f'{number}/{len(missing)} {name}: products {row["products"]:.3f}, '
            f'traffic {row["traffic"]:.2f}',
            flush=True,
        )
    shown = [rows[name] for name in wanted if name in rows]
    timed = measured(args.backbone)
    text = table(shown, timed)
    case = case | {'weight of traffic': f'{weight_of_traffic(shown, timed):.3f}'}
    print(f'\n{case}\n\n{text}')
    if args.write:
        write_table(f'operations {args.backbone}', case, text)


if __name__ == '__main__':
    main()
