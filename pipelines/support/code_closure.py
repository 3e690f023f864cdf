"""Import closures: which source files a stage or a training runs through, read off import statements without importing.

A closure names what may decide a result. Modules that do not are left out by rule, never one by one for a stage:

- `components.families` itself is the registry: a stage names its model's family, whose own file is an entry;
- what only reports, checks, reads params.yaml or says where things lie and run: ALWAYS_LEFT_OUT. What it hands on is a
  parameter or a dependency of the stage already;
- of trainings, what samples, measures, draws and reads old run folders: LEFT_OUT_OF_TRAINING. It makes previews and
  figures beside the losses; a test traces a training of every family and finds none of it in a loss, a step or a batch.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipelines.support.paths import ROOT

PACKAGES = ("components", "infra", "pipelines")
REGISTRY = "components.families"
ALWAYS_LEFT_OUT = (
    "components.errors",
    "components.config",
    "components.files",
    "infra.config",
    "infra.kuberay",
    "infra.serving",
    "infra.tracking",
    "infra.ray_cluster.local_start",
    "infra.ray_cluster.ray_jobs",
    "infra.ray_cluster.ray_session",
    "infra.ray_cluster.worker_pool",
    "infra.storage.staging",
    "infra.storage.store",
    "pipelines.support.cli",
    "pipelines.support.code_closure",
    "pipelines.support.figure_names",
    "pipelines.support.fitness",
    "pipelines.support.lineage",
    "pipelines.support.machine_faults",
    "pipelines.support.params",
    "pipelines.support.paths",
    "pipelines.support.readiness",
    "pipelines.support.remote",
)
LEFT_OUT_OF_TRAINING = (
    "components.artifacts.old_runs",
    "components.evaluation",
    "components.metrics",
    "components.sampling",
    "infra.storage",
)
TRAINING = ("pipelines.train",)  # what every training runs through, beside its family


def family_names(root: Path = ROOT) -> list[str]:
    """The families that there are: the modules of components/families, but for its base."""
    folder = root / "components/families"
    found = {path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    return sorted(found - {"__init__", "base"})


def of_training(family: str, root: Path = ROOT) -> list[Path]:
    """The files that a training of a family runs through."""
    return closure((*TRAINING, f"{REGISTRY}.{family}"), (*ALWAYS_LEFT_OUT, *LEFT_OUT_OF_TRAINING), root)


def of_stage(verb: str, root: Path = ROOT) -> list[Path]:
    """The files that a stage other than a training runs through; those of its models' families are entries of their
    own."""
    return closure((f"pipelines.{verb}",), ALWAYS_LEFT_OUT, root)


def of_family(family: str, root: Path = ROOT) -> list[Path]:
    """The files that a trained model of a family runs through when it samples, encodes or judges."""
    return closure((f"{REGISTRY}.{family}",), ALWAYS_LEFT_OUT, root)


def closure(entries: Iterable[str], left_out: Iterable[str] = (), root: Path = ROOT) -> list[Path]:
    """The files of modules and of all that they import of this project, inside functions too, with the packages that
    these lie in; relative to `root`, sorted. Raises ValueError for an entry that is no module."""
    stops = (REGISTRY, *left_out)
    found: dict[str, Path] = {}
    todo = list(entries)
    for entry in todo:
        if _file(entry, root) is None:
            raise ValueError(f"{entry}: no module below {root}")
    while todo:
        name = todo.pop()
        path = _file(name, root)
        if path is None or name in found:
            continue
        found[name] = path
        wanted = {*_imported(path, name, root), *_parents(name)}
        todo += [other for other in wanted if other not in found and not _is_left_out(other, stops)]
    return sorted(path.relative_to(root) for path in found.values())


def listing(paths: Iterable[Path], root: Path = ROOT) -> str:
    """A line a file: its sha256 and name. Equal listings are equal code."""
    lines = (f"{hashlib.sha256((root / path).read_bytes()).hexdigest()}  {path.as_posix()}\n" for path in paths)
    return "".join(lines)


def code_hash(paths: Iterable[Path], root: Path = ROOT) -> str:
    return hashlib.sha256(listing(paths, root).encode()).hexdigest()


def _is_left_out(name: str, stops: Iterable[str]) -> bool:
    """Whether a rule names the module or its package; the registry alone stands for itself, not for what it holds."""
    return any(name == stop or (stop != REGISTRY and name.startswith(f"{stop}.")) for stop in stops)


def _file(name: str, root: Path) -> Path | None:
    if name.partition(".")[0] not in PACKAGES:
        return None
    path = root / name.replace(".", "/")
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None


def _parents(name: str) -> Iterator[str]:
    """The packages that importing a module imports first."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _imported(path: Path, name: str, root: Path) -> Iterator[str]:
    """What a module's statements may import; names that are no modules of this project among them."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in _statements(path.read_text()):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(filter(None, [*package.split(".")[: len(package.split(".")) - node.level + 1], base]))
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call):
            yield from _computed(node, name, root)


@functools.cache
def _statements(text: str) -> tuple[ast.AST, ...]:
    """What imports, in a module's text: parsed once, though every closure that holds the module walks it."""
    return tuple(
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
        or (isinstance(node, ast.Call) and _called(node.func) in ("import_module", "__import__"))
    )


def _called(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _computed(call: ast.Call, name: str, root: Path) -> Iterator[str]:
    """The modules that an import by a computed name may mean: all below its beginning, where that is a constant or
    `__name__`. A name that is computed from its beginning on is a library's."""
    wanted = call.args[0] if call.args else None
    if isinstance(wanted, ast.Constant):
        yield str(wanted.value)
    if not isinstance(wanted, ast.JoinedStr):
        return
    first, *rest = wanted.values
    if isinstance(first, ast.FormattedValue) and getattr(first.value, "id", "") == "__name__" and rest:
        prefix = name
    elif isinstance(first, ast.Constant):
        prefix = str(first.value).rpartition(".")[0]
    else:
        return
    folder = root / prefix.replace(".", "/")
    if prefix != REGISTRY and folder.is_dir():
        for file in folder.rglob("*.py"):
            yield ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
