"""Group neurons: the definition and the node (``step``), T steps (``sequence``)."""

from .sequence import GroupSequence, group_choice, group_multi_step
from .step import (
    SMALLEST_THETA,
    GroupNeuron,
    GroupNeuronParameters,
    SignedGroupState,
    group_ceiling,
    group_initial_v,
    group_step,
    group_surrogate_step,
    signed_group_step,
    signed_group_surrogate_step,
)
