import sys
from pathlib import Path

import hypothesis
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))  # import networks

torch.use_deterministic_algorithms(True)  # also fills fresh buffers with NaN

hypothesis.settings.register_profile("same everywhere", deadline=None, derandomize=True)
hypothesis.settings.load_profile("same everywhere")


@pytest.fixture(autouse=True)
def seed() -> int:
    """Every test starts from the same seed, whatever ran before it."""
    torch.manual_seed(0)
    return 0
