import gc
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import torch
import torch._export.utils as export_utils

ROOT = Path(__file__).parent.parent
# import networks, gpu_checks, cuda_on_host
sys.path[:0] = [str(ROOT / folder) for folder in ("examples", "benchmarks", "tests")]

os.environ.setdefault("SIGNGD_PROGRESS", "off")  # how far it is, which tests compare output with

torch.use_deterministic_algorithms(True)  # also fills fresh buffers with NaN

# pytest listens to every logger that does not propagate, and torch.export, once somebody listens to
# this one, describes each of its steps: 5 % of a small conversion
logging.getLogger("torch.__trace").propagate = True


def once(look_up: Callable[[], None]) -> Callable[[], None]:
    """torch.export looks up every composite operation by name, 27 times in a conversion, so that
    all are there: 12 % of a small one. They are, until another is registered."""
    known: list[str] = []

    def look_up_new() -> None:
        registered = torch._C._dispatch_get_registrations_for_dispatch_key(
            "CompositeImplicitAutograd"
        )
        if registered != known:
            look_up()
            known[:] = registered

    return look_up_new


export_utils._materialize_cpp_cia_ops = once(export_utils._materialize_cpp_cia_ops)

hypothesis.settings.register_profile("same everywhere", deadline=None, derandomize=True)
hypothesis.settings.load_profile("same everywhere")

# of half a minute, each in processes of its own: begun last they would leave the other core idle
LONG = {
    "test_the_session",
    "test_memory_and_arithmetic_are_sound",
    "test_the_table_of_the_documentation_is_what_the_code_does",
}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.name not in LONG)


def pytest_collection_finish() -> None:
    """A fifth of the time of a conversion went into collecting garbage among modules and tests,
    which stay: they are left out, and the rest is looked through less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.fixture(autouse=True)
def seed() -> int:
    """Every test starts from the same seed, whatever ran before it."""
    torch.manual_seed(0)
    return 0
