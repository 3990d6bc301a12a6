"""Sites, deltas, methods and how they join. Torch only, no task and no Runner."""

from mmpetl.core.affine import Affine, BiasPart
from mmpetl.core.attention import score_terms, softmax_attention, split_heads
from mmpetl.core.bricks import (
    PoolPrompts,
    Prompts,
    add_to_own,
    extra_tokens,
    grow,
    join_tokens,
    on_maps,
    projections,
)
from mmpetl.core.calibration import (
    Calibrated,
    batch_size,
    gradient_at,
    inputs_and_labels,
    one_by_one,
    one_epoch,
    only_trains,
    parameters_behind,
    task_loss,
    warn_uncalibrated,
    watching,
)
from mmpetl.core.context import Context, records_gradients
from mmpetl.core.conv_host import (
    ConvBackboneHost,
    ConvBlockHost,
    ConvSiteMap,
    from_maps,
    norm_tokens,
    to_maps,
)
from mmpetl.core.convolve import convolve, places_of
from mmpetl.core.counts import Counts, Owner, count_trainable, describe, owners
from mmpetl.core.delta import Delta
from mmpetl.core.errors import PETLError, suggest
from mmpetl.core.fingerprint import base_changes, fingerprint, tensor_digests
from mmpetl.core.fold import fold
from mmpetl.core.host import (
    FFN,
    BackboneHost,
    BlockHost,
    Host,
    check_hosts,
    patches_of,
    without_extra,
)
from mmpetl.core.inject import check_shapes, inject, wanted_sites
from mmpetl.core.injection import (
    Injection,
    Place,
    Slot,
    find_injected,
    injection_of,
    injections,
)
from mmpetl.core.leaf_map import LeafMap, layer_rows
from mmpetl.core.losses import collect_losses
from mmpetl.core.method import (
    FAMILIES,
    Method,
    build_method,
    check_kinds,
    check_range,
    check_rank,
    is_wider,
    kaiming_uniform_,
    registered_methods,
)
from mmpetl.core.narrow import GradientWatch, check_trained, unreached
from mmpetl.core.pyramid_host import (
    PyramidBackboneHost,
    PyramidSiteMap,
    ReducedKeysHost,
    Stage,
)
from mmpetl.core.rebase import load_base
from mmpetl.core.role import Role
from mmpetl.core.save import delta_facts, load_delta, save_delta
from mmpetl.core.site import AFTER_ONLY, KINDS, LEAF_KINDS, Site, in_stages
from mmpetl.core.sitemap import SiteMap, block_sites, find_site_map
from mmpetl.core.slots import (
    SlotFacts,
    disable,
    disabled,
    eject,
    enable,
    freeze,
    slots,
    unfreeze,
)
from mmpetl.core.stack import Rows, Stack
from mmpetl.core.stacking import conflict
from mmpetl.core.state import delta_state, frozen_keys, load_delta_state
from mmpetl.core.steps import Stepped, plan_steps
from mmpetl.core.window_host import (
    WindowBackboneHost,
    WindowBlockHost,
    WindowSiteMap,
    numbers,
)
from mmpetl.core.windows import (
    Partition,
    from_windows,
    padded_grid,
    relative_index,
    shift_mask,
    to_windows,
)

__all__ = [
    'AFTER_ONLY',
    'FAMILIES',
    'FFN',
    'KINDS',
    'LEAF_KINDS',
    'Affine',
    'BackboneHost',
    'BiasPart',
    'BlockHost',
    'Calibrated',
    'Context',
    'ConvBackboneHost',
    'ConvBlockHost',
    'ConvSiteMap',
    'Counts',
    'Delta',
    'GradientWatch',
    'Host',
    'Injection',
    'LeafMap',
    'Method',
    'Owner',
    'PETLError',
    'Partition',
    'Place',
    'PoolPrompts',
    'Prompts',
    'PyramidBackboneHost',
    'PyramidSiteMap',
    'ReducedKeysHost',
    'Role',
    'Rows',
    'Site',
    'SiteMap',
    'Slot',
    'SlotFacts',
    'Stack',
    'Stage',
    'Stepped',
    'WindowBackboneHost',
    'WindowBlockHost',
    'WindowSiteMap',
    'add_to_own',
    'base_changes',
    'batch_size',
    'block_sites',
    'build_method',
    'check_hosts',
    'check_kinds',
    'check_range',
    'check_rank',
    'check_shapes',
    'check_trained',
    'collect_losses',
    'conflict',
    'convolve',
    'count_trainable',
    'delta_facts',
    'delta_state',
    'describe',
    'disable',
    'disabled',
    'eject',
    'enable',
    'extra_tokens',
    'find_injected',
    'find_site_map',
    'fingerprint',
    'fold',
    'freeze',
    'from_maps',
    'from_windows',
    'frozen_keys',
    'gradient_at',
    'grow',
    'in_stages',
    'inject',
    'injection_of',
    'injections',
    'inputs_and_labels',
    'is_wider',
    'join_tokens',
    'kaiming_uniform_',
    'layer_rows',
    'load_base',
    'load_delta',
    'load_delta_state',
    'norm_tokens',
    'numbers',
    'on_maps',
    'one_by_one',
    'one_epoch',
    'only_trains',
    'owners',
    'padded_grid',
    'parameters_behind',
    'patches_of',
    'places_of',
    'plan_steps',
    'projections',
    'records_gradients',
    'registered_methods',
    'relative_index',
    'save_delta',
    'score_terms',
    'shift_mask',
    'slots',
    'softmax_attention',
    'split_heads',
    'suggest',
    'task_loss',
    'tensor_digests',
    'to_maps',
    'to_windows',
    'unfreeze',
    'unreached',
    'wanted_sites',
    'warn_uncalibrated',
    'watching',
    'without_extra',
]
