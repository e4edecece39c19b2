"""The rules of who may import whom, beside the contracts that `make check` reads from pyproject.toml.

import-linter forbids what it is given by name; these tests allow pure modules only what they need, look into
functions and strings of modules for heavy imports, and keep the contracts themselves complete.
"""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("cluster", "serving", "router")
MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for package in PACKAGES
    for file in sorted((ROOT / package).rglob("*.py"))
}
CONTRACTS = {
    contract["id"]: contract
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
}
PURE: list[str] = CONTRACTS["pure"]["source_modules"]
PURE_MAY_IMPORT = {
    *(
        "abc",
        "base64",
        "bisect",
        "codecs",
        "collections",
        "concurrent",
        "copy",
        "dataclasses",
        "enum",
        "fractions",
        "functools",
        "hashlib",
    ),
    *(
        "heapq",
        "hmac",
        "ipaddress",
        "itertools",
        "json",
        "math",
        "msgspec",
        "operator",
        "re",
        "shlex",
        "statistics",
        "string",
        "struct",
        "typing",
    ),
    *("unicodedata", "urllib"),
}
PURE_MAY_NOT_CALL = {"open", "print", "input", "exec", "eval", "breakpoint", "__import__"}
ONE_FILE = {
    "cryptography": "cluster.certificates",
    "ray": "cluster.ray_cluster",
    "jeepney": "cluster.logind",
    "llama_cpp": "serving.llama_engine",
    "huggingface_hub": "serving.hub_fetch",
    "llguidance": "serving.constraint",
    "pynvml": "cluster.gpu_probe",
    "textual": "router.top",
    "vllm": None,
    "zeroconf": "cluster.mdns",
}
SET_UP = (
    "cluster",
    "cluster.bootstrap",
    "cluster.commands",
    "cluster.install",
    "cluster.llama_build",
    "cluster.llama_wheel",
    "cluster.stamp",
)


def imports(module: str) -> Iterator[str]:
    """Every module that a module imports, wherever the import stands; `from x import y` gives x and x.y."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        match node:
            case ast.Import(names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(source, names):
                assert source is not None
                yield source
                yield from (f"{source}.{alias.name}" for alias in names)
            case ast.Call(
                ast.Name("__import__") | ast.Attribute(attr="import_module"), [ast.Constant(str(name)), *_]
            ):
                yield name


def top(name: str) -> str:
    return name.partition(".")[0]


@pytest.mark.parametrize("module", PURE)
def test_a_pure_module_imports_plain_values_and_other_pure_modules_only(module: str) -> None:
    for name in imports(module):
        ours = top(name) in PACKAGES
        allowed = any(name == pure or name.startswith(f"{pure}.") for pure in PURE) or name in PACKAGES
        assert allowed if ours else top(name) in PURE_MAY_IMPORT, f"{module} imports {name}"


def test_a_module_that_calls_itself_pure_is_held_to_it() -> None:
    claims = {
        module
        for module, file in MODULES.items()
        if re.search(r"\bPure\b", ast.get_docstring(ast.parse(file.read_text())) or "")
    }
    assert claims <= set(PURE)


@pytest.mark.parametrize("module", PURE)
def test_a_pure_module_reads_and_prints_nothing(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text())
    called = {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not called & PURE_MAY_NOT_CALL


@pytest.mark.parametrize(("library", "home"), ONE_FILE.items())
def test_a_heavy_library_is_imported_in_its_one_file_only(library: str, home: str | None) -> None:
    importers = {module for module in MODULES if any(top(name) == library for name in imports(module))}
    assert importers <= {home}, f"{library} is imported by {sorted(importers)}"


@pytest.mark.parametrize("module", ["router.cli", "serving.controller", "serving.host", "serving.keeper"])
def test_what_only_a_join_needs_is_loaded_for_a_join_only(module: str) -> None:
    look = f"import sys, {module}; sys.exit('zeroconf' in sys.modules)"
    subprocess.run([sys.executable, "-c", look], cwd=ROOT, check=True)


@pytest.mark.parametrize("library", ["matplotlib", "textual"])
def test_what_draws_is_loaded_by_the_commands_that_draw_only(library: str) -> None:
    look = f"import sys, router.cli; sys.exit({library!r} in sys.modules)"
    subprocess.run([sys.executable, "-c", look], cwd=ROOT, check=True)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_from_router_to_serving_to_cluster(module: str) -> None:
    mine = PACKAGES.index(top(module))
    for name in imports(module):
        if top(name) in PACKAGES:
            assert PACKAGES.index(top(name)) <= mine, f"{module} imports {name}"


@pytest.mark.parametrize("module", SET_UP)
def test_set_up_needs_nothing_but_the_standard_library(module: str) -> None:
    for name in imports(module):
        assert top(name) in sys.stdlib_module_names or name in SET_UP or name.rpartition(".")[0] in SET_UP, (
            name
        )


@pytest.mark.parametrize("module", MODULES)
def test_every_module_begins_with_what_it_is_for(module: str) -> None:
    assert ast.get_docstring(ast.parse(MODULES[module].read_text()))


def test_each_heavy_library_has_a_contract() -> None:
    for library, home in ONE_FILE.items():
        contract = CONTRACTS[library]
        assert contract["forbidden_modules"] == [library]
        assert contract["source_modules"] == list(PACKAGES)
        assert contract.get("ignore_imports", []) == ([f"{home} -> {library}"] if home else [])
