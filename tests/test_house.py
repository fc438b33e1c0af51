"""The shape of the package: which way imports point, and what `import mlxopt` brings."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

import ast
import json
import re
import subprocess
import sys
import types
from pathlib import Path

import lazy_loader
import pytest

import mlxopt

PACKAGE = Path(mlxopt.__file__).parent

# From the front door down; a module may import only from rooms below its own.
ROOMS = [
    ["__main__"],
    ["cli"],
    ["__init__"],
    ["models"],
    ["_race", "testing"],
    ["inference", "_argmin", "_many", "_saved"],
    ["_least_squares", "_train"],
    ["_minimize", "_epochs"],
    ["many"],
    ["_loop", "_residual_verdict"],
    ["_verdict", "_certificate"],
    ["_point"],
    ["_around"],
    ["optimizers", "_rank"],
    ["_residual_objective", "_curvature"],
    ["_objective"],
    ["problems"],
    ["autodiff"],
    ["_result"],
    ["losses", "data", "plots", "prox", "schedules", "_functional", "_progress", "_resume"],
    ["special", "linalg"],
    ["_stop", "_bounds"],
    ["_platform", "_checks", "_keywords", "_report"],
    ["_krylov", "_dense", "engine"],
    ["_operation", "_tree", "_status"],
    ["_numbers"],
]
LEVEL = {name: level for level, room in enumerate(ROOMS) for name in room}
LAZY = {"matplotlib", "rich", "scipy", "sklearn", "mlxopt"}
# A millisecond or more each.
LAZY |= {"importlib", "subprocess", "shutil", "html", "difflib", "ctypes", "IPython"}
LAZY |= {"threadpoolctl"}


def room_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def imports(tree: ast.AST):
    """Yield (module, names) for each import of the tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node, node.module, [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name, []


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    room = room_of(path)
    assert room in LEVEL, f"give {room} a place in ROOMS"
    for node, module, names in imports(ast.parse(path.read_text())):
        if not module.startswith("mlxopt"):
            continue
        targets = [module.split(".")[1]] if "." in module else (names or ["__init__"])
        for target in targets:
            target = target if target in LEVEL else "__init__"
            if target == room:
                continue  # inside one room
            assert LEVEL[target] > LEVEL[room], f"line {node.lineno}: {room} imports {target}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_heavy_imports_hide_in_functions(path):
    for function in ast.walk(ast.parse(path.read_text())):
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        for node, module, _ in imports(function):
            assert module.split(".")[0] in LAZY, f"line {node.lineno} hides an import of {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_is_read_in_one_sitting(path):
    assert len(path.read_text().splitlines()) <= 400


def test_the_architecture_page_lists_the_rooms():
    page = (PACKAGE.parent / ".github" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    section = page.partition("## The house")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    found = [{re.sub(r"/|\.py$", "", name) for name in re.findall("`(.*?)`", row)} for row in rows]
    assert found == [set(room) for room in ROOMS]


def test_import_brings_nothing_heavy():
    code = "import sys, mlxopt; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = found.stdout.split()
    assert not {"scipy", "matplotlib", "rich", "typer", "sklearn", "pandas"} & {
        name.split(".")[0] for name in modules
    }
    ours = {name for name in modules if name.startswith("mlxopt")}
    # The last, since a process can fork before anything is computed.
    assert ours == {"mlxopt", "mlxopt._platform", "mlxopt._platform.threads"}


def test_a_misspelt_name_is_an_error_with_a_hint():
    with pytest.raises(AttributeError):
        mlxopt.minimise  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
    code = "import mlxopt; mlxopt.minimise"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Did you mean: 'minimize'?" in found.stderr
    with pytest.raises(ImportError):
        from mlxopt.optimizers import LBGFS  # noqa: F401  # pyright: ignore[reportAttributeAccessIssue]


def test_every_public_name_exists_and_is_documented():
    for name in mlxopt.__all__:
        assert getattr(mlxopt, name).__doc__, name


def test_a_missing_backend_says_what_to_install(tmp_path):
    # A stand-in for the bare Linux wheel, whose core cannot find its library.
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx" / "__init__.py").write_text("")
    (tmp_path / "mlx" / "core.py").write_text("raise ImportError('libmlx.so: cannot open')")
    paths = [tmp_path, PACKAGE.parent, Path(lazy_loader.__file__).parents[1]]
    code = f"import sys; sys.path[:0] = {list(map(str, paths))}; import mlxopt"
    found = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=False
    )
    assert found.returncode != 0
    last = found.stderr.strip().splitlines()[-1]
    assert "pip install 'mlxopt[cpu]'" in last
    assert "pip install 'mlxopt[cuda]'" in last
    assert "libmlx.so: cannot open" in last


MODULES = [name for name in mlxopt.__all__ if isinstance(getattr(mlxopt, name), types.ModuleType)]


@pytest.mark.parametrize("name", MODULES)
def test_dir_of_a_module_has_its_public_names_alone(name):
    module = getattr(mlxopt, name)
    names = dir(module)
    assert names == sorted(module.__all__)
    assert not [one for one in names if one.startswith("_")]
    for one in names:
        value = getattr(module, one)
        assert not isinstance(value, types.ModuleType), one
        if callable(value):
            assert value.__module__.startswith("mlxopt."), one
            assert value.__doc__, one


def test_a_type_checker_sees_misspelt_names(tmp_path):
    wrong = ["LBFG", *(f"{name}.{dir(getattr(mlxopt, name))[-1]}x" for name in MODULES)]
    wrong.append("LBFGS(memry=3)")
    right = ["LBFGS(memory=3)", *(f"{name}.{dir(getattr(mlxopt, name))[-1]}" for name in MODULES)]
    script = tmp_path / "script.py"
    lines = ["import mlxopt as mo", *(f"print(mo.{name})" for name in (*right, *wrong))]
    script.write_text("\n".join(lines))
    # A project of its own, which sees the package as one that is installed.
    paths = f'extraPaths = ["{PACKAGE.parent}"]'
    (tmp_path / "pyproject.toml").write_text(f"[tool.pyright]\n{paths}\n")
    found = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "-p", tmp_path],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    reported = json.loads(found.stdout)["generalDiagnostics"]
    errors = {one["range"]["start"]["line"] for one in reported if one["severity"] == "error"}
    assert errors == set(range(1 + len(right), len(lines))), reported
