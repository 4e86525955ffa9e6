"""``python -m spikingjelly_signgd.neurons.kernels``: compiles the CPU kernels of this package."""

import sys

from .build import LIBRARY, build, table_functions

try:
    build(LIBRARY, table_functions())
except (RuntimeError, OSError) as error:
    sys.exit(f"the CPU kernels are not built: {error}")
print(f"built {LIBRARY}")
