"""The house's own rules: who imports whom, what the runtime may need, what is never written."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("runtime", "train", "export")
MAX_LINES = 350
LONGER: frozenset[str] = frozenset()  # excused: none today


def files(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


SOURCES = files(*PACKAGES)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported anywhere in a file, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name | ast.Attribute)
            and (node.func.id if isinstance(node.func, ast.Name) else node.func.attr)
            in ("import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield str(node.args[0].value)


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


FORBIDDEN = {
    "runtime": {"train", "export", "benchmarks", "tests", "torch", "torchio", "onnx", "monai"},
    "train": {"export", "benchmarks", "tests"},
    "export": {"benchmarks", "tests"},
}


@pytest.mark.parametrize("package", PACKAGES)
def test_arrows_point_one_way(package: str) -> None:
    wrong = [
        f"{name_of(path)} imports {module}"
        for path in files(package)
        for module in imported(parsed(path))
        if module.partition(".")[0] in FORBIDDEN[package]
    ]
    assert wrong == []


def test_nothing_imports_the_app_and_nothing_imports_relatively() -> None:
    wrong = [
        f"{name_of(path)} imports {module}"
        for path in SOURCES
        for module in imported(parsed(path))
        if module.startswith(".")
        or (module.startswith("runtime.app") and "app" not in path.relative_to(ROOT).parts)
    ]
    assert wrong == []


def test_the_check_of_arrows_sees_every_way_to_import() -> None:
    code = (
        "import a.b\ndef f():\n    from c.d import e\n    import_module('g')\n    from . import h"
    )
    assert sorted(imported(ast.parse(code))) == [".", "a.b", "c.d", "g"]


IMPORT_ALL = """
import importlib, pkgutil, sys

BLOCKED = {"torch", "torchio", "onnx", "onnxscript", "monai", "cupy", "tensorrt", "streamlit"}
BLOCKED |= {"train", "export"}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
import runtime
done = []
for module in pkgutil.walk_packages(runtime.__path__, "runtime."):
    # The page is a script of Streamlit's, and the other needs what only a GPU machine has.
    if module.name.startswith(("runtime.app", "runtime.ops.cupy")):
        continue
    importlib.import_module(module.name)
    done.append(module.name)
assert not BLOCKED & set(sys.modules), BLOCKED & set(sys.modules)
print(" ".join(done))
"""


def test_the_runtime_needs_neither_torch_nor_onnx() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IMPORT_ALL],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    imported_now = set(done.stdout.split())
    assert {
        "runtime.segmenter", "runtime.cli.infer", "runtime.backends.ort",
        "runtime.backends.openvino", "runtime.nifti", "runtime.cohort",
        "runtime.backends.trt", "runtime.backends.ort_cuda", "runtime.engine",
    } <= imported_now  # fmt: skip


def test_a_case_is_segmented_without_scipy() -> None:
    """To load it takes as long as a case takes around the network; a card's rules may need it."""
    begin = "runtime.cli.infer, runtime.cli.infer_view, runtime.cohort, runtime.backends.openvino"
    # nibabel loads the package itself, which has next to nothing in it.
    code = f"import sys, {begin}; print([m for m in sys.modules if m.startswith('scipy.')])"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True, text=True, cwd=ROOT, timeout=120, check=True,
    )  # fmt: skip
    loaded = {"scipy.ndimage", "scipy.spatial", "scipy.sparse", "scipy.linalg"}
    assert not [name for name in loaded if f"'{name}'" in done.stdout], done.stdout


def test_gpu_libraries_are_imported_in_one_place_each() -> None:
    """CuPy behind the array operations; TensorRT, of either name, where it is looked for."""
    importers = {
        library: {
            name_of(path)
            for path in SOURCES
            for module in imported(parsed(path))
            if module.partition(".")[0] == library
        }
        for library in ("cupy", "tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
    }
    assert importers.pop("cupy") <= {
        f"runtime/ops/{name}.py" for name in ("cupy", "cupy_kernels", "cupy_staging")
    }
    # By name, from a list of names.
    assert set().union(*importers.values()) == set()


def test_no_module_is_a_drawer() -> None:
    drawers = {"utils", "util", "common", "helpers", "helper", "misc"}
    found = [name_of(path) for path in SOURCES if drawers & {path.stem, *path.parent.parts}]
    assert found == []


def test_files_stay_short() -> None:
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in SOURCES}
    too_long = {name: length for name, length in lengths.items() if length > MAX_LINES}
    assert set(too_long) == LONGER, too_long


def test_tests_do_not_shadow_a_package() -> None:
    for package in PACKAGES:
        assert not (ROOT / "tests" / package / "__init__.py").exists()


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def faults(tree: ast.AST) -> Iterator[str]:
    """What a reviewer would send back, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield "a bare except"
        elif isinstance(node, ast.Assert):
            yield "an assert, which -O removes"
        elif isinstance(node, ast.ImportFrom) and node.module in ("pickle", "dill", "cloudpickle"):
            yield "an import from pickle"
        elif isinstance(node, ast.Attribute) and dotted(node).startswith("pickle."):
            # The error that torch.load raises is all that anyone may want of it.
            if node.attr != "UnpicklingError":
                yield f"pickle.{node.attr}"
        elif isinstance(node, ast.Call):
            keywords = {keyword.arg: keyword.value for keyword in node.keywords}
            if dotted(node.func) == "torch.load":
                safe = keywords.get("weights_only")
                if not (isinstance(safe, ast.Constant) and safe.value is True):
                    yield "torch.load without weights_only=True"
            if isinstance(allowed := keywords.get("allow_pickle"), ast.Constant) and allowed.value:
                yield "allow_pickle"
            if dotted(node.func) in ("eval", "exec"):
                yield dotted(node.func)


def test_no_file_holds_what_a_reviewer_would_send_back() -> None:
    found = [f"{name_of(path)}: {fault}" for path in SOURCES for fault in faults(parsed(path))]
    assert found == []


def test_pytorch_files_are_read_in_one_place() -> None:
    readers = {
        name_of(path)
        for path in SOURCES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and dotted(node.func) == "torch.load"
    }
    assert readers == {"train/torch_file.py"}


def test_the_check_of_faults_sees_them() -> None:
    code = """
try:
    assert x
except:
    torch.load(p)
    torch.load(p, weights_only=False)
    torch.load(p, weights_only=True)
    pickle.loads(b)
    np.load(p, allow_pickle=True)
    eval("1")
"""
    assert len(list(faults(ast.parse(code)))) == 7
