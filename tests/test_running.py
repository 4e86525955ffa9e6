"""run and evaluate: one run for all read-outs, bounded memory, numbers as computed by hand."""

import pytest
import torch
from spikingjelly.activation_based import base, functional
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import spikingjelly_signgd as sg
from spikingjelly_signgd.core import running

pytestmark = pytest.mark.spikingjelly

X = torch.randn(12, 6, generator=torch.Generator().manual_seed(4))


def gelu_model():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(6, 10), nn.GELU(), nn.LayerNorm(10), nn.Linear(10, 4)).eval()


def relu_model():
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)
    ).eval()


@pytest.fixture(scope="module")
def model():
    return gelu_model()


@pytest.fixture(scope="module")
def network(model):
    return sg.convert(model, X, time_steps=16)


@pytest.fixture
def snn(network):
    return sg.build(network)


def states(snn):
    return {
        f"{name}.{memory}": value
        for name, module in snn.named_modules()
        if isinstance(module, base.MemoryModule)
        for memory, value in module._memories.items()
        if value is not None and not (isinstance(value, (int, float)) and value == 0)
    }


def relative_error(output, expected):
    return float((output - expected).norm() / expected.norm())


def test_the_read_outs_are_those_of_separate_runs(snn):
    steps = (1, 2, 5, 16)
    together = sg.run(snn, X, steps)
    for t in steps:
        assert torch.equal(together[t], sg.run(snn, X, t)[t]), f"T = {t}"
    assert len({tuple(y.flatten().tolist()) for y in together.values()}) == 4


@pytest.mark.parametrize(
    ("asked", "keys"),
    [(4, [4]), ((8, 1, 4), [8, 1, 4]), (range(1, 4), [1, 2, 3]), ([2, 2], [2]), ((16,), [16])],
)
def test_keys_are_the_steps_asked_for_in_their_order(snn, asked, keys):
    assert list(sg.run(snn, X, asked)) == keys
    assert list(sg.run(snn, X, asked, chunk=3)) == keys


def test_the_default_steps_are_those_the_network_was_planned_for(snn):
    assert list(sg.run(snn, X)) == [snn.network.time_steps]
    assert list(sg.run(snn, X.expand(3, *X.shape), sequence=True)) == [3]
    assert sg.evaluate(snn, [X]).time_steps == (snn.network.time_steps,)


def test_read_outs_do_not_share_memory(snn):
    """Nor with the states: what a caller does to one changes no other, and no later run."""
    first = sg.run(snn, X, (3, 4))
    expected = first[4].clone()
    first[3].zero_()
    assert torch.equal(first[4], expected)
    assert not first[4].requires_grad
    assert torch.equal(sg.run(snn, X, 4)[4], expected)
    assert first[4].untyped_storage().nbytes() == first[4].nbytes, "the block is not kept alive"


def test_states_are_reset_before_and_after(snn):
    fresh = states(snn)
    expected = sg.run(snn, X, 4)[4]
    assert states(snn) == fresh, "after a run"
    functional.set_step_mode(snn, "s")
    for _ in range(3):
        snn(X[:5])
    assert states(snn).keys() > fresh.keys()
    assert torch.equal(sg.run(snn, X, 4)[4], expected), "whatever ran before"
    snn(X[:5])
    functional.reset_net(snn)
    assert states(snn) == fresh


@pytest.mark.parametrize("mode", ["s", "m"])
def test_step_modes_come_back(network, mode):
    snn = sg.build(network, step_mode=mode)
    assert {m.step_mode for m in snn.modules() if isinstance(m, base.StepModule)} == {mode}
    sg.run(snn, X, 2)
    assert {m.step_mode for m in snn.modules() if isinstance(m, base.StepModule)} == {mode}
    mixed = snn.neuron("1")
    mixed.step_mode = "m" if mode == "s" else "s"
    with pytest.raises(sg.InputError):
        sg.run(snn, X[:, :3], 2)
    sg.run(snn, X, 2)
    assert mixed.step_mode != mode and snn.step_mode == mode


def test_an_error_half_way_leaves_no_states_and_no_step_mode(snn):
    fresh, calls = states(snn), []

    def fail(module, inputs):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of luck")

    hook = snn.neuron("1").register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        sg.run(snn, X, 8, chunk=2)
    hook.remove()
    assert states(snn) == fresh
    assert {m.step_mode for m in snn.modules() if isinstance(m, base.StepModule)} == {"s"}


def blocks_seen(snn, x, time_steps, **options):
    """Steps of the blocks that each spiking node sees, and the largest tensor they hold."""
    seen, largest = {}, 0

    def look(module, inputs, output):
        nonlocal largest
        seen.setdefault(module, []).append(len(inputs[0]))
        kept = [v for v in module._memories.values() if isinstance(v, torch.Tensor)]
        largest = max([largest, output.numel(), *(v.numel() for v in kept)])

    hooks = [node.register_forward_hook(look) for node in snn.neurons.values()]
    sg.run(snn, x, time_steps, **options)
    for hook in hooks:
        hook.remove()
    return list(seen.values()), largest


def test_memory_follows_the_chunk_and_not_t(snn):
    for time_steps, blocks in ((16, [5, 5, 5, 1]), (96, [5] * 19 + [1])):
        seen, largest = blocks_seen(snn, X, time_steps, chunk=5)
        assert seen and all(sizes == blocks for sizes in seen)
        assert largest == 5 * 12 * 10, f"T = {time_steps}"


def test_the_default_chunk_bounds_the_block_in_bytes(snn, monkeypatch):
    """A block holds at most so many bytes, at any T and batch size; at least one step."""
    monkeypatch.setitem(running.BLOCK_BYTES, "cpu", 4 * 10 * 12 * 3)
    for x, chunk in ((X, 3), (X[:4], 7), (torch.cat([X] * 5), 1)):  # 9 fit: 7 + 7 + 6 steps
        seen, largest = blocks_seen(snn, x, 20)
        assert {max(sizes) for sizes in seen} == {chunk}
        assert largest <= max(10 * 12 * 3, 10 * len(x))


def test_live_memory_does_not_grow_with_t(snn):
    """Bytes of all tensors alive inside the last neuron, the peak over a run."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from torch.utils.weak import WeakIdKeyDictionary

    class Live(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.storages, self.peak = WeakIdKeyDictionary(), 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in tree_leaves(out):
                if isinstance(tensor, torch.Tensor):
                    storage = tensor.untyped_storage()
                    self.storages[storage] = storage.nbytes()
            self.peak = max(self.peak, sum(self.storages.values()))
            return out

    peaks = {}
    for time_steps in (16, 64):
        with Live() as live:
            sg.run(snn, X, time_steps, chunk=4)
        peaks[time_steps] = live.peak
    assert peaks[16] > 4 * 4 * 12 * 10, "at least one block was seen"
    assert peaks[64] <= 1.02 * peaks[16], peaks


def test_what_depends_on_the_input_alone_is_computed_once(snn):
    calls = []
    first = next(m for m in snn.operations.values())
    first.register_forward_hook(lambda *args: calls.append(1))
    sg.run(snn, X, 12, chunk=2)
    assert len(calls) == 1


def test_a_sequence_of_equal_inputs_is_the_static_input(snn):
    static = sg.run(snn, X, (1, 7))
    sequence = sg.run(snn, X.expand(9, -1, -1), (1, 7), sequence=True, chunk=4)
    for t in (1, 7):
        torch.testing.assert_close(sequence[t], static[t], rtol=0, atol=1e-6)


@pytest.mark.parametrize("spikes", ["decoded", "signed"])
def test_a_sequence_is_followed(spikes):
    """Each step sees its own input: the output moves from one source output to the other's."""
    model = relu_model()
    network = sg.convert(model, X, schedule=sg.InverseSchedule(1.0, 1.0), time_steps=200)
    snn = sg.build(network, spikes=spikes)
    sequence = torch.cat([X.expand(20, -1, -1), X.flip(0).expand(180, -1, -1)])
    out = sg.run(snn, sequence, (20, 200), sequence=True, chunk=64)
    with torch.no_grad():
        before, after = model(X), model(X.flip(0))
    assert relative_error(out[20], before) < 0.3 < relative_error(out[20], after)
    assert relative_error(out[200], after) < 0.05
    chunked = sg.run(snn, sequence, 200, sequence=True, chunk=7)[200]
    torch.testing.assert_close(chunked, out[200], rtol=0, atol=1e-5)


# -- evaluate ----------------------------------------------------------------------------------


LABELS = torch.tensor([0, 1, 2, 3] * 3)


def test_evaluate_against_numbers_by_hand(snn, model):
    steps = (4, 1, 16)
    loader = DataLoader(TensorDataset(X, LABELS), batch_size=5)  # 5, 5, 2
    table = sg.evaluate(snn, loader, steps, reference=model)
    outputs = sg.run(snn, X, steps)
    with torch.no_grad():
        expected = model(X)
    assert table.time_steps == steps and table.samples == 12
    for i, t in enumerate(steps):
        y = outputs[t]
        assert table.accuracy[i] == float((y.argmax(1) == LABELS).double().mean())
        assert table.agreement[i] == float((y.argmax(1) == expected.argmax(1)).double().mean())
        assert table.error[i] == pytest.approx(relative_error(y, expected), rel=1e-5)
    assert table.reference_accuracy == float((expected.argmax(1) == LABELS).double().mean())
    rows = table.to_dict()["rows"]
    assert [row["T"] for row in rows] == [4, 1, 16] and rows[0]["error"] == table.error[0]
    assert "     4  " in str(table) and "source" in str(table)


def test_evaluate_without_labels(snn, model):
    with_pairs = sg.evaluate(snn, [(X, LABELS)], (1, 8), reference=model)
    for loader in ([X], DataLoader(TensorDataset(X), 7), [(X[:7], None), (X[7:], None)]):
        table = sg.evaluate(snn, loader, (1, 8), reference=model)
        assert table.accuracy == (None, None) and table.reference_accuracy is None
        assert table.agreement == with_pairs.agreement and table.samples == 12
        assert table.error == pytest.approx(with_pairs.error, rel=1e-5)


def test_evaluate_without_a_reference(snn):
    table = sg.evaluate(snn, ((x, y) for x, y in [(X, LABELS)]), 8)
    assert table.time_steps == (8,) and table.accuracy[0] is not None
    assert table.agreement == table.error == (None,) and table.reference_accuracy is None
    assert "-" in str(table)


def test_evaluate_with_itself_as_reference(snn):
    class Same(nn.Module):
        def forward(self, x):
            return sg.run(snn, x, 8)[8]

    table = sg.evaluate(snn, [X], 8, reference=Same())
    assert table.agreement == (1.0,) and table.error == (0.0,)


def test_evaluate_takes_the_reference_in_eval_mode(snn, model):
    dropout = nn.Sequential(model, nn.Dropout(0.9)).train()
    table = sg.evaluate(snn, [X], 8, reference=dropout)
    assert table.error == sg.evaluate(snn, [X], 8, reference=model).error
    assert dropout.training and dropout[1].training


def test_evaluations_of_several_plans_add_up(snn, model):
    one = sg.evaluate(snn, [(X, LABELS)], 2, reference=model)
    both = one + sg.evaluate(snn, [(X, LABELS)], (4, 8), reference=model)
    assert both.time_steps == (2, 4, 8)
    assert both.error == sg.evaluate(snn, [(X, LABELS)], (2, 4, 8), reference=model).error


# -- input codings and methods -----------------------------------------------------------------


@pytest.mark.parametrize("coding", ["exact", "real", "spike", "poisson"])
@pytest.mark.parametrize("method", ["signgd", "subgradient"])
def test_every_input_coding_converges(coding, method):
    """Also with real and spike coding, whose error falls with eta, and Poisson's 1 / sqrt(T)."""
    model = relu_model()
    network = sg.convert(
        model, X, method=method, input_coding=coding, time_steps=2000, seed=1,
        **({"schedule": sg.InverseSchedule(1.0, 1.0)} if method == "signgd" else {}),
    )  # fmt: skip
    assert len(network.names()) == 2 + (coding == "spike")
    out = sg.run(sg.build(network), X, (20, 2000))
    with torch.no_grad():
        expected = model(X)
    early, late = (relative_error(out[t], expected) for t in (20, 2000))
    assert late < early
    assert late < (0.1 if coding == "poisson" else 0.02), f"relative output error {late:.4f}"


def test_poisson_spikes_are_drawn_from_the_seed(model):
    def outputs(seed, **options):
        options = {"input_coding": "poisson", "time_steps": 8, "seed": seed, **options}
        return sg.build(sg.convert(model, X, **options))

    first = outputs(3)
    torch.manual_seed(11)
    expected = sg.run(first, X, (1, 8))
    torch.manual_seed(12)
    for again in (sg.run(first, X, (1, 8)), sg.run(first, X, (1, 8), chunk=3)):
        assert torch.equal(again[8], expected[8]), "of the seed alone, however cut into chunks"
    assert torch.equal(sg.run(outputs(3), X, 8)[8], expected[8])
    assert not torch.equal(sg.run(outputs(4), X, 8)[8], expected[8])


def test_poisson_spikes_have_the_input_as_their_mean():
    """Through the identity nothing is left but the mean of the spikes."""
    x = torch.tensor([[0.0, 0.1, -0.5, 0.9, 1.0, -1.0]]).expand(2000, -1)
    network = sg.convert(nn.Identity(), x[:64], input_coding="poisson", time_steps=16)
    out = sg.run(sg.build(network), x, (1, 16))
    assert set(out[1].unique().tolist()) == {-1.0, 0.0, 1.0}
    deviation = (x[0].abs() * (1 - x[0].abs())).sqrt()  # of one step
    for t in (1, 16):
        error = (out[t].mean(0) - x[0]).abs()
        assert bool((error <= 4 * deviation / (2000 * t) ** 0.5 + 1e-6).all()), error
        spread = out[t].std(0)
        torch.testing.assert_close(spread, deviation / t**0.5, rtol=0.1, atol=1e-6)


def test_methods_mixed_in_one_network_converge():
    torch.manual_seed(5)
    model = nn.Sequential(
        nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(),
        nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4),
    ).eval()  # fmt: skip
    method = {"1": "group", "3": "subgradient", "5": "signgd", "": "group"}
    network = sg.convert(
        model, X, method=method, time_steps=2000, members=4, schedule=sg.InverseSchedule(1.0, 1.0)
    )
    assert [node.kind for node in network.neurons] == ["group", "subgradient", "signgd", "group"]
    out = sg.run(sg.build(network), X, (20, 200, 2000))
    with torch.no_grad():
        errors = [relative_error(out[t], model(X)) for t in (20, 200, 2000)]
    assert errors[2] < errors[1] < errors[0] and errors[2] < 0.01, errors


def test_a_method_for_a_part_of_the_model():
    """The longest path wins; a path stands for all that is below it."""
    model = nn.Sequential(relu_model(), nn.ReLU(), nn.Linear(4, 4), nn.ReLU())
    method = {"0": "group", "0.3": "subgradient", "3": "group"}
    network = sg.convert(model, X, method=method, time_steps=8)
    kinds = {node.name: node.kind for node in network.neurons}
    assert kinds == {"0.1": "group", "0.3": "subgradient", "1": "signgd", "3": "group"}


def test_qcfs_and_relu_in_one_network():
    torch.manual_seed(5)
    model = nn.Sequential(
        nn.Linear(6, 16), sg.QCFS(8, 1.0), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)
    ).eval()
    with pytest.warns(sg.LevelsWarning, match="'1.* was trained with L = 8"):
        network = sg.convert(
            model, X, method={"1": "group", "3": "signgd"}, time_steps=512, members=1,
        )  # fmt: skip
    assert [node.kind for node in network.neurons] == ["group", "signgd"]
    smooth = nn.Sequential(model[0], nn.Hardtanh(0.0, 1.0), *model[2:])
    out = sg.run(sg.build(network), X, 512)[512]
    with torch.no_grad():
        assert relative_error(out, smooth(X)) < 0.02, "512 levels are the clipped ReLU"


def test_subgradient_neurons_converge_to_relu_clipped_at_their_scale():
    model = relu_model()
    network = sg.convert(model, X, method="subgradient", scale="tensor", time_steps=2000)
    first, second = network.neurons
    clipped = nn.Sequential(
        model[0], nn.Hardtanh(0.0, float(first.scale)), model[2],
        nn.Hardtanh(0.0, float(second.scale)), model[4],
    )  # fmt: skip
    x = 4 * X  # beyond what calibration saw
    out = sg.run(sg.build(network), x, (100, 2000))
    with torch.no_grad():
        assert relative_error(clipped(x), model(x)) > 0.2, "the clip matters here"
        errors = [relative_error(out[t], clipped(x)) for t in (100, 2000)]
    assert errors[1] < 0.005 and errors[1] < errors[0], errors


def test_subgradient_refuses_what_it_cannot_track():
    with pytest.raises(
        sg.UnsupportedOperation, match="(?s)gelu at '1'.*only ReLU.*method={'1': 'signgd'"
    ):
        sg.convert(gelu_model(), X, method="subgradient")


def test_no_progress_of_what_is_short(snn, monkeypatch, capsys):
    monkeypatch.setenv("SIGNGD_PROGRESS", "auto")
    sg.run(snn, X, 4, chunk=1)
    sg.evaluate(snn, [X], 2)
    assert capsys.readouterr() == ("", "")


def test_one_output_is_no_choice():
    """The argmax of one column is always 0: no agreement of 100 % for a network that is far off."""
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1))
    x = torch.randn(64, 6)
    snn = sg.build(sg.convert(model, x, time_steps=3, tune=False))
    table = sg.evaluate(snn, [(x, torch.zeros(64).long())], 3, reference=model)
    assert table.agreement == table.accuracy == (None,) and table.error[0] > 0
    assert table.reference_accuracy is None and "agreement" not in str(table)
