"""Calls that no file of the packages may hold: what runs code out of data, and what writes a file
other than through `runtime.atomic`.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("runtime", "train", "export")
BENCHMARKS = "benchmarks"

CODE_LOADERS = {
    "pickle",
    "cPickle",
    "_pickle",
    "marshal",
    "shelve",
    "dill",
    "cloudpickle",
    "joblib",
}
# What torch.load raises; naming it loads nothing.
ERRORS_ONLY = {"UnpicklingError", "PickleError", "PicklingError"}
RUNNERS = {"eval", "exec", "compile", "__import__"}
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}
YAML_LOADERS = {"yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load"}

WRITERS = {
    "write_text", "write_bytes", "savefig", "imsave", "tofile", "savez", "savez_compressed",
    "savetxt", "touch", "symlink_to", "hardlink_to", "NamedTemporaryFile", "mkstemp", "memmap",
    "open_memmap", "to_filename", "imwrite",
}  # fmt: skip
# By module: their names alone are those of much else.
MODULE_WRITERS = {
    "np.save", "numpy.save", "torch.save", "onnx.save", "onnx.save_model", "nib.save",
    "nibabel.save", "sitk.WriteImage", "shutil.copy", "shutil.copy2", "shutil.copyfile",
    "shutil.copytree", "shutil.move", "os.rename", "os.renames", "os.replace", "os.link",
    "os.symlink", "os.truncate", "os.mkfifo", "json.dump", "yaml.dump",
}  # fmt: skip

ALLOWED_WRITES = {
    "runtime/atomic.py": "the only writer of files",
    "runtime/atomic_directory.py os.replace": "whole directories, filled through runtime.atomic",
    "runtime/atomic_directory.py os.rename": "whole directories, filled through runtime.atomic",
    "runtime/app/uploads.py os.open": "an upload, in a private folder of its visit; a torn one is "
    "refused by the reader",
    "runtime/lock.py os.open": "the empty file by which a part of a cohort is held",
    "runtime/cli/console.py os.open": "the null device, in the place of a closed output",
    "export/run.py cache.save": "our own TimingCacheFile, which goes through runtime.atomic",
    "train/run_dir.py open": "the lock of a run, which is empty",
    "train/board.py SummaryWriter": "TensorBoard's own event files, which it appends to",
}


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def aliases(tree: ast.AST) -> dict[str, str]:
    """What the names that a file imports stand for: {"copy": "shutil.copy", "np": "numpy"}."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname:
                    found[alias.asname] = alias.name
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                found[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return found


def named(node: ast.AST, known: dict[str, str]) -> str:
    """A call's function by the name under which its module has it."""
    name = dotted(node)
    head, dot, rest = name.partition(".")
    return known.get(head, head) + dot + rest


def is_constant(node: ast.AST | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def runs_code(tree: ast.AST) -> Iterator[str]:
    """What could run code that a file holds."""
    known = aliases(tree)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ImportFrom)
            and (node.module or "").partition(".")[0] in CODE_LOADERS
        ):
            yield from (
                f"{node.module}.{alias.name}"
                for alias in node.names
                if alias.name not in ERRORS_ONLY
            )
        elif isinstance(node, ast.Import):
            # Of pickle alone the errors are wanted.
            yield from (
                alias.name
                for alias in node.names
                if alias.name.partition(".")[0] in CODE_LOADERS - {"pickle"}
            )
        elif isinstance(node, ast.Attribute):
            name = named(node, known)
            if name.startswith("pickle.") and name.removeprefix("pickle.") not in ERRORS_ONLY:
                yield name
        elif isinstance(node, ast.Call):
            yield from _call_that_runs_code(node, named(node.func, known))


def _call_that_runs_code(node: ast.Call, name: str) -> Iterator[str]:
    keywords = {keyword.arg: keyword.value for keyword in node.keywords}
    if name in RUNNERS or name in SHELLS or name.removeprefix("ruamel.") in YAML_LOADERS:
        yield name
    if name in ("np.load", "numpy.load") and not is_constant(keywords.get("allow_pickle"), False):
        yield f"{name} without allow_pickle=False"
    if name == "torch.load" and not is_constant(keywords.get("weights_only"), True):
        yield "torch.load without weights_only=True"
    if "shell" in keywords and not is_constant(keywords["shell"], False):
        yield "shell=True"
    # A YAML() that is not told makes objects of tags.
    if name.endswith("YAML") and not (
        isinstance(kind := keywords.get("typ"), ast.Constant) and kind.value == "safe"
    ):
        yield 'YAML without typ="safe"'


def writes(tree: ast.AST) -> Iterator[str]:
    """Calls that write to a path by themselves."""
    known = aliases(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from _call_that_writes(node, named(node.func, known))


def _call_that_writes(node: ast.Call, name: str) -> Iterator[str]:
    last = name.rpartition(".")[2]
    keywords = {keyword.arg: keyword.value for keyword in node.keywords}
    if name.startswith(("runtime.atomic.", "runtime.atomic_directory.")):
        return
    if name == "os.open":
        flags = ast.unparse(node.args[1]) if len(node.args) > 1 else ""
        if any(flag in flags for flag in ("O_WRONLY", "O_RDWR", "O_CREAT", "O_APPEND")):
            yield "os.open"
    elif last in ("open", "fdopen"):
        # open(path, mode), os.fdopen(number, mode) and gzip.open(path, mode), but path.open(mode).
        method = isinstance(node.func, ast.Attribute) and not name.startswith(
            ("os.", "gzip.", "io.", "bz2.", "lzma.", "tarfile.", "zipfile.", "codecs.")
        )
        place = 0 if method else 1
        mode = keywords.get("mode", node.args[place] if len(node.args) > place else None)
        if isinstance(mode, ast.Constant):
            # What a number stands for was opened by os.open, which is looked at itself.
            if last != "fdopen" and isinstance(mode.value, str) and set(mode.value) & set("wax+"):
                yield "open"
        elif mode is not None and not method:
            yield "open with a mode that cannot be read here"
    elif name in MODULE_WRITERS or last in ("SummaryWriter", "ZipFile"):
        if not _into_memory(node, name):
            yield last if last == "SummaryWriter" else name
    elif last in WRITERS:
        if not (last == "savefig" and _into_memory(node, name)):
            yield name or last
    elif last in ("rename", "replace") and _on_a_path(node, last):
        yield f"{name} of a path"
    elif last == "save" and not _into_memory(node, name) and len(node.args) == 1:
        yield name


def _into_memory(node: ast.Call, name: str) -> bool:
    """Whether the target is a stream or an open file, by the names that are used for one here."""
    streams = {"stream", "buffer", "data", "file", "out"}
    return bool(node.args) and any(
        isinstance(argument, ast.Name) and argument.id in streams for argument in node.args
    )


def _on_a_path(node: ast.Call, last: str) -> bool:
    """Whether a method of one argument is that of a path: text is replaced by two."""
    if not isinstance(node.func, ast.Attribute) or len(node.args) != 1 or node.keywords:
        return False
    return last == "rename" or not isinstance(node.func.value, ast.Constant)


def sources(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_nothing_runs_what_a_file_holds() -> None:
    found = [
        f"{name_of(path)}: {fault}"
        for path in sources(*PACKAGES, BENCHMARKS)
        for fault in runs_code(parsed(path))
    ]
    assert found == []


def test_nothing_is_written_past_the_one_writer() -> None:
    found = {
        f"{name_of(path)} {call}"
        for path in sources(*PACKAGES)
        if name_of(path) not in ALLOWED_WRITES
        for call in writes(parsed(path))
    }
    # An excuse that nobody needs any more goes too.
    assert found == set(ALLOWED_WRITES) - {"runtime/atomic.py"}
    assert list(writes(parsed(ROOT / "runtime" / "atomic.py")))


RUN_CODE = [
    "import marshal", "import dill as d", "import joblib", "import shelve",
    "from pickle import load", "from pickle import loads as l", "from joblib import load",
    "import pickle\npickle.load(f)", "import pickle as p\np.loads(b)",
    "import pickle\nread = pickle.Unpickler", "import numpy as np\nnp.load(p)",
    "import numpy as np\nnp.load(p, allow_pickle=True)",
    "import numpy as np\nnp.load(p, mmap_mode='r', allow_pickle=flag)",
    "from numpy import load\nload(p)", "import torch\ntorch.load(p)",
    "import torch\ntorch.load(p, weights_only=False)", "from torch import load as l\nl(p)",
    "eval('1')", "exec(text)", "compile(text, '', 'exec')", "__import__(name)",
    "import yaml\nyaml.load(t)", "import yaml\nyaml.load(t, Loader=yaml.SafeLoader)",
    "from yaml import unsafe_load\nunsafe_load(t)",
    "from ruamel.yaml import YAML\nYAML().load(t)", "import ruamel.yaml as y\ny.YAML(typ='unsafe')",
    "import subprocess\nsubprocess.run(c, shell=True)", "import os\nos.system(c)",
    "from os import system\nsystem(c)", "import subprocess as s\ns.Popen(c, shell=flag)",
    "import os\ndef f():\n    os.popen(c)",
]  # fmt: skip
RUN_NOTHING = [
    "import pickle\ntry:\n    f()\nexcept pickle.UnpicklingError:\n    g()",
    "from pickle import UnpicklingError", "import numpy as np\nnp.load(p, allow_pickle=False)",
    "import torch\ntorch.load(p, map_location='cpu', weights_only=True)",
    "import re\nre.compile(p)", "torch.compile(m)", "model.eval()", "core.compile_model(m)",
    "from ruamel.yaml import YAML\nYAML(typ='safe', pure=True).load(t)", "json.loads(t)",
    "import subprocess\nsubprocess.run(c)", "subprocess.run(c, shell=False)",
]  # fmt: skip

WRITE = [
    "open(p, 'w')", "open(p, mode='a')", "open(p, 'r+b')", "p.open('xb')", "p.open(mode='w')",
    "(a / b).open('ab')", "open(p, m)", "import gzip\ngzip.open(p, 'wb')",
    "from io import open as o\no(p, 'w')", "p.write_text(t)", "Path(p).write_bytes(b)",
    "np.save(p, a)", "np.savez(p, a)", "import numpy\nnumpy.savez_compressed(p, a=a)",
    "from numpy import save\nsave(p, a)", "a.tofile(p)", "torch.save(v, p)", "onnx.save(m, p)",
    "nib.save(i, p)", "figure.savefig(p)", "figure.savefig(folder / 'a.png')",
    "shutil.copy(a, b)", "from shutil import copyfile\ncopyfile(a, b)", "shutil.move(a, b)",
    "os.rename(a, b)", "os.replace(a, b)", "from os import replace\nreplace(a, b)", "a.rename(b)",
    "a.replace(b)", "p.touch()", "p.symlink_to(q)", "os.open(p, os.O_WRONLY | os.O_CREAT)",
    "tempfile.NamedTemporaryFile()", "json.dump(v, open_file)", "image.save(p)",
    "from torch.utils.tensorboard import SummaryWriter\nSummaryWriter(p)",
    "zipfile.ZipFile(p, 'w')", "np.memmap(p, mode='w+')",
]  # fmt: skip
WRITE_NOTHING = [
    "open(p)", "open(p, 'rb')", "p.open()", "p.open('rb')", "os.open(p, os.O_RDONLY)",
    "os.fdopen(os.open(p, flags), 'rb')", "'a'.replace('b', 'c')", "t.replace(a, b)",
    "replace(config, seed=1)", "figure.savefig(stream, format='png')", "torch.save(v, buffer)",
    "image.save(data, 'PNG')", "np.save(file, a)", "ModelDir.open(path)", "json.dumps(v)",
    "from runtime.atomic import write_text\nwrite_text(p, t)",
    "from runtime import atomic\natomic.write_bytes(p, b)", "graph.replace(conv, [folded])",
    "igzip.open(io.BytesIO(stored))", "yaml.dump(v, stream)", "p.mkdir()", "shutil.rmtree(p)",
]  # fmt: skip


@pytest.mark.parametrize("code", RUN_CODE)
def test_the_check_sees_what_runs_code(code: str) -> None:
    assert list(runs_code(ast.parse(code)))


@pytest.mark.parametrize("code", RUN_NOTHING)
def test_the_check_leaves_alone_what_runs_nothing(code: str) -> None:
    assert list(runs_code(ast.parse(code))) == []


@pytest.mark.parametrize("code", WRITE)
def test_the_check_sees_what_writes(code: str) -> None:
    assert list(writes(ast.parse(code)))


@pytest.mark.parametrize("code", WRITE_NOTHING)
def test_the_check_leaves_alone_what_does_not_write(code: str) -> None:
    assert list(writes(ast.parse(code))) == []
