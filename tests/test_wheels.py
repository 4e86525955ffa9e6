"""The binary wheel: what it is called, what lies in it, and that it runs without a compiler."""

import sys
import zipfile

import pytest
import wheels

from spikingjelly_signgd.neurons.kernels.build import LIBRARY, build, compiler, table_functions

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler"),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return wheels.built(tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("scratch"))


def test_one_wheel_for_every_python_of_a_platform(wheel):
    assert "-py3-none-" in wheel.name and not wheel.name.endswith("-any.whl")
    assert not sys.platform.startswith("linux") or "-manylinux_2_" in wheel.name


def test_the_library_in_it_is_that_of_any_build(wheel, tmp_path):
    """Bit for bit: where the package lay when it was compiled is not in it."""
    build(tmp_path / LIBRARY.name, table_functions())
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".so")]
        assert name == f"spikingjelly_signgd/neurons/kernels/{LIBRARY.name}"
        assert archive.read(name) == (tmp_path / LIBRARY.name).read_bytes()


def test_it_runs_where_there_is_no_compiler(wheel, tmp_path):
    assert "SpikingNetwork(" in wheels.tried(wheel, sys.executable, tmp_path)
