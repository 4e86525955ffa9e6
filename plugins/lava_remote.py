"""``exporters.lava.remote``: Lava in an environment of its own, from one that has not."""

from ..exporters.lava.remote import (
    LavaError,
    NetxCheck,
    available,
    lava_python,
    run_netx,
    run_signgd,
    verify_netx,
)

__all__ = [
    "LavaError",
    "NetxCheck",
    "available",
    "lava_python",
    "run_netx",
    "run_signgd",
    "verify_netx",
]
