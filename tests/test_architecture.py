"""The order of layers: imports go downwards only and in no circle, what is heavy is loaded late, no module is long."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import spectra

ROOT = Path(spectra.__file__).parent
# From the bottom up. Modules of one layer may use each other, except krylov and curvature.
LAYERS = [
    {"cgroup", "files", "locks", "quoting", "wording"},
    {"errors", "memory", "vectors"},
    {"operator"},
    {"problem"},
    {"krylov", "curvature"},
    {"inputs"},
    {"records", "demo"},
    {"resume", "cluster"},
    {"spectrum"},
    {"run"},
    {"comparison", "layerwise", "surfaces", "sweeps"},
    {"plots"},
    {"tables"},
    {"page"},
    {"cli", "training"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
ALONE = {
    "click": {"cli"},
    "matplotlib": {"plots"},
    "torchvision": {"inputs"},
    "rich": {"tables"},
}
MODULES = sorted(p for p in ROOT.rglob("*.py") if p.parent != ROOT or p.stem not in ("__init__", "__main__"))


def layer(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
    return found


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_name(path: Path) -> str:
    return ".".join(("spectra", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_downwards(path):
    own = layer(path)
    for module in imports(path):
        parts = module.split(".")
        if parts[0] != "spectra" or len(parts) == 1:
            continue
        assert LEVEL[parts[1]] <= LEVEL[own], f"{own} imports {module}"
        assert {own, parts[1]} != {"krylov", "curvature"}, f"{own} imports {module}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_package_is_imported_in_its_layer_alone(path):
    for module in imports(path):
        allowed = ALONE.get(module.split(".")[0])
        assert allowed is None or layer(path) in allowed, f"{layer(path)} imports {module}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_the_command_line_prints_and_exits(path):
    if layer(path) == "cli":
        return
    called = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
    assert not called & {"print", "sys.exit", "exit", "quit"}


def test_no_circles():
    """Nor by imports inside of functions."""
    names = {module_name(path): path for path in MODULES}
    graph = {name: names.keys() & (imports(path) | members(path)) for name, path in names.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


def members(path: Path) -> set[str]:
    """What `from package import module` may mean."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    return {f"{node.module}.{alias.name}" for node in nodes for alias in node.names}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_is_read_in_one_sitting(path):
    """A longer one holds a second idea: look for it."""
    assert len(path.read_text().splitlines()) <= 300


def test_every_module_imports_alone():
    names = [module_name(path) for path in MODULES]
    script = "import importlib, sys\n" + "\n".join(
        f"[sys.modules.pop(m) for m in list(sys.modules) if m.startswith('spectra')]; importlib.import_module({name!r})"
        for name in names
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["spectra", "spectra.cli"])
def test_help_needs_nothing_heavy(module):
    script = (
        f"import {module}, sys; print({{'torch', 'torchvision', 'matplotlib', 'numpy', 'rich'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_public_name_exists():
    for name in spectra.__all__:
        assert getattr(spectra, name) is not None
