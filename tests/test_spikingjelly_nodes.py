"""The node types on SpikingJelly: one state in both step modes, three protocols, one network."""

import copy
import pickle
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import ann2snn, base, functional, layer, neuron, surrogate
from torch import Tensor, nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.errors import InputError
from spikingjelly_signgd.neurons import (
    NONLINEARITIES,
    ConstantSchedule,
    ExponentialSchedule,
    GroupNeuronParameters,
    InverseSchedule,
    ListSchedule,
    Nonlinearity,
    SignGDParameters,
    SignGDSpikeState,
    group_initial_v,
    group_step,
    scan,
    signgd_initial_state,
    signgd_spike_step,
)
from spikingjelly_signgd.neurons.base import tensors_in
from spikingjelly_signgd.plugins.spikingjelly import (
    Encode,
    GroupNode,
    Readout,
    RunningMean,
    SignGDNode,
    SubgradientNode,
    group_neuron_factory,
)

pytestmark = pytest.mark.spikingjelly

PUBLISHED = ExponentialSchedule(0.15, 0.95)
FAST = ExponentialSchedule(1.0, 0.8)
ZONE = torch.tensor(2 / 3, dtype=torch.float64)  # as a node saves its dead zone
SPIKES = ("signed", "binary", "ternary", "decoded")


def assert_same(name: str, actual: Any, expected: Any) -> None:
    """Equal to the bit, or an error that names the quantity."""
    if isinstance(expected, Tensor):
        assert isinstance(actual, Tensor), name
        torch.testing.assert_close(
            actual, expected, rtol=0, atol=0, msg=lambda text: f"{name}: {text}"
        )
    elif isinstance(expected, tuple):
        assert len(actual) == len(expected), name
        for k, (a, b) in enumerate(zip(actual, expected, strict=True)):
            assert_same(f"{name}[{k}]", a, b)
    else:
        assert actual == expected, name


def assert_near(name: str, actual: Tensor, expected: Tensor, atol: float) -> None:
    torch.testing.assert_close(
        actual, expected, rtol=0, atol=atol, msg=lambda text: f"{name}: {text}"
    )


def memories(module: base.MemoryModule) -> dict[str, Any]:
    return dict(module.named_memories())


def assert_same_memories(actual: base.MemoryModule, expected: base.MemoryModule) -> None:
    for name, value in memories(expected).items():
        assert_same(name, memories(actual)[name], value)


class Probe(nn.Module):
    """A function with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x) * self.gain


MODULES: dict[str, Callable[[], base.MemoryModule]] = {
    "signed": lambda: SignGDNode(
        "gelu", PUBLISHED, initial_input=torch.randn(5), dead_zone=0, spikes="signed"
    ),
    "binary": lambda: SignGDNode(
        "relu", PUBLISHED, spikes="binary", offset=torch.randn(5), initial_input=0.0
    ),
    "ternary": lambda: SignGDNode(
        "relu", PUBLISHED, spikes="ternary", dead_zone=0.5, initial_input=0.0
    ),
    "decoded": lambda: SignGDNode("silu", PUBLISHED, spikes="decoded", dead_zone=0),
    "silent": lambda: SignGDNode("gelu", FAST, spikes="decoded", dead_zone=2 / 3),
    "silent by channel": lambda: SignGDNode(
        "tanh",
        PUBLISHED,
        members=3,
        dead_zone=torch.tensor([0.0, 0.3, 0.5, 2 / 3, 0.9]),
        spikes="signed",
        initial_input=0.0,
    ),
    "scaled": lambda: SignGDNode(
        "leaky_relu",
        InverseSchedule(),
        scale=torch.rand(5) + 0.5,
        resting=torch.randn(5),
        arguments={"negative_slope": 0.1},
        dead_zone=0,
        spikes="signed",
        initial_input=0.0,
    ),
    "momentum": lambda: SignGDNode(
        "relu", PUBLISHED, momentum=0.5, spikes="signed", initial_input=0.0
    ),
    "module": lambda: SignGDNode(
        Probe().requires_grad_(False), PUBLISHED, dead_zone=0, spikes="signed", initial_input=0.0
    ),
    "group": lambda: GroupNode(4, 0.7),
    "subgradient": lambda: SubgradientNode(torch.rand(5) + 0.5),
    "encode": lambda: Encode(PUBLISHED),
    "encode momentum": lambda: Encode(PUBLISHED, momentum=0.5, spikes="decoded"),
    "encode binary": lambda: Encode(PUBLISHED, spikes="binary"),
    "encode ternary": lambda: Encode(PUBLISHED, spikes="ternary"),
    "readout": lambda: Readout(torch.randn(5)),
    "readout binary": lambda: Readout(
        0.5, spikes="binary", schedule=PUBLISHED, offset=torch.randn(5)
    ),
    "readout ternary": lambda: Readout(0.5, spikes="ternary", schedule=PUBLISHED),
    "readout decoded": lambda: Readout(spikes="decoded"),
    "mean": lambda: RunningMean(),
}
NODES = (
    *("signed", "binary", "ternary", "decoded", "silent", "silent by channel", "scaled"),
    *("momentum", "module", "group", "subgradient"),
)
# what spike_seq is of, bool unless said
RECORDED = {"ternary": torch.int8, "silent": torch.int8, "silent by channel": torch.int16}


def steps(module: nn.Module, x_seq: Tensor) -> Tensor:
    functional.set_step_mode(module, "s")
    return torch.stack([module(x) for x in x_seq])


def sequence(module: nn.Module, *x_seqs: Tensor) -> Tensor:
    functional.set_step_mode(module, "m")
    y_seq: Tensor = module(*x_seqs)
    return y_seq


# ---------------------------------------------------------------------------------- step modes


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("chunks", [(9,), (3, 1, 5), (1,) * 9])
def test_steps_and_sequences_of_any_chunk_are_the_same(name: str, chunks: tuple[int, ...]) -> None:
    single = MODULES[name]()
    multi = copy.deepcopy(single)
    x_seq = torch.randn(9, 3, 5)
    expected = steps(single, x_seq)
    assert expected.unique().numel() > 1  # something happened
    actual = torch.cat([sequence(multi, x) for x in x_seq.split(chunks)])
    assert_same("y_seq", actual, expected)
    assert_same_memories(multi, single)


@pytest.mark.parametrize("name", MODULES)
def test_reset_net_starts_anew(name: str) -> None:
    module = MODULES[name]()
    fresh = memories(module)
    x_seq = torch.randn(4, 3, 5)
    first = sequence(module, x_seq)
    assert any(value is not fresh[key] for key, value in memories(module).items())
    functional.reset_net(module)
    assert memories(module) == fresh
    assert_same("y_seq", sequence(module, x_seq), first)
    functional.reset_net(module)
    assert sequence(module, torch.randn(2, 7, 5)).shape == (2, 7, 5)  # another batch


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_goes_on_from_the_same_state(
    name: str, copied: Callable[[base.MemoryModule], base.MemoryModule]
) -> None:
    module = MODULES[name]()
    sequence(module, torch.randn(3, 2, 5))
    other = copied(module)
    x_seq = torch.randn(3, 2, 5)
    assert_same("y_seq", sequence(other, x_seq), sequence(module, x_seq))
    steps(module, x_seq)
    sequence(other, torch.zeros(1, 2, 5))
    assert memories(other).get("t") != memories(module).get("t") or name == "group"


@pytest.mark.parametrize("name", MODULES)
def test_a_batch_is_as_many_inputs_by_themselves(name: str) -> None:
    module = MODULES[name]()
    x_seq = torch.randn(6, 3, 5)
    expected = sequence(module, x_seq)
    functional.reset_net(module)
    assert_same("batch of one", sequence(module, x_seq[:, 1:2]), expected[:, 1:2])
    functional.reset_net(module)
    assert sequence(module, x_seq[:, :0]).shape == (6, 0, 5)
    functional.reset_net(module)
    assert_same("no batch", sequence(module, x_seq[:, 1]), expected[:, 1])


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_keep_float32_states(name: str, dtype: torch.dtype) -> None:
    module = MODULES[name]()
    wide = copy.deepcopy(module)
    x_seq = torch.randn(6, 3, 5).to(dtype)
    y_seq = sequence(module, x_seq)
    assert y_seq.dtype == dtype
    assert_same("y_seq", y_seq, sequence(wide, x_seq.float()).to(dtype))
    assert_same_memories(module, wide)  # float32 among them


@pytest.mark.parametrize("name", MODULES)
def test_double(name: str) -> None:
    module = MODULES[name]()
    x_seq = torch.randn(3, 2, 5)
    sequence(module, x_seq)
    module.double()
    tensors = [value for value in memories(module).values() if isinstance(value, Tensor)]
    tensors += memories(module).get("x") or ()
    assert tensors or name == "readout decoded"
    tensors += [t for t in module.state_dict().values() if t.is_floating_point()]
    assert all(t.dtype == torch.float64 for t in tensors)
    assert sequence(module, x_seq.double()).dtype == torch.float64
    v = next(iter(memories(module).values()))
    assert v is None or v.dtype == torch.float64


@pytest.mark.parametrize("name", MODULES)
def test_the_state_takes_the_type_of_the_input(name: str) -> None:
    """float32, float64 for float64, whatever the module was cast to between two steps."""
    module = MODULES[name]()
    x = torch.randn(2, 5)
    module(x)
    for cast, given, expected in (
        (torch.float16, torch.float32, torch.float32),
        (torch.float64, torch.bfloat16, torch.float32),
        (torch.float16, torch.float64, torch.float64),
    ):
        if name == "module" and cast != expected:
            continue  # its parameter is cast too, and torch computes in one type
        module.to(cast)
        assert module(x.to(given)).dtype == given
        for key, value in memories(module).items():
            if isinstance(value, Tensor):
                assert value.dtype == expected, key


@pytest.mark.parametrize("name", MODULES)
def test_the_output_is_no_view_of_the_state(name: str) -> None:
    module = MODULES[name]()
    twin = copy.deepcopy(module)
    x_seq = torch.randn(3, 2, 5)
    for x in x_seq:
        y = module(x.clone())
        assert_same("y", y, twin(x))
        y.fill_(9.0)  # as layers with inplace=True do


@pytest.mark.parametrize("name", MODULES)
def test_repr_shows_the_parameters(name: str) -> None:
    module = MODULES[name]()
    module.step_mode = "m"
    assert re.search(r"step_mode='?m", repr(module))


def test_repr_shows_numbers_and_the_shapes_of_tensors() -> None:
    node = SignGDNode(
        "relu", PUBLISHED, scale=2.5, resting=torch.zeros(3), spikes="signed", initial_input=0.0
    )
    for part in ("relu", "decay=0.95", "scale=2.5", "resting=Tensor[3]", "spikes='signed'"):
        assert part in repr(node)
    assert "members=4, v_threshold=0.7" in repr(GroupNode(4, 0.7))


# ------------------------------------------------------------------- at home in SpikingJelly


@pytest.mark.parametrize("name", NODES)
def test_is_a_base_node(name: str) -> None:
    node = MODULES[name]()
    assert isinstance(node, neuron.BaseNode)
    if isinstance(node, (SignGDNode, GroupNode)):
        assert node.backend == "auto" and "cupy" in node.supported_backends
    elif hasattr(base.MemoryModule, "supported_backends"):
        assert node.supported_backends == ("torch",)
        assert node.backend == "torch"
    with pytest.raises(ValueError, match="step_mode"):
        node.step_mode = "multi"


@pytest.mark.parametrize("name", NODES)
def test_store_v_seq(name: str) -> None:
    node = MODULES[name]()
    twin = copy.deepcopy(node)
    x_seq = torch.randn(4, 3, 5)
    expected_v = []
    for x in x_seq:
        twin(x)
        expected_v.append(twin.v)
    node.store_v_seq = True
    for run in (sequence, steps):
        run(node, x_seq)
        assert_same("v_seq", node.v_seq, torch.stack(expected_v))
        if name == "group":
            assert node.spike_seq is None
        else:
            assert node.spike_seq.dtype == RECORDED.get(name, torch.bool)
            assert node.spike_seq.shape == (4, 3, 5)
        functional.reset_net(node)
        assert node.v_seq is None and node.spike_seq is None
    sequence(node, x_seq)
    sequence(node, x_seq[:2])
    assert node.v_seq.shape == (2, 3, 5)  # of the last call


@pytest.mark.parametrize("spikes", SPIKES)
def test_spike_seq_says_where_v_fell(spikes: str) -> None:
    options: dict[str, Any] = {"offset": 0.3} if spikes == "binary" else {"dead_zone": 0}
    node = SignGDNode(
        "gelu", PUBLISHED, spikes=spikes, initial_input=0.0, store_v_seq=True, **options
    )
    y_seq = sequence(node, torch.randn(8, 3, 5))
    before = torch.cat([torch.zeros(1, 3, 5), node.v_seq[:-1]])
    assert_same("spike_seq", node.spike_seq, node.v_seq < before)
    if spikes == "binary":
        assert_same("y_seq", y_seq, node.spike_seq.float())
    if spikes == "ternary":
        assert_same("y_seq", y_seq, 2 * node.spike_seq.float() - 1)


def test_monitors() -> None:
    from spikingjelly.activation_based import monitor

    net: Any = nn.Sequential(
        layer.Linear(5, 4),
        SignGDNode("relu", PUBLISHED, store_v_seq=True, spikes="signed", initial_input=0.0),
    )
    outputs = monitor.OutputMonitor(net, SignGDNode)
    v_seqs = monitor.AttributeMonitor("v_seq", False, net, SignGDNode)
    y_seq = sequence(net, torch.randn(6, 3, 5))
    assert outputs.monitored_layers == ["1"]
    assert_same("output", outputs["1"][0], y_seq)
    assert_same("v_seq", v_seqs["1"][0], net[1].v_seq)
    assert v_seqs.records[0].shape == (6, 3, 4)


def test_detach_net_cuts_the_graph_over_time() -> None:
    made: list[nn.Module] = [
        SignGDNode("relu", PUBLISHED, spikes="signed", initial_input=0.0),
        SignGDNode("relu", PUBLISHED, learnable="resting"),
        GroupNode(2),
    ]
    for node in made:
        net: Any = nn.Sequential(layer.Linear(5, 4), node, RunningMean())
        for _ in range(2):
            net(torch.randn(3, 5))
        states = [*each_state(net[1]), net[2].total]
        assert any(state.requires_grad for state in states) and net[2].total.requires_grad
        functional.detach_net(net)
        assert not any(state.requires_grad for state in [*each_state(net[1]), net[2].total])
        copy.deepcopy(net)  # refused by torch for states that hang on a graph


def each_state(node: base.MemoryModule) -> Iterator[Tensor]:
    return tensors_in(tuple(node.memories()))


@pytest.mark.parametrize("name", MODULES)
def test_detach_before_and_after_the_first_step(name: str) -> None:
    module = MODULES[name]()
    functional.detach_net(module)
    module(torch.randn(2, 5))
    before = memories(module)
    functional.detach_net(module)
    for key, value in memories(module).items():
        assert_same(key, value, before[key])


@pytest.mark.parametrize("name", MODULES)
def test_functional_forward_is_pure(name: str) -> None:
    module = MODULES[name]()
    fresh = memories(module)
    x_seq = torch.randn(4, 3, 5)
    states: tuple[Any, ...] = module.materialize_states((x_seq[0],), tuple(fresh.values()), "s")
    outputs = []
    for x in x_seq:
        kept = copy.deepcopy(states)
        (y,), after = module.single_step_functional_forward((x,), states)
        assert_same("the states handed in", states, kept)
        outputs.append(y)
        states = after
    assert memories(module) == fresh
    assert_same("y_seq", torch.stack(outputs), sequence(module, x_seq))
    assert_same("states", tuple(states), tuple(memories(module).values()))


@pytest.mark.skipif(not hasattr(base, "to_functional_forward"), reason="new in SpikingJelly 2")
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_to_functional_forward(step_mode: str) -> None:
    net = nn.Sequential(
        Encode(PUBLISHED),
        layer.Linear(5, 4),
        SignGDNode("gelu", PUBLISHED, spikes="signed", initial_input=0.0),
        GroupNode(2),
    )
    functional.set_step_mode(net, step_mode)
    x = torch.randn(3, 2, 5) if step_mode == "m" else torch.randn(2, 5)
    for module in (net, net[0]):
        functional.reset_net(net)
        fresh = tuple(base.extract_memories(module))
        (y,), states = base.to_functional_forward(module)((x,), fresh)
        assert tuple(base.extract_memories(module)) == fresh
        assert_same("y", y, module(x))
        assert_same("states", tuple(states), tuple(base.extract_memories(module)))


@pytest.mark.parametrize("name", MODULES)
def test_state_dict_holds_the_tensors(name: str) -> None:
    module, other = MODULES[name](), MODULES[name]()
    x_seq = torch.randn(5, 3, 5)
    sequence(other, x_seq)  # what is loaded counts although other tensors were used before
    functional.reset_net(other)
    assert not set(module.state_dict()) & set(memories(module))
    other.load_state_dict(module.state_dict())
    assert_same("y_seq", sequence(other, x_seq), sequence(module, x_seq))


@pytest.mark.parametrize("half", [False, True])
def test_new_tensors_count_from_the_next_step(half: bool) -> None:
    node = SignGDNode(
        "relu",
        ConstantSchedule(1.0),
        scale=torch.ones(5),
        resting=4.0,
        spikes="signed",
        initial_input=0.0,
    )
    node = node.half() if half else node
    x = torch.zeros(2, 5)
    assert_same("y", node(x), torch.full((2, 5), -1.0))
    node.load_state_dict({"scale": torch.full((5,), 0.5), "dead_zone": ZONE})
    assert_same("y after loading", node(x), torch.full((2, 5), -0.5))
    node.scale = torch.full((5,), 0.25)
    assert_same("y after assigning", node(x), torch.full((2, 5), -0.25))
    node.double()
    assert torch.as_tensor(node.dynamics.scale).dtype == torch.float64


def test_which_tensors_are_buffers() -> None:
    node = SignGDNode(
        "prelu",
        PUBLISHED,
        scale=torch.ones(5),
        resting=torch.zeros(5),
        initial_input=torch.zeros(5),
        spikes="binary",
        offset=torch.zeros(5),
        arguments={"weight": torch.ones(5)},
    )
    names = {"scale", "resting", "initial_input", "offset", "argument_weight"}
    assert held(node) == names
    assert set(Readout(torch.zeros(3)).state_dict()) == {"initial", "_extra_state"}
    assert held(SignGDNode(Probe(), FAST, dead_zone=0)) == {"function_module.gain"}
    two = SignGDNode("mul", FAST, initial_input=(torch.ones(2), 0.5), dead_zone=0, spikes="signed")
    assert held(two) == {"initial_input_0"}
    assert not held(SignGDNode("relu", PUBLISHED, scale=2.0, dead_zone=0))
    assert held(SignGDNode("relu", PUBLISHED, scale=2.0)) == {"dead_zone"}


def held(module: nn.Module) -> set[str]:
    """The tensors of a state dict, which also has the definition in a text."""
    return set(module.state_dict()) - {"_extra_state"}


def test_buffers_are_copies_of_what_was_handed_in() -> None:
    bias = torch.ones(5)
    node = SignGDNode("relu", PUBLISHED, initial_input=bias, spikes="signed")
    node.load_state_dict({"initial_input": torch.zeros(5), "dead_zone": ZONE})
    assert_same("the model's bias", bias, torch.ones(5))
    assert not node.initial_input.requires_grad


def test_a_module_in_half_still_steps_in_float32() -> None:
    tiny = ConstantSchedule(2.0**-30)  # nothing in float16
    node = SignGDNode("relu", tiny, scale=torch.ones(5), spikes="decoded").half()
    v_seq = sequence(node, torch.ones(2, 3, 5, dtype=torch.float16))
    assert node.v.dtype == torch.float32 and v_seq.dtype == torch.float16
    assert_same("v", node.v, torch.full((3, 5), 2.0**-29))


# -------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_another_batch_without_reset_is_an_error(name: str, step_mode: str) -> None:
    module = MODULES[name]()
    run = steps if step_mode == "s" else sequence
    run(module, torch.randn(2, 4, 5))
    for shape in [(2, 1, 5), (2, 3, 4, 5), (2, 5)]:  # all of which would broadcast
        with pytest.raises(InputError, match=r"Reset the neuron \(functional.reset_net\)"):
            run(module, torch.randn(shape))
    run(module, torch.randn(2, 4, 5))


@pytest.mark.parametrize("name", MODULES)
def test_bad_inputs(name: str) -> None:
    module = MODULES[name]()
    with pytest.raises(InputError, match=r"int64.*x.float\(\)"):
        module(torch.ones(2, 5, dtype=torch.int64))
    with pytest.raises(InputError, match="bool"):
        module(torch.ones(2, 5, dtype=torch.bool))
    with pytest.raises(InputError, match="list"):
        module([1.0])
    with pytest.raises(InputError, match="one input for each argument"):
        module()
    if name != "module":
        with pytest.raises(InputError, match="so 1, but 2 were passed"):
            module(torch.ones(2, 5), torch.ones(2, 5))
    with pytest.raises(InputError, match=r"\[T, N, \*\] with one T >= 1"):
        sequence(module, torch.ones(0, 2, 5))
    sequence(module, torch.ones(2, 2, 5))  # nothing of these is left behind


def test_bad_inputs_of_several_arguments() -> None:
    node = SignGDNode("mul", PUBLISHED, spikes="signed", initial_input=0.0)
    with pytest.raises(InputError, match="so 2, but 1 were passed"):
        node(torch.ones(2, 5))
    with pytest.raises(InputError, match="one T >= 1"):
        sequence(node, torch.ones(2, 5), torch.ones(3, 5))
    with pytest.raises(
        InputError, match="2 inputs were passed, but there are 1 values of initial_inp"
    ):
        SignGDNode("mul", PUBLISHED, initial_input=torch.ones(5), spikes="signed")(
            torch.ones(2, 5), torch.ones(5)
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: SignGDNode("rely", PUBLISHED, spikes="signed", initial_input=0.0),
            "no nonlinearity is called 'rely'",
        ),
        (
            lambda: SignGDNode("relu", PUBLISHED, spikes="graded", initial_input=0.0),
            "signed, binary, ternary, decoded",
        ),
        (lambda: SignGDNode("relu", PUBLISHED, spikes="binary", initial_input=0.0), "offset"),
        (
            lambda: SignGDNode("relu", PUBLISHED, offset=1.0, spikes="signed", initial_input=0.0),
            "only spikes='binary'",
        ),
        (
            lambda: SignGDNode("relu", PUBLISHED, scale=0.0, spikes="signed", initial_input=0.0),
            "positive",
        ),
        (
            lambda: SignGDNode(
                "relu", PUBLISHED, spikes="binary", offset=0.0, momentum=0.5, initial_input=0.0
            ),
            "momentum",
        ),
        (lambda: Encode(PUBLISHED, spikes="graded"), "signed, binary, ternary, decoded"),
        (lambda: Encode(PUBLISHED, spikes="binary", momentum=0.5), "momentum"),
        (lambda: Encode(PUBLISHED, spikes="ternary", momentum=0.5), "ternary spike.*momentum"),
        (lambda: Encode(PUBLISHED, spikes="ternary", members=2), "'signed', or members=1"),
        (lambda: Readout(spikes="ternary"), "ternary spikes are decoded.*schedule"),
        (lambda: Readout(spikes="ternary", schedule=FAST, offset=0.0), "only spikes='binary'"),
        (
            lambda: SignGDNode("relu", FAST, dead_zone=1.0, spikes="signed", initial_input=0.0),
            r"in \[0, 1\), but it is 1.0",
        ),
        (
            lambda: SignGDNode("relu", FAST, dead_zone=-0.1, spikes="signed", initial_input=0.0),
            r"in \[0, 1\)",
        ),
        (
            lambda: SignGDNode(
                "relu", FAST, dead_zone=float("nan"), spikes="signed", initial_input=0.0
            ),
            r"in \[0, 1\)",
        ),
        (
            lambda: SignGDNode(
                "relu", FAST, dead_zone=torch.tensor([0.5, 1.5]), spikes="signed", initial_input=0.0
            ),
            "0.5, 1.5",
        ),
        (
            lambda: SignGDNode(
                "relu", FAST, dead_zone=0.5, momentum=0.5, spikes="signed", initial_input=0.0
            ),
            "momentum or dead_zone",
        ),
        (
            lambda: SignGDNode(
                "relu", FAST, dead_zone=0.5, members=13, spikes="signed", initial_input=0.0
            ),
            "to 12, but it is 13",
        ),
        (
            lambda: SignGDNode(
                "relu", FAST, dead_zone=0.5, spikes="binary", offset=0.0, initial_input=0.0
            ),
            "the silence of .*spikes='ternary' or 'signed', or dead_zone=0",
        ),
        (
            lambda: SignGDNode(
                "relu", FAST, dead_zone=0.5, spikes="ternary", members=2, initial_input=0.0
            ),
            "spikes='signed', or members=1",
        ),
        (
            lambda: SignGDNode("relu", FAST, spikes="ternary", momentum=0.5, initial_input=0.0),
            "ternary spikes cannot represent momentum",
        ),
        (lambda: Readout(spikes="binary", schedule=PUBLISHED), "offset"),
        (lambda: Readout(spikes="binary", offset=0.0), "schedule"),
        (lambda: Readout(1.0, spikes="decoded"), "would be ignored"),
        (lambda: GroupNode(0), "members"),
        (lambda: GroupNode(2, 0.0), "v_threshold"),
    ],
)
def test_bad_parameters(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_schedule_that_ends() -> None:
    node = SignGDNode("relu", ListSchedule((0.5, 0.25)), spikes="signed", initial_input=0.0)
    with pytest.raises(ValueError, match="Reset the network between inputs"):
        sequence(node, torch.ones(3, 2, 5))


# ---------------------------------------------------------------------------- signGD dynamics

# Linear(w1, b1), function, Linear(w2, b2) on a constant input x, decoded values to 6 decimals:
# the published code's
X_07 = "0.105 0.189787 0.258858 0.315591 0.362557 0.401723 0.434612 0.462412 0.486055 0.506281"
X_03 = (
    "-0.045 -0.081337 -0.110939 -0.135253 -0.155381 -0.172167 -0.186262 -0.198176 -0.208309 "
    "-0.216977"
)
V_03 = "-0.15 -0.0075 0.127875 -0.000731 0.121445 0.005378 -0.104886 -0.000136 0.099377 0.00484"
GOLDEN: dict[str, dict[str, Any]] = {
    "G1": {
        "x": 0.7,
        "spikes": "0 0 1 0 0 1 0 0 1 0",
        "decoded": X_07,
        "v": "0.15 0.2925 0.157125 0.285731 0.407907 0.29184 0.402104 0.506854 0.407341 0.501879",
    },
    "G2": {"x": -0.3, "spikes": "1 0 0 1 0 1 1 0 0 1", "decoded": X_03, "v": V_03},
    "G3": {
        "x": 0.4,
        "weights": (2.0, -0.5, -1.5, 0.25),
        "spikes": "1 0 0 1 0 1 1 0 0 1",
        "decoded": "-0.38 -0.2831 -0.204163 -0.139324 -0.085649 -0.040888 -0.003301 0.02847 "
        "0.055491 0.078606",
        "v": V_03,
        "y": "0.475 0.26125 0.058188 0.251097 0.067833 0.241934 0.407329 0.250203 0.100934 0.24274",
    },
    "G4": {
        "x": 0.7,
        "function": "sigmoid_gelu",
        "spikes": "0 1 0 0 1 0 0 1 0 1",
        "decoded": X_07,
        "v": "0.15 0.0075 0.142875 0.271481 0.149305 0.265372 0.375636 0.270886 0.370399 0.275861",
    },
    "G5": {
        "x": -0.3,
        "function": "sigmoid_gelu",
        "spikes": "1 0 1 0 1 0 1 0 1 0",
        "decoded": X_03,
        "v": "-0.15 -0.0075 -0.142875 -0.014269 -0.136445 -0.020378 -0.130641 -0.025891 -0.125404 "
        "-0.030866",
    },
    "G7": {
        "x": 0.7,
        "schedule": InverseSchedule(1.0),
        "spikes": "0 1 0 1 0 1 0 1 0 1",
        "decoded": "0.7 0.7 0.7 0.7 0.7 0.7 0.7 0.7 0.7 0.7",
        "v": "1 0.5 0.833333 0.583333 0.783333 0.616667 0.759524 0.634524 0.745635 0.645635",
    },
    "G8": {
        "x": 0.7,
        "momentum": 0.5,
        "spikes": "0 0 0 1 1 0 0 0 1 1",
        "decoded": "0.105 0.239663 0.365945 0.468891 0.546026 0.600537 0.637397 0.661463 0.676729 "
        "0.686181",
        "v": "0.15 0.36375 0.600656 0.58458 0.454769 0.509175 0.645282 0.814683 0.795636 0.692051",
    },
}
NO_MOMENTUM = ("binary", "ternary")
GOLDEN_CASES = [(g, s) for g in GOLDEN for s in SPIKES if g != "G8" or s not in NO_MOMENTUM]


def numbers(text: str) -> Tensor:
    return torch.tensor([float(word) for word in text.split()], dtype=torch.float64)


def linear(weight: Tensor, bias: Tensor | None = None) -> layer.Linear:
    made = layer.Linear(weight.shape[1], weight.shape[0], bias=bias is not None).double()
    made.weight.data = weight
    if bias is not None:
        made.bias.data = bias
    return made


def golden_network(case: dict[str, Any], spikes: str) -> Any:
    values = case.get("weights", (1.0, 0.0, 1.0, 0.0))
    w1, b1, w2, b2 = (torch.tensor([v], dtype=torch.float64) for v in values)
    schedule = case.get("schedule", PUBLISHED)
    momentum = case.get("momentum", 0.0)
    function = case.get("function", "relu")
    code = Encode(schedule, momentum=momentum, spikes=spikes)
    keywords: dict[str, Any] = {
        **{"momentum": momentum, "spikes": spikes, "store_v_seq": True, "dead_zone": 0}
    }
    if spikes == "decoded":
        return nn.Sequential(
            code,
            linear(w1[None], b1),
            SignGDNode(function, schedule, **keywords),
            linear(w2[None], b2),
            Readout(spikes=spikes),
        )
    binary = spikes == "binary"
    node = SignGDNode(
        function, schedule, initial_input=b1, offset=w1 if binary else None, **keywords
    )
    readout = Readout(b2, spikes=spikes, schedule=schedule, offset=w2 if binary else None)
    return nn.Sequential(code, linear(w1[None]), node, linear(w2[None]), readout)


@pytest.mark.parametrize(("name", "spikes"), GOLDEN_CASES)
def test_golden_vectors(name: str, spikes: str) -> None:
    case = GOLDEN[name]
    net = golden_network(case, spikes)
    x = torch.full((10, 1, 1), case["x"], dtype=torch.float64)
    decoded = []
    node = net[2]

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        decoded.append((inputs[0] if spikes == "decoded" else node.x[0]).flatten())

    node.register_forward_hook(record)
    y = steps(net, x).flatten()
    assert_same("spikes", node.spike_seq.flatten(), numbers(case["spikes"]).bool())
    assert_near("decoded input", torch.cat(decoded), numbers(case["decoded"]), atol=5.01e-7)
    assert_near("v", node.v_seq.flatten(), numbers(case["v"]), atol=5.01e-7)
    assert_near("output", y, numbers(case.get("y", case["v"])), atol=5.01e-7)


def test_golden_vector_of_the_rate_coded_baseline() -> None:
    """G9: w1 = 2, b1 = -0.5; the decoded input is handed in."""
    decoded = numbers(
        "-0.1 0.033333 0.1 0.14 0.166667 0.185714 0.2 0.211111 0.22 0.227273"
    ).reshape(10, 1, 1)
    node = SubgradientNode(store_v_seq=True)
    v = sequence(node, decoded).flatten()
    assert_same("spikes", node.spike_seq.flatten(), numbers("0 1 0 0 0 1 0 0 0 1").bool())
    expected = "0 0.333333 0.25 0.2 0.166667 0.285714 0.25 0.222222 0.2 0.272727"
    assert_near("v", v, numbers(expected), atol=5.01e-7)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_signed_node_is_the_definition(momentum: float) -> None:
    scale, initial = torch.rand(5) + 0.5, torch.randn(5)
    x_seq = torch.randn(12, 3, 5)
    options: dict[str, Any] = {"scale": scale, "momentum": momentum, "dead_zone": 0}
    node = SignGDNode("gelu", PUBLISHED, initial_input=initial, spikes="signed", **options)
    p = SignGDParameters(NONLINEARITIES["gelu"], PUBLISHED, scale, momentum=momentum)
    x = (initial.expand(3, 5),)
    start = SignGDSpikeState(x, signgd_initial_state(x[0], p))
    y_seq, state = scan(signgd_spike_step, [(i,) for i in x_seq], start, p)
    assert_same("y_seq", sequence(node, x_seq), y_seq)
    assert_same("x", node.x, state.x)
    assert_same("v", node.v, state.neuron.v)


SIZES = (8, 16, 12, 4)


def mlp(
    function: str, spikes: str, schedules: list[Any], seed: int, members: int = 1, theta: Any = 0.0
) -> Any:
    """The same network in every protocol; its neurons rest at some level, in units of their own."""
    torch.manual_seed(seed)
    double: dict[str, Any] = {"dtype": torch.float64}
    weights = [torch.randn(n, m, **double) / m**0.5 for m, n in zip(SIZES, SIZES[1:], strict=False)]
    biases = [torch.randn(n, **double) / 4 for n in SIZES[1:]]
    scales = [torch.rand(n, **double) + 0.5 for n in SIZES[1:-1]]
    restings = [torch.randn(n, **double) / 4 for n in SIZES[1:-1]]
    before = [torch.ones(SIZES[0], **double), *scales]  # the scales of the senders
    at_rest = [torch.zeros(SIZES[0], **double), *restings]
    many: dict[str, Any] = {"members": members}
    modules: list[nn.Module] = [Encode(schedules[0], spikes=spikes, **many)]
    for k, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        decoded = spikes == "decoded"
        modules.append(linear(weight, bias if decoded else None))
        keywords: dict[str, Any] = {"spikes": spikes}
        initial = 0.0 if decoded else weight @ at_rest[k] + bias
        if spikes == "binary":
            keywords["offset"] = weight @ before[k]
        if k < len(scales):
            keywords |= {"scale": scales[k], "resting": restings[k], "initial_input": initial}
            keywords |= {"dead_zone": theta[: SIZES[k + 1]] if isinstance(theta, Tensor) else theta}
            modules.append(SignGDNode(function, schedules[k + 1], **many, **keywords))
        else:
            modules.append(Readout(initial, schedule=schedules[k], **many, **keywords))
    net = nn.Sequential(*modules)
    functional.set_step_mode(net, "m")
    return net


@pytest.mark.parametrize("function", ["gelu", "relu"])
def test_the_protocols_agree_to_round_off(function: str) -> None:
    x = torch.randn(5, SIZES[0], dtype=torch.float64).expand(128, -1, -1)
    decoded = mlp(function, "decoded", [PUBLISHED] * 3, seed=1)(x)
    for spikes in ("signed", "binary", "ternary"):
        y = mlp(function, spikes, [PUBLISHED] * 3, seed=1)(x)
        assert_near(spikes, y, decoded, atol=1e-12)
    assert decoded[-1].std() > 0.1


MIXED = torch.tensor([0.0, 0.5, 2 / 3, 0.9]).repeat(4)


@pytest.mark.parametrize("theta", [0.3, 2 / 3, MIXED], ids=["0.3", "2/3", "by channel"])
@pytest.mark.parametrize("members", [1, 3, 8, 12])
def test_the_protocols_agree_where_neurons_may_be_silent(members: int, theta: Any) -> None:
    x = torch.randn(5, SIZES[0], dtype=torch.float64).expand(40, -1, -1)
    decoded, signed, *ternary = (
        mlp("gelu", spikes, [FAST] * 3, 1, members, theta)(x)
        for spikes in ("decoded", "signed", "ternary")[: 3 if members == 1 else 2]
    )
    for y in (signed, *ternary):
        assert_near("outputs", y, decoded, atol=1e-12)
    assert decoded[-1].std() > 0.1 and bool((decoded[-1] != decoded[0]).any())


@pytest.mark.parametrize("function", ["gelu", "relu"])
def test_decoded_and_signed_agree_where_every_layer_has_its_own_schedule(function: str) -> None:
    schedules = [PUBLISHED, FAST, InverseSchedule(1.0)]
    x = torch.randn(5, SIZES[0], dtype=torch.float64).expand(128, -1, -1)
    decoded, signed = (mlp(function, s, schedules, seed=2)(x) for s in ("decoded", "signed"))
    assert_near("signed", signed, decoded, atol=1e-12)


@pytest.mark.parametrize("spikes", ["signed", "binary", "ternary"])
def test_integrated_input_is_w_v_plus_b_at_every_step(spikes: str) -> None:
    schedules = [PUBLISHED] * 3
    net = mlp("gelu", spikes, schedules, seed=3)
    reference = mlp("gelu", "decoded", schedules, seed=3)  # its layers have the biases
    functional.set_step_mode(net, "s")
    functional.set_step_mode(reference, "s")
    x = torch.randn(5, SIZES[0], dtype=torch.float64)
    for t in range(128):
        y = net(x)
        for sender, synapse, receiver in ((0, 1, 2), (2, 3, 4)):
            expected = reference[synapse](net[sender].v)
            assert_near(f"x({t})", net[receiver].x[0], expected, atol=1e-12)
        assert_near(f"y({t})", y, reference[5](net[4].v), atol=1e-12)


def test_mlp_becomes_its_source_network() -> None:
    """With spikes alone: codes by spikes of the identity, any range, every layer settled."""
    torch.manual_seed(0)
    w1, b1 = torch.randn(16, 8, dtype=torch.float64) / 3, torch.randn(16, dtype=torch.float64)
    w2, b2 = torch.randn(4, 16, dtype=torch.float64) / 4, torch.randn(4, dtype=torch.float64)
    schedule = ExponentialSchedule(1.0, 0.9)
    net = nn.Sequential(
        SignGDNode("identity", schedule, initial_input=0.0, spikes="signed"),
        linear(w1),
        SignGDNode("gelu", schedule, initial_input=b1, spikes="signed"),
        linear(w2),
        Readout(b2),
    )
    x = torch.randn(20, 8, dtype=torch.float64)
    impulse = torch.cat([x[None], torch.zeros(127, 20, 8, dtype=torch.float64)])
    target = F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)
    with torch.no_grad():
        y_seq = sequence(net, impulse)
    errors = [float((y_seq[t - 1] - target).norm() / target.norm()) for t in (16, 64, 128)]
    assert errors[0] > errors[1] >= errors[2]
    assert errors[2] < 1e-2


def test_the_worked_example() -> None:
    """The spikes that hardware sees, word for word as the page of nodes by hand has them."""
    from spikingjelly_signgd import SignGDNode

    schedule, b1, b2 = ExponentialSchedule(0.5, 0.9), torch.randn(128) / 8, torch.randn(10)
    net = nn.Sequential(
        sg.Encode(schedule),
        layer.Linear(64, 128, bias=False),
        SignGDNode("gelu", schedule, initial_input=b1, spikes="signed"),
        layer.Linear(128, 10, bias=False), sg.Readout(initial=b2),
    )  # fmt: skip
    functional.set_step_mode(net, "m")
    x = torch.rand(32, 64)
    with torch.no_grad():
        y = net(x.expand(100, -1, -1))
        source = net[3](F.gelu(net[1](x[None]) + b1))[0] + b2
    assert y.shape == (100, 32, 10)
    assert float((y[-1] - source).norm() / source.norm()) < 0.02
    assert float((y[3] - source).norm() / source.norm()) > 0.02


ARGUMENTS: list[tuple[Any, tuple[tuple[int, ...], ...], dict[str, Any]]] = [
    ("mul", ((4, 5), (4, 5)), {}),
    ("mul", ((4, 1), (4, 5)), {}),
    ("maximum", ((4, 5), (4, 5)), {}),
    ("minimum", ((4, 5), (5,)), {}),
    ("div", ((4, 5), (4, 5)), {}),
    ("divide_by_sqrt", ((4, 5), (4, 1)), {"floor": 0.01}),
    ("max", ((4, 5), (4, 5), (4, 5)), {}),
    ("prelu", ((4, 3, 2),), {"weight": torch.tensor([[0.1], [0.2], [0.3]])}),
    ("gelu", ((4, 5),), {"approximate": "tanh"}),
    ("max_pool", ((4, 3, 7, 6),), {
        "kernel_size": (3, 2), "stride": (2, 2), "padding": (1, 0), "dilation": (1, 1),
        "ceil_mode": True,
    }),
    ("amax", ((4, 5),), {"dim": (1,)}),
    (lambda a, b, c: a * b - c, ((4, 5), (4, 5), (5,)), {}),
    (Nonlinearity("gate", lambda a, b: a * torch.sigmoid(b), arity=2), ((4, 5), (4, 5)), {}),
    (lambda x: x.flatten(1).mean(1), ((4, 3, 2),), {}),
]  # fmt: skip


@pytest.mark.parametrize(("function", "shapes", "arguments"), ARGUMENTS)
@pytest.mark.parametrize("spikes", SPIKES)
def test_functions_of_any_arity_and_shape_are_tracked(
    function: Any, shapes: tuple[tuple[int, ...], ...], arguments: dict[str, Any], spikes: str
) -> None:
    """The tracking lemma: a constant target within reach is held within eta(t)."""
    schedule, time = ExponentialSchedule(2.0, 0.85), 40
    inputs = [(torch.rand(shape, dtype=torch.float64) + 0.5) for shape in shapes]
    keywords: dict[str, Any] = {"spikes": spikes, "arguments": arguments, "dead_zone": 0}
    if spikes == "binary":
        keywords["offset"] = 0.0 if len(shapes) == 1 else tuple(0.0 for _ in shapes)
    if spikes != "decoded":
        keywords["initial_input"] = tuple(inputs)
    node = SignGDNode(function, schedule, store_v_seq=True, **keywords)
    silent = [torch.zeros_like(x) for x in inputs]  # no spikes: x stays at its initial value
    currents = inputs if spikes == "decoded" else silent
    y_seq = sequence(node, *(x.expand(time, *x.shape) for x in currents))
    target = node.dynamics.target(*inputs)
    assert target.abs().max() < sum(schedule(t) for t in range(1, time))
    assert y_seq.shape == (time, *target.shape) and node.v.shape == target.shape
    assert float((node.v - target).abs().max()) <= schedule(time)
    if spikes == "decoded":
        assert_same("y", y_seq, node.v_seq)
    elif spikes == "signed":
        assert_near("sum of spikes", y_seq.cumsum(0), node.v_seq, atol=1e-12)
    elif spikes == "binary":
        assert_same("y", y_seq, node.spike_seq.double())
    else:
        assert_same("y", y_seq, 2 * node.spike_seq.double() - 1)
    functional.reset_net(node)
    assert_same("step by step", steps_of(node, currents, time), y_seq)


def steps_of(node: nn.Module, currents: list[Tensor], time: int) -> Tensor:
    functional.set_step_mode(node, "s")
    return torch.stack([node(*currents) for _ in range(time)])


def test_each_argument_has_its_own_initial_input_and_offset() -> None:
    a0, b0 = torch.randn(5), 0.25
    node = SignGDNode(
        "mul", PUBLISHED, initial_input=(a0, b0), spikes="binary", offset=(1.5, torch.ones(5))
    )
    a, b = torch.randn(2, 3, 5)
    node(a, b)
    assert_near("x[0]", node.x[0], a0 - 0.15 * (2 * a - 1.5), atol=1e-6)
    assert_near("x[1]", node.x[1], b0 - 0.15 * (2 * b - 1.0), atol=1e-6)


def test_v_before_the_first_step_is_where_it_starts() -> None:
    for node, start in (
        (SignGDNode("relu", PUBLISHED, resting=1.5, spikes="signed", initial_input=0.0), 1.5),
        (GroupNode(4, 2.0), 0.25),
        (SubgradientNode(), 0.0),
    ):
        assert node.v == start
        node(torch.ones(2, 5))
        functional.reset_net(node)
        assert node.v == start


@pytest.mark.parametrize("fires_at_tie", [True, False])
def test_the_tie_is_the_rows(fires_at_tie: bool) -> None:
    row = Nonlinearity("zero", torch.zeros_like, fires_at_tie=fires_at_tie)
    node = SignGDNode(row, ConstantSchedule(0.5), spikes="decoded", dead_zone=0)
    assert_same("v", node(torch.ones(2, 5)), torch.full((2, 5), -0.5 if fires_at_tie else 0.5))


def test_a_function_that_is_a_module_moves_with_the_node() -> None:
    node = SignGDNode(Probe(), PUBLISHED, spikes="decoded")
    assert [name for name, _ in node.named_parameters()] == ["function_module.gain"]
    sequence(node, torch.ones(2, 3, 5))
    functional.detach_net(node)
    other = copy.deepcopy(node).double()
    gain = torch.tensor(-1.0, dtype=torch.float64)
    other.load_state_dict({"function_module.gain": gain, "dead_zone": ZONE})
    functional.reset_net(other)
    v = sequence(other, torch.full((60, 3, 5), 0.5, dtype=torch.float64))[-1]
    assert_near("v", v, torch.full_like(v, -0.4621171573), atol=0.15 * 0.95**59)
    assert float(node.state_dict()["function_module.gain"]) == 0.5


# ------------------------------------------------------------------------------ group neurons


def members_by_themselves(x_seq: Tensor, members: int, v_threshold: float) -> Tensor:
    """The published code: m members with a membrane each, every one reset by all spikes."""
    q = v_threshold / members
    v = [torch.full_like(x_seq[0], q / 2) for _ in range(members)]
    outputs = []
    for x in x_seq:
        u = [v_k + x for v_k in v]
        n = torch.stack([(u[k - 1] - k * q >= 0).to(x) for k in range(1, members + 1)]).sum(0)
        v = [u_k - n * q for u_k in u]
        outputs.append(n * q)
    return torch.stack(outputs)


@pytest.mark.parametrize("members", [1, 2, 3, 4, 7, 16])
@pytest.mark.parametrize("kind", ["random", "on thresholds"])
def test_group_node_is_m_members_with_a_membrane_each(members: int, kind: str) -> None:
    v_threshold = float(members) if kind == "on thresholds" else 0.7
    x_seq = torch.randn(12, 5, 40) * v_threshold
    if kind == "on thresholds":  # theta = 1: half of the potentials lie on a threshold
        x_seq = (x_seq * 2).round() / 2
    expected = members_by_themselves(x_seq, members, v_threshold)
    assert_same("output", sequence(GroupNode(members, v_threshold), x_seq), expected)
    assert expected.unique().numel() == members + 1


@pytest.mark.parametrize("members", [1, 2, 3, 4, 5, 6, 8, 16])
@pytest.mark.parametrize(("spread", "mean"), [(0.4, 0.3), (1.5, 0.2), (3.0, 0.0), (0.2, 1.2)])
def test_group_node_is_m_if_neurons(members: int, spread: float, mean: float) -> None:
    """I7: ordinary IF neurons without connections, initial potentials staggered; exact lattice."""
    theta = float(members)
    x_seq = (torch.randn(25, 400, dtype=torch.float64) * spread + mean) * theta
    x_seq = (x_seq * 64).round() / 64
    v = torch.stack([torch.full((400,), (2 * j - 1) / 2).double() for j in range(1, members + 1)])
    outputs = []
    for x in x_seq:
        v = v + x
        spikes = (v >= theta).double()
        v = v - spikes * theta
        outputs.append(spikes.sum(0))
    assert_same("output", sequence(GroupNode(members, theta), x_seq), torch.stack(outputs))


@pytest.mark.parametrize("members", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("time", [1, 2, 3, 4, 8, 16])
def test_mean_of_constant_input_is_qcfs_of_m_t_levels(members: int, time: int) -> None:
    """I2, also on the boundaries of the levels."""
    theta, levels = 1.37, members * time
    x = torch.randn(4000, dtype=torch.float64) * 0.9 + 0.3
    net = nn.Sequential(GroupNode(members, theta), RunningMean())
    y = sequence(net, x.expand(time, -1))[-1]
    count = torch.floor(x * levels / theta + 0.5).clamp(0, levels)
    assert_near("mean output", y, theta / levels * count, atol=1e-12)
    theta = 2.0**10 * members  # exact: theta / members and every sum below are integers
    x = torch.arange(-levels, 3 * levels).double() * 2.0**9 * members / time
    x = x[x == x.round()]
    y = sequence(GroupNode(members, theta), x.expand(time, -1)).sum(0)
    count = torch.floor(x * levels / theta + 0.5).clamp(0, levels)
    assert_same("sum at boundaries", y, theta / members * count)


def test_one_member_is_the_if_node_of_spikingjelly() -> None:
    x_seq = torch.randn(20, 6, 9)
    if_node = neuron.IFNode(v_threshold=0.8, v_reset=None, step_mode="m").eval()
    expected = if_node(x_seq) * 0.8
    assert_same("output", sequence(GroupNode(1, 0.8, initial_charge=0.0), x_seq), expected)


@pytest.mark.parametrize("members", [1, 2, 5])
@pytest.mark.parametrize("kind", ["random", "on thresholds"])
def test_the_differentiable_path_has_the_same_values(members: int, kind: str) -> None:
    x_seq = torch.randn(8, 4, 50) * (1 if kind == "random" else members)
    threshold = 0.7 if kind == "random" else float(members)
    if kind == "on thresholds":
        x_seq = (x_seq * 2).round() / 2
    p = GroupNeuronParameters(members, threshold)
    expected, v = scan(group_step, x_seq, group_initial_v(x_seq[0], p), p)
    node = GroupNode(members, threshold, surrogate_function=surrogate.Sigmoid().forward)
    actual = sequence(node, x_seq.clone().requires_grad_())
    assert actual.requires_grad
    assert_same("output", actual.detach(), expected)
    assert_same("v", node.v.detach(), v)
    functional.reset_net(node)

    def unused(h: Tensor) -> Tensor:
        raise AssertionError("m surrogates were computed where no gradient is asked for")

    node.surrogate_function = unused
    assert_same("output", sequence(node, x_seq), expected)
    functional.reset_net(node)
    with torch.no_grad():
        assert_same("output", sequence(node, x_seq.clone().requires_grad_()), expected)


@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("members", [1, 3])
def test_the_gradient_is_the_sum_of_the_surrogates(detach_reset: bool, members: int) -> None:
    alpha, theta = 3.0, 0.9 / members
    node = GroupNode(
        members, 0.9, surrogate_function=surrogate.Sigmoid(alpha), detach_reset=detach_reset
    )
    x_seq = torch.randn(2, 6, 5, dtype=torch.float64).requires_grad_()
    out = sequence(node, x_seq)
    (grad,) = torch.autograd.grad(out[1].sum(), x_seq)

    def slope(h: Tensor) -> Tensor:
        k = torch.arange(1, members + 1).double().view(-1, 1, 1)
        s = torch.sigmoid(alpha * (h - k * theta))
        return (alpha * s * (1 - s)).sum(0) * theta

    h1 = theta / 2 + x_seq[0].detach()
    h2 = h1 - out[0].detach() + x_seq[1].detach()
    through_reset = torch.ones(6, 5) if detach_reset else 1 - slope(h1)
    assert_near("d out2 / d x2", grad[1], slope(h2), atol=1e-12)
    assert_near("d out2 / d x1", grad[0], slope(h2) * through_reset, atol=1e-12)


def test_a_group_network_learns() -> None:
    net = nn.Sequential(layer.Linear(5, 8), GroupNode(4), layer.Linear(8, 1), RunningMean())
    functional.set_step_mode(net, "m")
    x = torch.randn(64, 5)
    target = x[:, :1].relu()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        functional.reset_net(net)
        loss = F.mse_loss(net(x.expand(4, -1, -1))[-1], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_v_threshold_is_a_number_that_counts_when_it_changes() -> None:
    node = GroupNode(2, 1)
    assert isinstance(node.v_threshold, float) and isinstance(node.members, int)
    node.v_threshold = 4.0
    assert_same("output", node(torch.full((3, 5), 3.5)), torch.full((3, 5), 4.0))


# -------------------------------------------------------------------------------- RateCoding


def relu_cnn() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10),
    ).eval()  # fmt: skip


@pytest.fixture
def images() -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(3)
    yield torch.rand(64, 3, 8, 8, generator=generator)


needs_recipes = pytest.mark.skipif(
    not hasattr(ann2snn, "RateCodingRecipe"), reason="recipes are new in SpikingJelly 2"
)


def rate_coded_error(images: Tensor, time: int, channel_wise: bool, factory: Any) -> float:
    ann = relu_cnn()
    recipe = ann2snn.RateCodingRecipe([images], neuron_factory=factory, channel_wise=channel_wise)
    snn = ann2snn.Converter(recipe).convert(ann)
    snn.eval()
    functional.set_step_mode(snn, "m")
    with torch.no_grad():
        y = snn(images.expand(time, *images.shape)).mean(0)
        target = relu_cnn()(images)
    if factory is not None:
        assert sum(isinstance(m, GroupNode) for m in snn.modules()) == 3
    return float((y - target).norm() / target.norm())


@needs_recipes
@pytest.mark.parametrize("channel_wise", [False, True])
def test_rate_coding_recipe_with_group_neurons(images: Tensor, channel_wise: bool) -> None:
    """At T = 4 members are as good as T = 4 m of the recipe's IF neurons, or better."""
    at_4, at_64 = (rate_coded_error(images, t, channel_wise, None) for t in (4, 64))
    errors = [
        rate_coded_error(images, 4, channel_wise, group_neuron_factory(m)) for m in (1, 4, 16)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[1] < 0.5 * at_4
    assert errors[2] <= at_64


@needs_recipes
def test_one_member_without_charge_is_the_recipes_own_neuron(images: Tensor) -> None:
    own = rate_coded_error(images, 8, False, None)
    ours = rate_coded_error(images, 8, False, group_neuron_factory(1, initial_charge=0.0))
    assert own == ours
