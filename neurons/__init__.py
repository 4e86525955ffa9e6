"""The dynamics: one pure-torch step for each neuron, functions, schedules, the loop over time."""

from .coding import (
    CodingState,
    PoissonCodingParameters,
    RealCodingParameters,
    poisson_spikes,
    poisson_step,
    real_step,
)
from .group import GroupNeuronParameters, group_step
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
    weighted_spike,
)
from .subgradient import (
    SubgradientParameters,
    SubgradientState,
    subgradient_step,
)

__all__ = [
    "NONLINEARITIES",
    "QCFS",
    "SCHEDULES",
    "CodingState",
    "ConstantSchedule",
    "ExponentialSchedule",
    "GroupNeuronParameters",
    "InverseSchedule",
    "ListSchedule",
    "Nonlinearity",
    "PoissonCodingParameters",
    "RealCodingParameters",
    "Schedule",
    "SignGDParameters",
    "SignGDSpikeState",
    "SignGDState",
    "SubgradientParameters",
    "SubgradientState",
    "from_binary",
    "group_step",
    "nonlinearity",
    "poisson_spikes",
    "poisson_step",
    "real_step",
    "scan",
    "schedule_from_dict",
    "signgd_decoded_step",
    "signgd_fires",
    "signgd_initial_state",
    "signgd_spike_step",
    "signgd_step",
    "subgradient_step",
    "weighted_spike",
]
