import ast
import inspect
import os
import pickle
import pydoc
import re
import subprocess
import sys
import tomllib
from importlib import import_module, metadata
from pathlib import Path

import pytest

import spikingjelly_signgd as sg

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
FROM_SIMULATOR = {name for name, home in sg._HOME.items() if home.startswith("plugins.")}
FROM_SIMULATOR -= set(sg.plugins.forms.__all__)  # of networks of any, and of none

# Blocks what is not torch's own, as if it were not installed.
TORCH_ALONE = """
import sys

class Absent:
    names = set("cupy h5py loguru matplotlib nir nirtorch norse numpy safetensors scipy sklearn "
                "spikingjelly tqdm".split())

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import spikingjelly_signgd as sg
"""


def run_torch_alone(code: str, cwd: Path) -> None:
    subprocess.run([sys.executable, "-c", TORCH_ALONE + code], check=True, cwd=cwd)


def test_every_package_is_in_the_wheel():
    folders = {f.parent for top in ROOT.glob("*/__init__.py") for f in top.parent.rglob(top.name)}
    found = {".".join(["spikingjelly_signgd", *f.relative_to(ROOT).parts]) for f in folders}
    assert found | {"spikingjelly_signgd"} == set(SETUPTOOLS["packages"])


def test_tests_see_this_checkout():
    assert Path(sg.__file__).parent == ROOT


def test_versions_agree():
    assert SETUPTOOLS["dynamic"]["version"] == {"attr": "spikingjelly_signgd.__version__"}
    assert f"version: {sg.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_import_loads_nothing(tmp_path):
    run_torch_alone("assert 'torch' not in sys.modules", tmp_path)


def test_only_the_plugins_need_more_than_torch(tmp_path):
    names = sorted(set(sg.__all__) - FROM_SIMULATOR)
    run_torch_alone(f"for name in {names}: getattr(sg, name)", tmp_path)


@pytest.mark.spikingjelly
@pytest.mark.parametrize("name", sg.__all__)
def test_public_name(name):
    assert getattr(sg, name) is not None


def test_type_checkers_see_the_same_names():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    (block,) = [n for n in tree.body if isinstance(n, ast.If)]
    seen = {a.name: n.module for n in block.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert seen == sg._HOME | dict.fromkeys(sg._FOLDERS)
    assert set(sg.__all__) == set(seen)
    assert set(sg.__all__) <= set(dir(sg))


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        sg.no_such_name  # noqa: B018


@pytest.mark.parametrize(
    ("name", "ask"),
    [
        ("spikingjelly", lambda: sg.plugins.spikingjelly),
        ("spikingjelly", lambda: sg.SignGDNode),
        ("norse", lambda: sg.plugins.norse),
        ("norse", lambda: import_module("spikingjelly_signgd.plugins.norse")),
        ("norse", lambda: sg.build(None, "norse")),  # type: ignore[arg-type]
    ],
)
def test_missing_simulator_says_the_fix(monkeypatch, name, ask):
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    for module in [m for m in sys.modules if m.startswith(f"{name}.")]:
        monkeypatch.delitem(sys.modules, module)
    # a test before may have loaded the plugin
    loaded = [m for m in sys.modules if m.startswith(f"spikingjelly_signgd.plugins.{name}")]
    for module in loaded:
        monkeypatch.delitem(sys.modules, module)
    if name in vars(sg.plugins):
        monkeypatch.delattr(sg.plugins, name)
    fix = rf"pip install 'spikingjelly-signgd\[{name}\]' torch==\d+\.\d+\.\d+ "
    with pytest.raises(sg.BackendUnavailable, match=fix) as raised:
        ask()
    assert isinstance(raised.value, sg.SignGDError)
    assert isinstance(raised.value, ImportError)


@pytest.mark.parametrize(
    "plugin", sorted({*sg.plugins.__all__} - {"forms", "lava", "lava_remote", "op_counter"})
)
def test_every_plugin_has_its_extra(plugin):
    """But Lava, which goes into an environment of its own, what SpikingJelly's extra brings, and
    what works with the nodes of any."""
    assert plugin in PROJECT["project"]["optional-dependencies"]


def test_unsupported_operation_keeps_its_blockers():
    error = pickle.loads(pickle.dumps(sg.UnsupportedOperation("two blockers", ("a", "b"))))
    assert str(error) == "two blockers"
    assert error.blockers == ["a", "b"]


@pytest.mark.spikingjelly
def test_simulator_is_the_version_meant():
    """The version asked for by the Makefile is the one imported, not only the one on record."""
    import spikingjelly
    from spikingjelly.activation_based import functional

    version = metadata.version("spikingjelly")
    assert version == os.environ.get("SPIKINGJELLY_VERSION", version)
    record = metadata.distribution("spikingjelly").locate_file("spikingjelly/__init__.py")
    assert Path(str(record)).samefile(spikingjelly.__file__)
    assert hasattr(functional, "set_backend") == (version == "0.0.0.0.14")  # gone in 2.0.0


# -- docstrings -----------------------------------------------------------------------------------


def public_callables():
    for folder in (sg, sg.analysis, sg.converters, sg.exporters):
        for name in set(folder.__all__) - FROM_SIMULATOR:
            found = getattr(folder, name)
            if inspect.isclass(found) or inspect.isfunction(found):
                yield f"{folder.__name__.rpartition('.')[2]}.{name}", found


CALLABLES = dict(sorted(public_callables()))


@pytest.mark.parametrize("name", CALLABLES)
def test_every_public_callable_is_described(name):
    """What it is, and of a function what it raises and how its tensors are shaped."""
    found = CALLABLES[name]
    text = inspect.getdoc(found)
    assert text and not text.startswith(f"{found.__name__}("), "a dataclass's own"
    if inspect.isfunction(found):
        source = inspect.getsource(inspect.unwrap(found))
        assert "raise " not in source or re.search(r"\b[Rr]aises?\b", text), "what it raises"
        signature = source[: source.index(":\n")]
        assert ": Tensor" not in signature or "[" in text, "the shape"


@pytest.mark.parametrize("name", ["check", "convert", "search", "tune", "run", "evaluate"])
def test_help_fits_a_screen(name):
    """Of 60 lines of 80 characters, signature included."""
    lines = pydoc.plain(pydoc.render_doc(getattr(sg, name))).splitlines()
    assert sum(-(-max(len(line), 1) // 80) for line in lines) <= 60


def test_an_unknown_name_loads_nothing():
    """pytest asks the root of a checkout for names of its own, by another name of the package."""
    code = (
        "import sys, spikingjelly_signgd as sg\n"
        "assert not hasattr(sg, 'setup_module')\n"
        "assert 'spikingjelly_signgd.neurons' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
