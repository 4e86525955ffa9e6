"""signGD neurons: the definition and the node (``step``), T steps (``sequence``)."""

from .sequence import OUTPUTS, SignGDSequence, function_choice, signgd_choice, signgd_multi_step
from .step import (
    MOST_MEMBERS,
    SignGDNeuron,
    SignGDParameters,
    SignGDSpikeState,
    SignGDState,
    from_binary,
    levels,
    signgd_decoded_step,
    signgd_fires,
    signgd_initial_state,
    signgd_spike_step,
    signgd_step,
    signgd_surrogate_step,
    step_size,
    weighted_spike,
)
