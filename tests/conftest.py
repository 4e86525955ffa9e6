import sys
from pathlib import Path

import hypothesis
import pytest
import torch

ROOT = Path(__file__).parent.parent
# import networks, gpu_checks, cuda_on_host
sys.path[:0] = [str(ROOT / folder) for folder in ("examples", "benchmarks", "tests")]

torch.use_deterministic_algorithms(True)  # also fills fresh buffers with NaN

hypothesis.settings.register_profile("same everywhere", deadline=None, derandomize=True)
hypothesis.settings.load_profile("same everywhere")


@pytest.fixture(autouse=True)
def seed() -> int:
    """Every test starts from the same seed, whatever ran before it."""
    torch.manual_seed(0)
    return 0
