"""The order of rooms: imports go downwards only and in no circle, and what is heavy is loaded late."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import spectra

ROOT = Path(spectra.__file__).parent
# From the bottom up. Modules of one line may use each other, except those of APART.
ROOMS = [
    {"cgroup", "commands", "defaults", "files", "locks", "quoting", "wording"},
    {
        "errors",
        "arguments",
        "atomic",
        "cache",
        "devices",
        "entries",
        "given_operator",
        "memory",
        "random_numbers",
        "register",
        "transfer",
        "vectors",
    },
    {"operator", "product_checks"},
    {"problem"},
    {"krylov", "curvature"},
    {"systems"},
    {"records"},
    {"inputs"},
    {"demo"},
    {"optimizer"},
    {"resume", "cluster"},
    {"spectrum"},
    {"directions"},
    {"run"},
    {"comparison", "layerwise", "steps", "surfaces", "sweeps"},
    {"plots"},
    {"tables"},
    {"page"},
    {"calls", "cli", "training"},
    {"integrations"},
]
APART = [{"krylov", "curvature"}, {"steps", "surfaces"}]
LEVEL = {name: level for level, names in enumerate(ROOMS) for name in names}
ALONE = {
    "click": {"cli"},
    "matplotlib": {"plots"},
    "torchvision": {"inputs"},
    "transformers": {"inputs", "integrations"},
    "lightning": {"integrations"},
    "timm": {"inputs"},
    "rich": {"tables"},
}
TREES = {
    path: ast.parse(path.read_text())
    for path in sorted(ROOT.rglob("*.py"))
    if path.parent != ROOT or path.stem not in ("__init__", "__main__")
}


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(tree: ast.Module) -> set[str]:
    """The modules that are imported, anywhere in the file."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            found.add(node.module)
    return found


def members(tree: ast.Module) -> set[str]:
    """What `from package import module` may mean."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {f"{node.module}.{alias.name}" for node in nodes for alias in node.names}


def imported() -> Iterator[tuple[Path, str]]:
    """Each file, with each module that it imports."""
    return ((path, name) for path, tree in TREES.items() for name in imports(tree))


def module_name(path: Path) -> str:
    return ".".join(("spectra", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


def test_imports_go_downwards():
    for path, name in imported():
        own, other = room(path), name.split(".")[1] if name.startswith("spectra.") else None
        if other:
            assert LEVEL[other] <= LEVEL[own], f"{path} imports {name}, which lies above it"
            assert {own, other} not in APART, f"{path} imports {name}"


def test_a_package_is_imported_in_its_rooms_alone():
    for path, name in imported():
        allowed = ALONE.get(name.split(".")[0])
        assert allowed is None or room(path) in allowed, f"{path} imports {name}"


def test_only_the_command_line_prints_and_exits():
    for path, tree in TREES.items():
        if room(path) != "cli":
            called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
            assert not called & {"print", "sys.exit", "exit", "quit"}, path


def test_no_circles():
    """Nor by imports inside of functions."""
    names = {module_name(path): path for path in TREES}
    graph = {name: names.keys() & (imports(TREES[path]) | members(TREES[path])) for name, path in names.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


def test_every_module_imports():
    """Without circles each imports alone, too, if it imports at all."""
    for path in TREES:
        if room(path) != "integrations":  # of packages that are slow to import, in tests of their own
            import_module(module_name(path))


@pytest.mark.parametrize("module", ["spectra", "spectra.cli"])
def test_help_needs_nothing_heavy(module):
    heavy = {"torch", "torchvision", "matplotlib", "numpy", "rich", "lightning", "transformers"}
    script = f"import {module}, sys; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_public_name_exists():
    for name in spectra.__all__:
        assert getattr(spectra, name) is not None
