"""``python -m spikingjelly_signgd.cli``."""

import sys

from . import main

sys.exit(main())
