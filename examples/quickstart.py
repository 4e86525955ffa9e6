"""The ten lines of the README: python examples/quickstart.py"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.analysis import count_operations

torch.manual_seed(0)
digits = load_digits()
x, y = torch.tensor(digits.images / 16).float().unsqueeze(1), torch.tensor(digits.target)
body = [nn.Conv2d(1, 16, 3), nn.GELU(), nn.MaxPool2d(2)]
model = nn.Sequential(*body, nn.Flatten(), nn.LayerNorm(144), nn.Linear(144, 10))
adam = torch.optim.Adam(model.parameters(), 0.01)
for _ in range(100):
    adam.zero_grad()
    nn.functional.cross_entropy(model(x[:1200]), y[:1200]).backward()
    adam.step()

print(sg.check(model, x[:2]))  # what each operation becomes
network = sg.convert(model, x[:256])  # calibrated on these images
snn = sg.build(network, "spikingjelly")  # an nn.Module of SpikingJelly nodes
print(sg.evaluate(snn, [(x[1200:], y[1200:])], reference=model))
c = count_operations(snn, x[1200:1300])
print(f"{c.spikes / c.neurons:.1f} spikes a neuron, {c.additions_per_mac:.1f} additions a MAC")
sg.save(network, "digits.h5")  # load() needs neither the model nor its code
print(sg.verify("digits.h5", x[:8], network=network).ok)  # read back, replayed, all spikes compared
