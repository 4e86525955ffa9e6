"""The trained networks and the demo's promises."""

import pytest
import torch
from data import digits, fashion_mnist
from networks import load_network

import spikingjelly_signgd as sg

DIGITS = ["vgg", "resnet", "convnext", "mixer", "resmlp", "vit"]
# Tuning does not run the simulator, and test_a_digits_network builds all of them on each version:
# two of the tuned ones are enough there. Two of them take as long as the others together.
MARKS = dict.fromkeys(("vgg", "resmlp"), pytest.mark.spikingjelly)
MARKS |= dict.fromkeys(("mixer", "vit"), pytest.mark.slow)
TUNED = [pytest.param(name, marks=MARKS.get(name, ())) for name in DIGITS]


@pytest.mark.spikingjelly
@pytest.mark.parametrize("name", DIGITS)
def test_a_digits_network(name):
    data, model = digits(), load_network(name, "digits")
    batch = [(data.test.images[:150], data.test.labels[:150])]
    network = sg.convert(model, data.train.images[:256], time_steps=32, tune=False)
    result = sg.evaluate(sg.build(network), batch, 32, reference=model)
    assert result.agreement[0] >= 0.98 and result.error[0] <= 0.1
    assert result.reference_accuracy >= 0.95


@pytest.mark.parametrize("name", TUNED)
@pytest.mark.parametrize(("steps", "members"), [(8, 1), pytest.param(2, 3, marks=pytest.mark.slow)])
def test_a_tuned_digits_network(name, steps, members):
    """On test images, which tuning never saw: closer than the default plan, and close. Where step
    sizes were measured, there is little left to tune, and chance decides."""
    data, model = digits(), load_network(name, "digits")
    batch = [(data.test.images[:150], data.test.labels[:150])]
    images = data.train.images[:256]
    plain = sg.convert(model, images, time_steps=steps, members=members, tune=False)
    tuned = sg.tune(plain, images, iterations=25)
    before, after = (
        sg.evaluate(sg.build(network), batch, steps, reference=model) for network in (plain, tuned)
    )
    chance = 1.05 if members > 1 else 1.0
    assert after.error[0] < chance * before.error[0]
    assert after.agreement[0] >= max(0.94, before.agreement[0] - 0.015)


@pytest.mark.spikingjelly
@pytest.mark.parametrize("name", ["vgg", "resnet"])
@pytest.mark.parametrize("levels", [4, 8])
def test_a_qcfs_network_in_one_step(name, levels):
    data, model = digits(), load_network(name, "digits", qcfs=levels)
    x = data.test.images
    network = sg.convert(model, data.train.images[:64], method="group", time_steps=1)
    assert {node.members for node in network.neurons} == {levels}
    with torch.no_grad():
        assert torch.equal(sg.run(sg.build(network), x, 1)[1].argmax(1), model(x).argmax(1))


@pytest.mark.spikingjelly
def test_fashion_mnist():
    try:
        data = fashion_mnist()
    except FileNotFoundError:
        pytest.skip("needs Debian's package dataset-fashion-mnist")
    model = load_network("vgg", "fashion")
    batch = [(data.test.images[:100], data.test.labels[:100])]
    network = sg.convert(model, data.train.images[:128], time_steps=32, tune=False)
    result = sg.evaluate(sg.build(network), batch, 32, reference=model)
    assert result.agreement[0] >= 0.95 and result.reference_accuracy >= 0.85
