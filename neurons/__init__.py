"""The dynamics: one pure-torch step for each neuron, functions, schedules, the loop over time."""

from .choice import BACKENDS, Choice, backends, running_sum
from .coding import (
    CodingState,
    PoissonCodingParameters,
    RealCodingParameters,
    poisson_spikes,
    poisson_step,
    real_step,
)
from .group import (
    GroupNeuronParameters,
    GroupSequence,
    SignedGroupState,
    group_choice,
    group_initial_v,
    group_multi_step,
    group_step,
    group_surrogate_step,
    signed_group_step,
    signed_group_surrogate_step,
)
from .growth import (
    GrowthSequence,
    GrowthState,
    growth_initial_state,
    growth_multi_step,
    growth_step,
)
from .nonlinearities import NONLINEARITIES, Nonlinearity, nonlinearity
from .qcfs import QCFS
from .scan import scan
from .schedules import (
    SCHEDULES,
    ConstantSchedule,
    ExponentialSchedule,
    InverseSchedule,
    ListSchedule,
    Schedule,
    schedule_from_dict,
)
from .signgd import (
    DEAD_ZONE,
    SignGDParameters,
    SignGDSequence,
    SignGDSpikeState,
    SignGDState,
    digits,
    from_binary,
    levels,
    signgd_choice,
    signgd_decoded_step,
    signgd_fires,
    signgd_initial_state,
    signgd_multi_step,
    signgd_spike_step,
    signgd_step,
    signgd_surrogate_step,
    weighted_spike,
)
from .subgradient import (
    SubgradientParameters,
    SubgradientState,
    subgradient_step,
)
from .surrogate import Surrogate
