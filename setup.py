"""Builds the CPU kernels with the package; what else there is to say is in pyproject.toml.

They are a plain library that ctypes loads, so one wheel serves every Python.
"""

import importlib.util
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

KERNELS = Path(__file__).parent / "neurons" / "kernels"


class BuildKernels(build_ext):
    """A plain library for ctypes, with the kernels for several instruction sets."""

    def get_ext_filename(self, fullname: str) -> str:
        return f"{fullname.replace('.', '/')}.so"

    def build_extension(self, ext: Extension) -> None:
        spec = importlib.util.spec_from_file_location("kernels_build", KERNELS / "build.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        try:
            module.build(Path(self.get_ext_fullpath(ext.name)), module.table_functions())
        except RuntimeError as error:  # the package works without, and says so when asked
            print(f"the CPU kernels are not built: {error}", file=sys.stderr)


class AnyPython(bdist_wheel):
    """A wheel for a platform, whatever the Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("spikingjelly_signgd.neurons.kernels._cpu", [], optional=True)],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": AnyPython},
)
