"""Sites: the named places of a backbone, the vocabulary that methods speak.

A transformer block is two sub-layers on a residual stream. Written with its sites,
``x`` being the stream::

    x = tokens.before(x)                    extra tokens join
    h = norm1(x)
    h = attn.before(h)
    w = attn.qkv.before(h)                  windows, in windowed attention
    q, k, v = rows of the fused projection  attn.q, attn.k, attn.v
    q, k, v = attn.qkv.after(w, qkv)
    q, k, v = attn.core.before((q, k, v))   keys and values may grow
    o = attn.core.after((q, k, v), softmax(q k^T) v)
    b = attn.proj(o)
    b = attn.after(h, b)
    r = attn.branch(b)                      scale and stochastic depth
    y = attn.skip(x) + r
    x = attn.sum.after(x, y)
    ... the same for ffn, with ffn.fc1 and ffn.fc2 for the projections ...
    x = tokens.after(x)                     extra tokens leave

``block`` wraps all of it; ``embed`` and ``out`` are the two ends of the backbone, and
``feature`` is the vector that a plain transformer hands to a head outside of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

KINDS: dict[str, str] = {
    'embed.proj': 'patch projection, patches in (after only), before norm and '
    'positions',
    'embed.norm': 'norm of the patch embedding, where the backbone has one',
    'embed': 'token sequence that enters the first block, positions included',
    'tokens': 'stream at the entry (before) and the exit (after) of a block, where '
    'extra tokens join and leave',
    'block': 'a whole block, stream in and stream out',
    'mix': 'what mixes tokens without attention, such as a depth-wise convolution',
    'norm1': 'norm of the attention sub-layer: in front of it, or behind it in '
    'post-norm trunks',
    'norm2': 'norm of the feed-forward sub-layer, likewise',
    'attn': 'attention sub-layer, before scale, stochastic depth and shortcut',
    'attn.qkv': 'query, key and value projection of one input, fused or not',
    'attn.q': 'query rows of that projection (after only)',
    'attn.k': 'key rows of that projection (after only)',
    'attn.v': 'value rows of that projection (after only)',
    'attn.core': 'softmax(q k^T) v on (q, k, v), each (B, heads, N, head_dims), behind '
    'norms per head and rotary positions',
    'attn.proj': 'output projection of attention',
    'attn.branch': 'scale and stochastic depth behind attention; what leaves joins the '
    'shortcut',
    'attn.skip': 'shortcut around attention',
    'attn.sum': 'stream before and after the attention residual',
    'ffn': 'feed-forward sub-layer, before scale, stochastic depth and shortcut',
    'ffn.fc1': 'first linear of the feed-forward network, before the activation; gate '
    'and value together in a gated one',
    'ffn.fc2': 'second linear of the feed-forward network',
    'ffn.branch': 'scale and stochastic depth behind the feed-forward network; what '
    'leaves joins the shortcut',
    'ffn.skip': 'shortcut around the feed-forward network',
    'ffn.sum': 'stream before and after the feed-forward residual',
    'downsample.norm': 'norm of a patch merging',
    'downsample.reduction': 'projection of a patch merging, behind its norm; in '
    'pyramids in front of it',
    'downsample': 'patch merging between two stages',
    'out.norm': 'norm of an output, of its tokens or of the vector they are pooled to',
    'out': 'an output: x is the normed sequence with every token, y what leaves',
    'feature': 'the vector (B, 1, C) of an output that a head outside of the backbone '
    'reads; its width may change',
}
"""Every kind of site and its meaning, in the order of a forward pass."""

PROJECTIONS = (
    'attn.qkv',
    'attn.q',
    'attn.k',
    'attn.v',
    'attn.proj',
    'ffn.fc1',
    'ffn.fc2',
)
"""Kinds of the projections of a block; ``attn.q`` and the like are rows of
``attn.qkv``."""

AFTER_ONLY = frozenset({'attn.q', 'attn.k', 'attn.v'})
"""Kinds that share one input, so that only ``after`` can differ among them."""


LEAF_KINDS: dict[str, str] = {
    'layer.linear': 'a Linear, or a 1x1 convolution with channels last',
    'layer.conv': 'a convolution over several places; x is its map (B, C, *extents)',
    'layer.dwconv': 'a depth-wise or grouped convolution; x is its map',
    'layer.norm': 'a norm with one scale per channel',
}
"""Kinds of single layers of any model, which no file describes (after only).

What leaves has its channels last, (B, *extents, C), whatever the layer's own layout.
``nn.MultiheadAttention`` is a layer too, with the kinds ``attn.qkv``, ``attn.q``,
``attn.k``, ``attn.v`` and ``attn.proj``.
"""


@dataclass(frozen=True)
class Site:
    """One place of one backbone.

    Attributes:
        kind: A key of :data:`KINDS` or :data:`LEAF_KINDS`.
        host: Path of the module that runs the site, ``''`` for the backbone itself.
        in_dims: Width of the features that enter.
        out_dims: Width of the features that leave.
        block: Running index over all blocks, None outside of blocks.
        stage: Index of the stage, 0 in a plain transformer; for ``out`` the stage
            (or block, in a plain transformer) whose features leave.
        num_blocks: Blocks of the backbone.
        num_heads: Attention heads of the block, None outside of blocks.
        mlp_dims: Hidden width of the block's feed-forward network, that of the gated
            product in a gated one.
        window: Extents of the attention window, None where attention is global; for
            ``out`` that of the blocks in front of it.
        shift: Shift of the window per axis, zeros where it is not shifted.
        has_grid: Whether the features still form the grid of ``ctx.grid`` after
            ``ctx.num_prefix`` leading tokens.
        embed_dims: Width of the first stage.
        patch_dims: Values per input patch (3 * 16 * 16 for ViT-B/16).
        index: Which of several sites of one kind and host (outputs, features,
            mergings). A norm behind the pooling of a ViT stands one behind its last
            block, since the tokens may have a norm too.
        pooled: For ``out``: only one output, and its tokens are averaged.
        channels_first: For ``downsample``: merged channels lie channel-major
            (``nn.Unfold``) rather than neighbour-major (concatenation). For a place by
            name: its module's channels are the second axis.
        gated: For ``ffn.fc1``: what leaves is a gate and a value next to each other.
        kernel: For ``layer.conv``: extents of the kernel. ``in_dims`` then counts the
            values that one place sees, channel-major, as ``weight.flatten(1)`` does.
            For ``mix`` where that is a convolution.
        stride: For ``layer.conv``, and for the mergings of pyramids.
        padding: For ``layer.conv``: zeros on both sides; a padding of another kind is
            already in the map.
        dilation: For ``layer.conv``.
        merged: For mergings: extents of the neighbourhood that becomes one cell.
        in_stream: For ``out`` and its ``out.norm``: the next stage reads the stream
            behind that norm too, so that what is done at ``out.norm`` reaches both.
        reshapes: What leaves has another width, or another grid, than what enters, as
            in a block that pools its stream.
        timed: Whether the first axis of the grid is time. Where frames are images of a
            batch, it is not.
        frames: Frames of a clip where they are images of the batch, one behind the
            other; 1 where the batch holds images or whole clips.
    """

    kind: str
    host: str
    in_dims: int
    out_dims: int
    block: int | None = None
    stage: int | None = None
    num_blocks: int = 0
    num_heads: int | None = None
    mlp_dims: int | None = None
    window: tuple[int, ...] | None = None
    shift: tuple[int, ...] | None = None
    has_grid: bool = False
    embed_dims: int = 0
    patch_dims: int = 0
    index: int | None = None
    pooled: bool = False
    channels_first: bool = False
    gated: bool = False
    kernel: tuple[int, ...] | None = None
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    merged: tuple[int, ...] = ()
    in_stream: bool = False
    reshapes: bool = False
    timed: bool = False
    frames: int = 1

    @property
    def key(self) -> str:
        """Name of the site in state dicts: ``attn_v``, ``out_3``."""
        key = self.kind.replace('.', '_')
        return key if self.index is None else f'{key}_{self.index}'

    @property
    def path(self) -> str:
        """Where the deltas of this site live, ``layers.3.petl.attn_v``."""
        return f'{self.host}.petl.{self.key}'.lstrip('.')

    def __str__(self) -> str:
        return f'{self.host}:{self.kind}'.lstrip(':')


def in_stages(sites: Iterable[Site]) -> bool:
    """Whether outputs are counted by stages, and not by blocks as in plain trunks."""
    return any(
        site.window is not None if site.kind == 'out' else site.block and site.stage
        for site in sites
    )
