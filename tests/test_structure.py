"""Imports point one way, and files stay small enough to read."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "src" / "sarathi"
# A package may import those below it, and the shared ones.
LAYERS = (
    ("cli",),
    ("simulator",),
    ("bench", "server"),
    ("fleet",),
    ("engine",),
    ("backends",),
    ("sampling",),
    ("models",),
)
# Each of these may import those before it.
SHARED = ("errors", "units", "bounds", "options", "system", "scheduler", "telemetry")
FILES = sorted(ROOT.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield str(node.module)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def imports_at_load(path: Path) -> Iterator[str]:
    """What is imported while the module is: neither in functions nor for the type checker."""
    pending: list[ast.AST] = [ast.parse(path.read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in MODULES else str(node.module)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending.extend(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            pending.extend(ast.iter_child_nodes(node))


def repeated(named: Iterable[tuple[str, Path]]) -> dict[str, list[Path]]:
    found = defaultdict(list)
    for name, path in named:
        found[name].append(path)
    return {name: paths for name, paths in found.items() if len(paths) > 1}


def package(module: str) -> str:
    parts = module.split(".")
    return parts[1] if parts[0] == "sarathi" and len(parts) > 1 else ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    own = path.relative_to(ROOT).parts[0]
    depth = next((depth for depth, layer in enumerate(LAYERS) if own in layer), None)
    if depth is None:
        return
    below = {name for layer in LAYERS[depth + 1 :] for name in layer}
    assert {package(module) for module in imports(path)} <= {own, *below, *SHARED, ""}


@pytest.mark.parametrize("own", SHARED)
def test_what_all_may_import_imports_no_layer(own: str) -> None:
    module = ROOT / f"{own}.py"
    before = SHARED[: SHARED.index(own)]
    for path in [module] if module.exists() else (ROOT / own).rglob("*.py"):
        assert {package(module) for module in imports(path)} <= {own, *before, ""}, path


def test_the_scheduler_needs_nothing_but_the_standard_library() -> None:
    for path in (ROOT / "scheduler").rglob("*.py"):
        for module in imports(path):
            top = module.split(".")[0]
            assert top in sys.stdlib_module_names or module.startswith("sarathi.scheduler"), path


def test_the_http_process_loads_no_executor() -> None:
    """It would take its memory and its start-up time; the engine process has it."""
    heavy = "('openvino', 'gguf', 'torch')"
    look = f"import sarathi.server.run, sys; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_only_the_torch_backend_imports_torch() -> None:
    for path in FILES:
        found = {module.split(".")[0] for module in imports(path)}
        assert "transformers" not in found, path
        if ROOT / "backends" / "torch" not in path.parents:
            assert not found & {"torch", "triton"}, path


@pytest.mark.parametrize("module", ["cli.main", "engine.process", "engine.llm", "server.run"])
def test_torch_is_loaded_by_those_who_ask_for_its_executor(module: str) -> None:
    """It takes seconds, and is not installed everywhere."""
    look = f"import sarathi.{module}, sys; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 600


def test_no_import_at_module_level_is_circular() -> None:
    graph = {
        name: {module for module in imports_at_load(path) if module in MODULES and module != name}
        for name, path in MODULES.items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_every_module_has_a_name_of_its_own() -> None:
    """Those of `cli` are named after their commands."""
    modules = [path for path in FILES if path.name != "__init__.py"]
    assert repeated((path.stem, path) for path in modules if path.parent != ROOT / "cli") == {}


def test_every_public_class_has_a_name_of_its_own() -> None:
    classes = (
        (node.name, path)
        for path in FILES
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert repeated(classes) == {}


@pytest.mark.parametrize("path", sorted(ROOT.rglob("__init__.py")), ids=str)
def test_every_package_is_described(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_every_folder_of_modules_is_a_package() -> None:
    assert {path.parent for path in FILES if not (path.parent / "__init__.py").exists()} == set()
