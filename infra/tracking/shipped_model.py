"""A version as MLflow's pyfunc loads it where this project is not: sampler, candidate, pictures, and the code of
components/ as a package of a name that no other version and no application has.
"""

from __future__ import annotations

import ast
import hashlib
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from components.artifacts import pyfunc, run_folder
from components.config import Strict
from components.families.base import Sampler
from components.files import write_json

_COMPONENTS = Path(pyfunc.__file__).parents[1]
# what loading a version needs beside Python; importing each is a second's work that MLflow's own guess would do
_REQUIREMENTS = ("torch", "numpy", "pydantic", "safetensors", "pillow", "pandas")


def save(target: Path, folder: Path, content: str, candidate: Mapping[str, Any], pictures: Mapping[str, bytes]) -> None:
    """Writes an MLflow model into the folder `target`. `folder`: a sampler's run folder; `content`: what tells the
    version from others."""
    import mlflow.pyfunc

    sampler = run_folder.load(folder).family
    assert isinstance(sampler, Sampler)
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary) / "champion"
        shutil.copytree(folder, data / pyfunc.SAMPLER)
        write_json(data / pyfunc.CANDIDATE, dict(candidate))
        for name, png in pictures.items():
            (data / name).write_bytes(png)
        package = package_name(content)
        write_package(Path(temporary) / package)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it would sample an example at every promotion
            mlflow.pyfunc.save_model(
                target,
                loader_module=f"{package}.{pyfunc.__name__.partition('.')[2]}",
                data_path=str(data),
                code_paths=[str(Path(temporary) / package)],
                signature=signature(sampler, candidate["settings"]),
                pip_requirements=requirements(sampler),
            )


def package_name(content: str) -> str:
    """Of a version's own package: by what is registered and the code that it is registered with."""
    digest = hashlib.sha256(content.encode())
    for path in _modules():
        digest.update(f"{path.relative_to(_COMPONENTS).as_posix()}\0".encode() + path.read_bytes())
    return f"latent_foundry_{digest.hexdigest()[:16]}"


def _modules() -> list[Path]:
    return sorted(_COMPONENTS.rglob("*.py"))


def write_package(target: Path) -> None:
    """components/ as a package of the folder's name, its imports of itself by that name."""
    for path in _modules():
        place = target / path.relative_to(_COMPONENTS)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(renamed(path.read_text(), _COMPONENTS.name, target.name))


def renamed(source: str, old: str, new: str) -> str:
    """A module's source with imports of the package `old`, and names of its modules in strings, as those of `new`."""
    lines = source.splitlines(keepends=True)
    places = {place for node in ast.walk(ast.parse(source)) for place in _mentions(node, old)}
    for line, column in sorted(places, reverse=True):
        text = lines[line - 1].encode()  # columns count bytes
        start = text.index(old.encode(), column)
        lines[line - 1] = (text[:start] + new.encode() + text[start + len(old) :]).decode()
    return "".join(lines)


def _mentions(node: ast.AST, package: str) -> list[tuple[int, int]]:
    """The lines and columns from which on a node names the package next. Raises ValueError of `import package.x`
    without `as`, which binds the package's own name."""

    def is_inside(name: str | None) -> bool:
        return name is not None and (name == package or name.startswith(f"{package}."))

    if isinstance(node, ast.ImportFrom) and not node.level and is_inside(node.module):
        return [(node.lineno, node.col_offset)]
    if isinstance(node, ast.Import):
        inside = [alias for alias in node.names if is_inside(alias.name)]
        if any(alias.asname is None for alias in inside):
            raise ValueError(f"line {node.lineno}: expected `from {package}... import ...`")
        return [(alias.lineno, alias.col_offset) for alias in inside]
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(f"{package}."):
        return [(node.lineno, node.col_offset)]
    return []


def requirements(sampler: Sampler) -> list[str]:
    """What loading a sampler needs, at the versions that are installed here."""
    return [f"{name}=={version(name).partition('+')[0]}" for name in (*_REQUIREMENTS, *sampler.libraries)]


def signature(sampler: Sampler, settings: Mapping[str, Any]):
    """What a version takes and gives: columns seed and label or prompt, settings as parameters, those of a composite's
    parts as `redraw.solver`, and the medium's arrays: images are (N, H, W, C) uint8.

    Numbers in columns are of any type: pandas keeps integers with gaps as floats or objects, and none at all as
    objects, which MLflow refuses where it was told `long`, in many lines. The sampler says itself what it expects."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, Schema, TensorSpec
    from mlflow.types.schema import AnyType

    columns = [ColSpec(AnyType(), "seed")]
    if sampler.conditional:
        columns.append(ColSpec(AnyType(), "label", required=False))
    if sampler.texts:
        columns.append(ColSpec("string", "prompt", required=False))
    params = list(_params(sampler.Settings, settings))
    medium = sampler.medium
    made = TensorSpec(np.dtype(medium.dtype), (-1, *medium.array_shape(sampler.row_shape)))
    return ModelSignature(Schema(columns), Schema([made]), ParamSchema(params) if params else None)


def _params(kind: type[Strict], settings: Mapping[str, Any], prefix: str = "") -> Iterator:
    """A specification for each setting, those of a block below with its name and a dot in front."""
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Strict):
            yield from _params(field.annotation, settings.get(name) or {}, f"{prefix}{name}.")
        elif spec := _param(kind, name, settings, prefix):
            yield spec


def _param(kind: type[Strict], name: str, settings: Mapping[str, Any], prefix: str):
    """A setting as MLflow announces it, with the promoted value; an empty list is one that is off. None of a setting
    that has no type of MLflow's."""
    from mlflow.types import ParamSpec

    several, scalar = _types(kind.model_fields[name].annotation)
    found = {bool: "boolean", int: "long", float: "double", str: "string"}.get(scalar)
    if found is None:
        return None
    value = settings.get(name)
    return ParamSpec(f"{prefix}{name}", found, list(value or []) if several else value, (-1,) if several else None)


def _types(annotation: Any) -> tuple[bool, type | None]:
    """Whether a setting takes several values, and the type of one; None where MLflow has none for it."""
    if get_origin(annotation) in (Union, UnionType):
        (annotation, *others) = (one for one in get_args(annotation) if one is not type(None))
        return (False, None) if others else _types(annotation)
    if get_origin(annotation) is Literal:
        kinds = {type(value) for value in get_args(annotation) if value is not None}
        return False, kinds.pop() if len(kinds) == 1 else None
    if get_origin(annotation) in (tuple, list):
        return True, _types(get_args(annotation)[0])[1]
    return False, annotation if isinstance(annotation, type) else None
