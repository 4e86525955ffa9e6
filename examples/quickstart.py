"""The quick start of the README: python examples/quickstart.py"""

from data import digits
from networks import load_network

import spikingjelly_signgd as sg
from spikingjelly_signgd.analysis import count_operations

data = digits()
model = load_network("vgg", "digits")  # any trained torch.nn.Module

print(sg.check(model, data.train.images[:2]))  # what each operation becomes
network = sg.convert(model, data.train.images[:256])  # calibrated on these images
print(network)

snn = sg.build(network, "spikingjelly")  # an nn.Module of SpikingJelly nodes
test = [(data.test.images, data.test.labels)]
print(sg.evaluate(snn, test, reference=model))
cost = count_operations(snn, data.test.images[:100])
sent, added = cost.spikes / cost.neurons, cost.additions_per_mac
print(f"{sent:.1f} spikes a neuron, {added:.1f} additions a MAC")

sg.save(network, "vgg.h5")  # load() needs neither the model nor its code
