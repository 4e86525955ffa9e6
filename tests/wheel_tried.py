"""What tests/wheels.py runs with an installed wheel: its kernels, against the definitions."""

import platform
import shutil
import warnings

import torch

import spikingjelly_signgd as sg
from spikingjelly_signgd.neurons import GroupNeuronParameters, group_multi_step, group_step, scan
from spikingjelly_signgd.neurons.kernels.build import LIBRARY, compiler

assert compiler() is None and not shutil.which("c++"), "there is a compiler"
assert "site-packages" in LIBRARY.parts, f"{LIBRARY} is not the installed one"
assert sg.backends()["cpu"] == "", sg.backends()["cpu"]
torch.manual_seed(0)
x, v, p = torch.randn(16, 3, 257), torch.zeros(3, 257), GroupNeuronParameters(4)
with warnings.catch_warnings():
    warnings.simplefilter("error")
    done = group_multi_step(x, v, p)  # a warning where the kernels are missing
expected, last = scan(group_step, x, v, p)
assert torch.equal(done.y, expected) and torch.equal(done.v, last)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 4)).eval()
network = sg.convert(model, torch.randn(64, 8), tune=False)
print(f"Python {platform.python_version()}, torch {torch.__version__}: {network}")
