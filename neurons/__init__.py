"""The dynamics: one pure-torch step for each neuron, functions, schedules, the loop over time."""

from .coding import (
    CodingState,
    PoissonCodingParameters,
    RealCodingParameters,
    poisson_spikes,
    poisson_step,
    real_step,
)
from .group import GroupNeuronParameters, group_step, group_surrogate_step
from .multi_step import (
    BACKENDS,
    Choice,
    GroupSequence,
    SignGDSequence,
    backends,
    group_choice,
    group_multi_step,
    running_sum,
    signgd_choice,
    signgd_multi_step,
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
    SignGDParameters,
    SignGDSpikeState,
    SignGDState,
    from_binary,
    signgd_decoded_step,
    signgd_fires,
    signgd_initial_state,
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

__all__ = [
    "BACKENDS",
    "NONLINEARITIES",
    "QCFS",
    "SCHEDULES",
    "Choice",
    "CodingState",
    "ConstantSchedule",
    "ExponentialSchedule",
    "GroupNeuronParameters",
    "GroupSequence",
    "InverseSchedule",
    "ListSchedule",
    "Nonlinearity",
    "PoissonCodingParameters",
    "RealCodingParameters",
    "Schedule",
    "SignGDParameters",
    "SignGDSequence",
    "SignGDSpikeState",
    "SignGDState",
    "SubgradientParameters",
    "SubgradientState",
    "Surrogate",
    "backends",
    "from_binary",
    "group_choice",
    "group_multi_step",
    "group_step",
    "group_surrogate_step",
    "nonlinearity",
    "poisson_spikes",
    "poisson_step",
    "real_step",
    "running_sum",
    "scan",
    "schedule_from_dict",
    "signgd_choice",
    "signgd_decoded_step",
    "signgd_fires",
    "signgd_initial_state",
    "signgd_multi_step",
    "signgd_spike_step",
    "signgd_step",
    "signgd_surrogate_step",
    "subgradient_step",
    "weighted_spike",
]
