"""The arrows of DESIGN: `clear` is the core, stages never import each other, only the surface looks upward."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STAGES = ("extract", "aggregate", "pretrain")
SURFACE = {"clear/api.py", "clear/cli.py"}


def imports(path: Path) -> set[str]:
    """Top-level packages that a module imports, wherever in it; imports for type checkers only do not count."""
    found = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def modules(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, f"{package} has no modules"
    return found


def test_the_core_imports_no_stage() -> None:
    upward = {str(path.relative_to(ROOT)) for path in modules("clear") if imports(path) & set(STAGES)}
    assert upward <= SURFACE


@pytest.mark.parametrize("stage", STAGES)
def test_stages_never_import_each_other(stage: str) -> None:
    others = set(STAGES) - {stage}
    assert {str(path): imports(path) & others for path in modules(stage) if imports(path) & others} == {}


def test_no_module_is_called_utils() -> None:
    names = {path.stem for package in ("clear", *STAGES) for path in modules(package)}
    assert not {name for name in names if "util" in name or "helper" in name or "misc" in name}


@pytest.mark.parametrize("statement", ["import clear", "import clear.cli"])
def test_importing_clear_loads_neither_torch_nor_a_stage(statement: str) -> None:
    code = f"import sys; {statement}; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.split()
    assert "clear" in loaded
    assert not {"torch", "numpy", "polars", "timm", *STAGES} & set(loaded)
