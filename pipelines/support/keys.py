"""What keys params.yaml may have, read off the blocks' own types: a key's meaning is the comment behind its field, what
its block's docstring says of it, or, of names that mean the same everywhere, what COMMON says."""

from __future__ import annotations

import ast
import functools
import inspect
import io
import re
import tokenize
import types
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from components.config import Strict, models_in
from components.families import family_class, family_names
from components.families.base import NoSettings, Sampler
from components.training.optimizers import OptimizerConfig
from pipelines.support.params import Params

COMMON = {
    "seed": "of every draw, initial weights too: the same seed, the same bytes",
    "steps": "how long it lasts, in steps of the optimizer; 0 holds the run that it starts from as it is",
    "batch_size": "rows at once",
    "report_every": "steps from one line of figures to the next",
    "save_every": "steps from one checkpoint to the next, each of which is validated",
    "rows_per_shard": "images in a file of the data set",
    "family": "the file of components/families that says what the model is",
    "data": "the data set's folder: data/images/train, or data/NAME of a block of encode",
    "model": "the family's own keys, below",
    "name": "which of the kinds that there are",
    "num_samples": "images that each candidate is measured on",
    "metric": "the figure that is compared",
    "required": "whether it decides, or is only told",
    "registered_model": "its name in MLflow's registry",
    "experiment": "its name in MLflow",
    "uri": "of MLflow's store",
    "host": "address that the API listens at",
    "port": "port that the API listens at",
    "max_images": "the most of one request",
    "max_steps": "the most of one request",
    "learning_rate": "of a step, after the warm-up",
    "betas": "decay of the two running means of gradients (Kingma and Ba 2015)",
    "weight_decay": "decoupled (Loshchilov and Hutter 2019); spares biases, norms and embeddings",
    "schedule": "of the learning rate: cosine falls to 0 at the end, inverse_sqrt after the warm-up",
    "warmup": "steps in which the learning rate rises to its own",
    "width": "channels of the first layers, which the others are multiples of",
    "widths": "channels by resolution, from the finest on",
    "attention": "whether places attend to one another, by resolution",
    "heads": "of attention",
    "layers": "blocks, at each resolution where there are several",
    "depth": "blocks of attention, by resolution",
    "context_dim": "numbers of a token that steers the net",
    "linear": "whether attention's projections are linear layers rather than 1x1 convolutions",
    "patch": "pixels a side that make one token",
    "flows": "blocks, each of which sees the tokens in the other order",
    "latent_dim": "numbers that a generator starts from",
    "latent_channels": "channels of a latent",
    "latent_std": "spread of the latents by channel, which the net sees divided by it",
    "style_dim": "numbers of a style",
    "mapping_layers": "layers that make a style of a latent",
    "expansion": "channels within a block, as a multiple of those around it",
    "feature_dim": "numbers that describe an image",
    "label_smoothing": "share of a label that is spread over all classes (Szegedy et al. 2016)",
    "num_critic_steps": "steps of the discriminator for each of the generator",
    "loss": "what the two play for (components/gan/losses.py)",
    "generator": "its optimizer",
    "discriminator": "its optimizer",
    "encoder": "which text encoder, or its optimizer",
    "optimizer": "the optimizer of its nets",
    "spectral_norm": "nets whose matrices are divided by their largest singular value (Miyato et al. 2018)",
    "gradient_penalty": "weight of the penalty that holds the critic's slope at 1 (Gulrajani et al. 2017)",
    "clip_weights": "the critic's weights stay within this (Arjovsky et al. 2017)",
    "penalise_every": "steps from one penalty to the next, which weighs as much more (Karras et al. 2020)",
    "r1": "weight of the penalty on slopes at real images (Mescheder et al. 2018)",
    "r2": "weight of the penalty on slopes at generated images",
    "minibatch_std": "a channel that tells the discriminator how much a batch varies (Karras et al. 2018)",
    "conditioning": "what steers it: nothing, classes, or texts",
    "objective": "what the net predicts",
    "solver": "how the path from noise to an image is walked (components/diffusion/solvers.py)",
    "num_inference_steps": "steps of the solver; heun asks the net twice a step",
    "guidance_scale": "how far an answer is led away from the worse one; 1 is not at all",
    "guidance": "what the worse answer is: that without the condition, or that of a worse net",
    "temperature": "spread of the draws; 1 is the model's own",
    "density": "how training times are drawn",
    "mean": "of the logit of training times",
    "std": "of the logit of training times",
    "label_dropout": "share of rows that are told no condition, which guidance needs",
    "flips": "whether half of the rows are seen mirrored",
    "reconstruction": "distance between an image and what comes back",
    "kl_weight": "of the term that holds latents near a normal distribution",
    "kind": "which of the kinds that there are",
    "pad": "the number that fills a text up to its length",
    "sharding": "fsdp2 spreads weights and optimizer over the workers",
    "norm_groups": "groups of channels, each normalised by itself",
    "sizes": "what a request of another size than the model's gets",
}
_BOUNDS = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}", "min_length": "{} or more"}
_PLAIN = {
    "int": "whole number",
    "float": "number",
    "str": "text",
    "bool": "true or false",
    "Path": "path",
    "Any": "keys",
}


@dataclass(frozen=True)
class Key:
    """One key. `path`: as params.yaml nests it, NAME standing for the reader's own; `kind` and `default` in words."""

    path: str
    kind: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Section:
    """Keys that belong together, under a heading, with what their block is for."""

    title: str
    about: str
    keys: tuple[Key, ...]


def sections() -> Iterator[Section]:
    """All keys there are: the file's blocks, then what each family adds."""
    for name, field in Params.model_fields.items():
        kinds = models_in(field.annotation)
        path = f"{name}.NAME" if kinds and get_origin(field.annotation) is dict else name
        if name in ("judges", "autoencoders"):
            continue  # a sampler's block has all that theirs have
        keys = [k for kind in kinds for k in keys_of(kind, path)] or [_key(path, name, Params, field)]
        about = _about(kinds[0]) if kinds else ""
        yield Section("samplers, autoencoders, judges" if name == "samplers" else name, about, tuple(keys))
    yield Section(
        "optimizer, wherever a model has one", _about(OptimizerConfig), tuple(keys_of(OptimizerConfig, "optimizer"))
    )
    seen: set[type] = set()
    for family in family_names():
        kind = family_class(family)
        yield from _of_family(f"{family}: model", kind.Config, "model", seen)
        if issubclass(kind, Sampler) and kind.Settings is not NoSettings:
            yield from _of_family(f"{family}: candidates", kind.Settings, "candidates", seen)


def _of_family(title: str, config: type[BaseModel], prefix: str, seen: set[type]) -> Iterator[Section]:
    """A family's keys; those of a block that several share once, where they first come."""
    for kind in reversed([one for one in config.__mro__ if issubclass(one, Strict) and one not in (Strict, config)]):
        if kind not in seen:
            seen.add(kind)
            yield Section(
                f"{prefix}, as several families have it ({kind.__module__})", _about(kind), _own(kind, prefix)
            )
    if config not in seen:
        seen.add(config)
        yield Section(title, _about(config), _own(config, prefix))


def _own(kind: type[BaseModel], prefix: str) -> tuple[Key, ...]:
    own = inspect.get_annotations(kind)
    return tuple(key for key in keys_of(kind, prefix) if key.path.split(".")[1].partition("[")[0] in own)


def keys_of(kind: type[BaseModel], prefix: str, default: BaseModel | None = None) -> Iterator[Key]:
    """The keys of a block and of the blocks below, each choice of these with its name. `default`: the block that stands
    where none is told, which may have other defaults than its type."""
    for name, field in kind.model_fields.items():
        yield _key(f"{prefix}.{name}", name, kind, field, default)
        below = [one for one in models_in(field.annotation) if one is not OptimizerConfig]  # it has its own section
        for one in below:
            tag = _tag(one) if len(below) > 1 else None
            inner = ".NAME" if get_origin(field.annotation) is dict else ""
            yield from keys_of(one, f"{prefix}.{name}{inner}" + (f"[{tag}]" if tag else ""), default_of(field, one))


def default_of(field: FieldInfo, kind: type[BaseModel]) -> BaseModel | None:
    """The block of a kind that stands where a field's is not told; None where that is another kind's, or nothing."""
    return field.default if type(field.default) is kind else None


def _tag(kind: type[BaseModel]) -> str | None:
    """The name by which params.yaml chooses a block among others."""
    names = get_args(kind.model_fields["name"].annotation) if "name" in kind.model_fields else ()
    return names[0] if len(names) == 1 else None


def _key(path: str, name: str, kind: type[BaseModel], field: FieldInfo, block: BaseModel | None = None) -> Key:
    if block is not None and name in block.model_fields_set:
        default = default_text(getattr(block, name))
    elif field.default_factory_takes_validated_data:
        default = "by the keys before it"
    else:
        default = "required" if field.is_required() else default_text(field.get_default(call_default_factory=True))
    return Key(path, kind_text(field), default, meaning(kind, name))


def kind_text(field: FieldInfo) -> str:
    """What values a field takes, in words."""
    bounds = [
        words.format(getattr(one, name))
        for one in field.metadata
        for name, words in _BOUNDS.items()
        if hasattr(one, name)
    ]
    return ", ".join([_type_text(field.annotation), *bounds])


def _type_text(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return "null"
    if origin is Literal:
        return " or ".join(map(str, parts))
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_type_text, parts)))
    if origin in (tuple, list):
        inner = [_type_text(part) for part in parts if part is not Ellipsis]
        return f"[{inner[0]}, ...]" if Ellipsis in parts or origin is list else f"[{', '.join(inner)}]"
    if origin is dict:
        return "mapping"
    if origin is not None and parts:  # Annotated
        return _type_text(parts[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "block"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " or ".join(str(one.value) for one in annotation)
    return _PLAIN.get(getattr(annotation, "__name__", str(annotation)), str(annotation))


def default_text(value: Any) -> str:
    """A default as params.yaml would say it; of a block what differs from its type's own defaults."""
    if isinstance(value, BaseModel):
        told = value.model_dump(mode="json", exclude_defaults=True)
        return "{" + ", ".join(f"{name}: {default_text(one)}" for name, one in told.items()) + "}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(default_text, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {default_text(one)}" for name, one in value.items()) + "}"
    return f"{value:g}" if isinstance(value, float) else str(value) or "empty"


def meaning(kind: type[BaseModel], name: str) -> str:
    """The comment behind the field where it is declared, or declared first, what such a block's docstring says of it,
    what its own block is for, or what the name means everywhere."""
    owners = [one for one in kind.__mro__ if issubclass(one, BaseModel) and name in inspect.get_annotations(one)]
    for owner in owners:
        said = [line for line in _sentences(owner.__doc__ or "") if f"`{name}`" in line]
        said = [line.rstrip(".;").removeprefix(f"`{name}`: ") for line in said]
        if found := _comments(owner).get(name) or " ".join(said):
            return found
    blocks = [one for one in models_in(kind.model_fields[name].annotation) if one is not OptimizerConfig]
    about = [text.partition(". ")[0].rstrip(".") for one in blocks if (text := _about(one))]
    return "; ".join(about) or COMMON.get(name, "") or _about(kind).partition(". ")[0].rstrip(".")


def _about(kind: type[BaseModel]) -> str:
    own = kind.__doc__ if "__doc__" in vars(kind) else ""
    return " ".join((own or "").split())


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.;])\s+", " ".join(text.split()))


@functools.cache
def _comments(kind: type) -> dict[str, str]:
    """Field -> the comment on the lines right above it and behind it, of a class' own body. What follows an empty line
    is a heading."""
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):
        return {}
    source = inspect.cleandoc("\n" + source) + "\n"
    marks = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    lines = source.splitlines()
    found = {}
    for node in ast.parse(source).body[0].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above = node.lineno
            while lines[above - 2].lstrip().startswith("#"):
                above -= 1
            own = range(above if lines[above - 2].strip() else node.lineno, node.lineno)
            found[node.target.id] = " ".join(marks[line] for line in [*own, node.end_lineno] if line in marks)
    return found
