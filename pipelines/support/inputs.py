"""What params.yaml's block `inputs` says: which trained run a model or stage reads beside its data.

    inputs:
      NAME/ROLE: runs/...

NAME is a model, a latent data set of `encode`, or `evaluate`; which roles a model has, its family says.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from components.artifacts import run_folder
from components.artifacts.run_folder import RunConfig
from components.config import parse
from components.data.info import TEACHER
from components.errors import ConfigError, SamplerError
from components.families import family_class
from components.families.base import JUDGE, START, Judge, Role, Sampler, roles_of
from components.files import sha256, sha256_folder
from pipelines.support import paths

if TYPE_CHECKING:
    from pipelines.support.params import Params

AUTOENCODER, CLIP = "autoencoder", "clip"
ROLES_OF_STAGES = {"evaluate": {JUDGE: Role(Judge), CLIP: Role(family="clip")}}
ROLES_OF_TOKENS = {AUTOENCODER: Role(needed=True)}
ROLES_OF_LATENTS = {**ROLES_OF_TOKENS, TEACHER: Role(family="judge")}


class Given(NamedTuple):
    """An input as it lies on disk: what it is for, where, and what run it is, None for a file of weights."""

    role: Role
    path: Path
    run: RunConfig | None


def roles(params: Params, name: str, model: Any = None) -> dict[str, Role] | None:
    """The inputs that a name may have; None if nothing has that name. `model`: what the name's model block comes to,
    where that is known already."""
    if name in params.models:
        kind = family_class(params.models[name].family)
        config = parse(kind.Config, whole_model(params, name) if model is None else model, f"{name}.model")
        return roles_of(params.models[name].family, kind, config)
    if name in params.encode:
        return ROLES_OF_LATENTS if params.encode[name].tokens is None else ROLES_OF_TOKENS
    return ROLES_OF_STAGES.get(name)


def check(params: Params, where: str) -> None:
    """Raises ConfigError of an input that nothing takes or that does not fit, and of one that is missing."""
    for key, path in params.inputs.items():
        owner, _, role = key.partition("/")
        known = roles(params, owner) if role else None
        if known is None:
            names = ", ".join([*params.models, *params.encode, *ROLES_OF_STAGES])
            raise ConfigError(f"{where}.inputs: {key}: expected NAME/ROLE, the name one of {names}")
        if role not in known:
            raise ConfigError(f"{where}.inputs: {key}: expected a role of {', '.join(known)}")
        if Path(path) == paths.RUNS / owner:
            raise ConfigError(f"{where}.inputs: {key}: expected another run than its own")
        source = model_at(params, Path(path))
        if source is not None:
            _refuse_unless_fits(known[role], params.models[source].family, f"{where}.inputs: {key}: {path}")
    for name in (*params.models, *params.encode):
        is_held = name in params.models and params.models[name].training.steps == 0
        for role, expected in ({} if is_held else roles(params, name)).items():
            if expected.needed and role not in params.inputs_of(name):
                raise ConfigError(f"{where}.inputs: expected {name}/{role}: runs/..., which {name} needs")
            if expected.beside_data:
                _refuse_others_than_beside_data(params, name, role, where)


def _refuse_others_than_beside_data(params: Params, name: str, role: str, where: str) -> None:
    """Raises ConfigError of a model's input that is another than the one of its data set's block of `encode`."""
    folder = Path(params.models[name].data)
    made = params.inputs_of(folder.name).get(role) if folder == paths.DATA / folder.name else None
    given = params.inputs_of(name).get(role)
    if None not in (made, given) and made != given:
        raise ConfigError(
            f"{where}.inputs: {name}/{role}: {given}: expected {made}, as {folder.name}/{role}, since {folder} holds "
            "what that says of each row"
        )


def refuse_changed(
    given: Mapping[str, Given], hashes: Mapping[str, str], source: Mapping[str, Any], folder: Path, name: str
) -> None:
    """Raises SamplerError of a model's input that is no more, or never was, what `source`, of the manifest of its data
    set, says. `hashes`: of the inputs' contents, by role."""
    for role, one in given.items():
        stored = source.get(role) if one.role.beside_data else None
        if stored is not None and stored != hashes[role]:
            raise SamplerError(
                f"inputs: {name}/{role}: {one.path}: expected the run whose features {folder} holds, found another or "
                f"a changed one; encode again, with {folder.name}/{role}: {one.path} in inputs or without"
            )


def content_hash(path: Path) -> str:
    """Of a file, or of a run folder's config and weights. Raises SamplerError if there is neither."""
    if path.is_file():
        return sha256(path)[:32]
    run_folder.read_config(path)
    return sha256_folder(path, "*.safetensors")[:32]


def resolve(params: Params, name: str) -> dict[str, Given]:
    """The inputs of a name as they lie on disk, by role. Raises SamplerError of one that is missing or does not fit."""
    found = {}
    for role, path in params.inputs_of(name).items():
        where = f"inputs: {name}/{role}: {path}"
        expected = roles(params, name)[role]
        if expected.is_file:
            if not path.is_file():
                raise SamplerError(f"{where}: missing; expected a file of weights")
            found[role] = Given(expected, path, None)
            continue
        run = run_folder.read_config(path)
        _refuse_unless_fits(expected, run.family, where)
        found[role] = Given(expected, path, run)
    return found


def whole_model(params: Params, name: str, trained: bool = False, asked_by: tuple[str, ...] = ()) -> Any:
    """A block's `model`, on that of the run that it starts from and on what its family inherits of other inputs.
    `trained`: those runs are there, and their folders say what they are; otherwise params.yaml does, where it trains
    them. `asked_by`: the models whose inputs led here. Raises SamplerError if one is no run folder, ConfigError of
    inputs that lead in a circle."""
    block, given = params.models[name], params.inputs_of(name)
    if not isinstance(block.model, dict):
        return block.model
    whole = dict(block.model)
    for role, keys in {START: None, **family_class(block.family).inherits}.items():
        if role in given:
            base = _model_of_input(params, name, role, trained, (*asked_by, name))
            whole = {key: value for key, value in base.items() if keys is None or key in keys} | whole
    return whole


def _model_of_input(params: Params, name: str, role: str, trained: bool, asked_by: tuple[str, ...]) -> dict:
    """The `model` of the run that a name has in a role."""
    path = params.inputs_of(name)[role]
    source = None if trained else model_at(params, path)
    if source == name:
        raise ConfigError(f"inputs: {name}/{role}: expected another run than its own")
    if source in asked_by:
        raise ConfigError(f"inputs: {name}/{role}: leads in a circle, {' to '.join((*asked_by, source))}")
    if source is None:
        run = run_folder.read_config(path)
        family, model = run.family, run.config
    else:
        family, model = params.models[source].family, whole_model(params, source, asked_by=asked_by)
    kind = family_class(params.models[name].family)
    expected = Role(family=params.models[name].family) if role == START else kind.roles(kind.Config())[role]
    _refuse_unless_fits(expected, family, f"inputs: {name}/{role}: {path}")
    return model


def model_at(params: Params, path: Path) -> str | None:
    """The model of params.yaml that is trained into a folder, if one is."""
    path = Path(os.path.normpath(path))
    return path.name if path == paths.RUNS / path.name and path.name in params.models else None


def _refuse_unless_fits(role: Role, family: str, where: str) -> None:
    if role.family:
        fits, wanted = family == role.family, role.family
    else:
        kind = role.kind or Sampler
        fits, wanted = issubclass(family_class(family, where), kind), kind.__name__.lower()
    if not fits:
        raise SamplerError(f"{where}: expected a run of a {wanted}, found one of {family}")
