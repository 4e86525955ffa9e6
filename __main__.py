"""``python -m spikingjelly_signgd``, also under ``torchrun``."""

import sys

from .cli import main

sys.exit(main())
