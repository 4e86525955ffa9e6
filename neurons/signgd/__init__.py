"""signGD neurons: the definition (``step``), T steps (``sequence``), the node (``node``)."""

from .gradient import dithered_multi_step, trains
from .node import SignGDNeuron
from .sequence import OUTPUTS, SignGDSequence, function_choice, signgd_choice, signgd_multi_step
from .sparse import MOST_MEMBERS as MOST_SPARSE
from .step import (
    DEAD_ZONE,
    MOST_MEMBERS,
    SignGDParameters,
    SignGDSpikeState,
    SignGDState,
    check_dead_zone,
    check_dead_zone_fits,
    check_dead_zone_type,
    digits,
    from_binary,
    levels,
    signgd_decoded_step,
    signgd_fires,
    signgd_initial_state,
    signgd_spike_step,
    signgd_start_state,
    signgd_step,
    signgd_surrogate_step,
    step_size,
    weighted_spike,
)
