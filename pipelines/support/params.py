"""params.yaml, typed: the only module that knows the file's layout.

Blocks that say what to compute (`data`, `autoencoders`, `judges`, `samplers`, ...) are stage parameters of dvc.yaml;
`cluster`, `tracking` and `serve` say where to compute and are not, so changing them reruns nothing. The environment may
change their keys: LATENT_FOUNDRY_CLUSTER="{address: auto, num_workers: 8}".
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, field_validator, model_validator

from components.artifacts import run_folder
from components.config import Strict, parse
from components.data.info import DataOutline
from components.errors import ConfigError
from components.evaluation.generation import AVERAGE, CHECKPOINT, weights_and_settings
from components.evaluation.protocol import EvaluateConfig
from components.evaluation.search import refuse_bad_space
from components.families import family_class
from components.families.base import JUDGE, START, Sampler
from components.sources import DataConfig
from components.training.loop import TrainingConfig
from infra.config import ClusterConfig, ServeConfig, TrackingConfig
from pipelines.support import figure_names, inputs, paths, yaml_files

DEFAULT = Path("params.yaml")
WHERE = ("cluster", "tracking", "serve")  # blocks that say where, not what; the environment may change them
VARIABLE = "LATENT_FOUNDRY_"
RESERVED = ("evaluate", "images", "raw", "reference")  # no block's name, because they are folders' or stages'
TRAINED = ("autoencoders", "judges", "samplers")  # the groups whose blocks `pipelines.train` takes


class TrainBlock(Strict):
    """One model: its family, the data set folder it trains on, the family's own Config, and the loop's."""

    family: str
    data: str
    model: Any = {}
    training: TrainingConfig

    @model_validator(mode="before")
    @classmethod
    def _refuse_old_keys(cls, content: Any) -> Any:
        for key, role in {"watch": "judge", "start": "start"}.items():
            if isinstance(content, dict) and key in content:
                raise ValueError(f"{key}: replaced by the block inputs of params.yaml: NAME/{role}: runs/...")
        model = content.get("model") if isinstance(content, dict) else None
        perceptual = model.get("perceptual") if isinstance(model, dict) else None
        for role in ("judge", "lpips"):
            if isinstance(perceptual, dict) and role in perceptual:
                raise ValueError(
                    f"model.perceptual.{role}: replaced by network: {role}, and NAME/{role}: {perceptual[role]} in the "
                    "block inputs of params.yaml"
                )
        return content


class SamplerBlock(TrainBlock):
    """A model that generates. Each of `candidates` is one setting of the family's Settings, measured on its own; the
    first is the default. Beside Settings it may say which weights: `checkpoint: best` for those that training.keep
    kept, or `ema_sigma_rel` for an average over another length than the training's own."""

    candidates: tuple[dict[str, Any], ...] = ({},)


class TextConfig(Strict):
    """A pretrained text encoder, by the path of a folder that transformers saved or by its name on the hub. `length`:
    the most tokens of a text; what is longer is cut."""

    encoder: str = Field(min_length=1)
    length: int = Field(77, ge=3)


class TokensConfig(Strict):
    """Tokens in the place of latents, by an autoencoder with a codebook."""

    shifts: int = Field(0, ge=0)  # cells; the images moved so far, too, in eight directions, for token samplers
    least_usage: float = Field(0.5, ge=0, le=1)  # share of the codes that must occur, else the stage fails


class EncodeConfig(Strict):
    """A latent data set, data/<name>: the training images by the autoencoder that `inputs` gives it, a run of one or of
    a sampler that holds one. `text`: what embeds the captions, for samplers with model.text.encoder pretrained.
    `tokens`: the numbers of its codes instead of latents. `finest_patch`: of the transformers that are aligned to what
    the teacher, which `inputs` may give it, sees of the images: it is kept no finer than their tokens."""

    batch_size: int = Field(256, gt=0)
    flips: bool = False  # the mirrored images, too, for samplers with model.flips
    crops: int = Field(0, ge=0)  # of each row, drawn once, for samplers with model.crops; 0: the image's middle alone
    text: TextConfig | None = None
    tokens: TokensConfig | None = None
    finest_patch: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> EncodeConfig:
        if self.crops and self.tokens is not None:
            raise ValueError("crops: token samplers learn from tokens.shifts; expected crops: 0 beside tokens")
        return self


class Bound(Strict):
    """The least and the most that a figure may be; either may be left out. `of` makes them shares of something: of
    `classes`, how many the data have; of `real`, the same figure of real images; of a figure of the judge, such as
    judge_accuracy."""

    at_least: float | None = None
    at_most: float | None = None
    of: str | None = None

    @model_validator(mode="after")
    def _bounds_something(self) -> Bound:
        if self.at_least is None and self.at_most is None:
            raise ValueError("expected at_least, at_most or both")
        if None not in (self.at_least, self.at_most) and self.at_least > self.at_most:
            raise ValueError(f"nothing is at least {self.at_least:g} and at most {self.at_most:g}")
        return self


_FORMER_GUARDS = {  # of PromoteConfig -> the figure and the bound that say the same
    "max_ms_per_image": ("ms_per_image", "at_most"),
    "batch_size": ("ms_single", "at_most"),
    "min_label_agreement": ("label_agreement", "at_least"),
    "min_recall": ("recall", "at_least"),
    "min_classes_hit": ("classes_hit", "at_least"),
    "min_label_entropy": ("label_entropy", "at_least"),
    "max_memorised": ("memorised", "at_most"),
}


class SecondOpinion(Strict):
    """A figure beside the metric, best by other features: a candidate that another one beats in it, beyond the
    interval, is told of, and does not reign where agreement is required."""

    metric: str
    required: bool = False


class PromoteConfig(Strict):
    """Which candidate reigns: the best `metric` among those that pass the guards, unless the reigning champion's
    interval reaches as far. `metric`, `second_opinion.metric`, `tie_break` and the keys of `guards` are names of
    figures, as metrics/<sampler>.json lists them; a candidate without a figure passes no bound on it, unless the figure
    is of labels and the candidate is asked for none."""

    metric: str = "frechet_distance"
    min_improvement: float = Field(0.0, ge=0, lt=1)  # beyond the champion's interval, as a share of its figure
    second_opinion: SecondOpinion | None = None
    tie_break: str | None = None  # among candidates that the metric does not tell apart the best of this figure
    guards: dict[str, Bound] = {}
    refuse_collapsed: bool = True  # samplers that draw only a part of the data (components/metrics/modes.py)
    registered_model: str = Field("latent-foundry", pattern=r"""^[^/:'"\n]{1,250}$""")  # as MLflow takes names

    @property
    def compared(self) -> dict[str, str]:
        """The figures that candidates are compared by, by the keys that name them."""
        opinion = None if self.second_opinion is None else self.second_opinion.metric
        found = {"metric": self.metric, "tie_break": self.tie_break, "second_opinion.metric": opinion}
        return {key: name for key, name in found.items() if name is not None}

    @model_validator(mode="before")
    @classmethod
    def _refuse_former_guards(cls, block: Any) -> Any:
        for key in block if isinstance(block, dict) else ():
            if key in _FORMER_GUARDS:
                figure, bound = _FORMER_GUARDS[key]
                value = "..." if key == "batch_size" else block[key]
                raise ValueError(f"{key} is no key any more; expected guards: {{{figure}: {{{bound}: {value}}}}}")
        return block


class Params(Strict):
    """The whole file. What dvc.yaml reads has no default here, for DVC knows none."""

    seed: int
    data: DataConfig
    autoencoders: dict[str, TrainBlock]
    judges: dict[str, TrainBlock]
    encode: dict[str, EncodeConfig]
    samplers: dict[str, SamplerBlock]
    inputs: dict[str, str]  # NAME/ROLE: the trained run, or file of weights, that NAME reads beside its data
    evaluate: EvaluateConfig
    promote: PromoteConfig
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()
    serve: ServeConfig = ServeConfig()

    @field_validator("data", mode="before")
    @classmethod
    def _has_a_path(cls, block: Any) -> Any:
        if isinstance(block, dict) and "path" not in block:
            raise ValueError("path is missing; expected a folder, which DVC watches, such as `path: data/raw`")
        return block

    @field_validator("encode", mode="before")
    @classmethod
    def _refuse_one_for_all(cls, blocks: Any) -> Any:
        old = {"autoencoder", "batch_size", "flips", "text"}  # the keys of the one block that there was
        if isinstance(blocks, dict) and old & blocks.keys():
            raise ValueError(
                "expected a block for each latent data set, such as latents: {batch_size: 256}, and "
                "latents/autoencoder: runs/vae in the block inputs"
            )
        return blocks

    @field_validator("samplers", "autoencoders", "judges", "encode")
    @classmethod
    def _names(cls, blocks: dict[str, Any]) -> dict[str, Any]:
        for name in blocks:
            if not name.replace("_", "").isalnum():
                raise ValueError(
                    f"a block's name is also a folder and a stage: letters, digits and _ only, not {name!r}"
                )
            if name in RESERVED:
                raise ValueError(f"{name!r} is a name of its own: expected none of {', '.join(RESERVED)}")
        return blocks

    @property
    def models(self) -> dict[str, TrainBlock]:
        """Every block that `pipelines.train` takes, by name."""
        return {name: block for group in TRAINED for name, block in getattr(self, group).items()}

    def inputs_of(self, name: str) -> dict[str, Path]:
        """What `inputs` gives a model, a latent data set or a stage, by role."""
        keys = {key.partition("/"): path for key, path in self.inputs.items()}
        return {role: Path(path) for (owner, _, role), path in keys.items() if owner == name}


def load(path: Path = DEFAULT) -> Params:
    """Reads and checks the whole file, each family's own blocks included. Raises ConfigError, one clear line."""
    params = parse(Params, _with_environment(yaml_files.read(path)), str(path))
    _refuse_two_of_a_name(params, str(path))
    for group in TRAINED:
        for name, block in getattr(params, group).items():
            _check_family(params, name, block, f"{path}.{group}.{name}")
    inputs.check(params, str(path))
    _check_space(params, f"{path}.evaluate.search.space")
    figure_names.check_policy(params, f"{path}.promote")
    return params


def _with_environment(content: Any) -> Any:
    """The file's content with the keys that the environment sets. Raises ConfigError for what is no mapping."""
    changed = dict(content) if isinstance(content, dict) else content
    for block in WHERE:
        name = f"{VARIABLE}{block.upper()}"
        if not os.environ.get(name) or not isinstance(changed, dict):
            continue
        try:
            keys = yaml.safe_load(os.environ[name])
        except yaml.YAMLError:
            keys = None
        if not isinstance(keys, dict):
            raise ConfigError(f"{name}: expected {{key: value}} for the block {block}, found {os.environ[name]!r}")
        changed[block] = {**(changed.get(block) or {}), **keys}
    return changed


def _refuse_two_of_a_name(params: Params, where: str) -> None:
    names = [name for group in (*TRAINED, "encode") for name in getattr(params, group)]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{where}: two blocks are called {name}; expected one, for their folders' sake")


def _check_family(params: Params, name: str, block: TrainBlock, where: str) -> None:
    kind = family_class(block.family, f"{where}.family")
    if block.training.steps == 0:
        _check_held(params, name, block, where)
    config = parse(kind.Config, inputs.whole_model(params, name), f"{where}.model")
    if kind.early_nets(config) and block.training.steps and not block.training.ema_snapshots:
        raise ConfigError(f"{where}.training.ema_snapshots: expected above 0, because model.guide is a snapshot")
    figure_names.check_keep_by(block.training, kind, JUDGE in params.inputs_of(name), f"{where}.training")
    if kind.whole_batch:
        _check_whole_batch(block, where)
    if isinstance(block, SamplerBlock):
        if not issubclass(kind, Sampler):
            raise ConfigError(f"{where}.family: {block.family!r} does not generate images; it cannot be a sampler")
        if not block.candidates:
            raise ConfigError(f"{where}.candidates: empty; expected at least one setting, [{{}}] for the defaults")
        outline = _outline(params, name)
        for number, candidate in enumerate(block.candidates):
            weights, settings = weights_and_settings(candidate)
            chosen = parse(kind.Settings, settings, f"{where}.candidates.{number}")
            if reason := kind.why_not(config, chosen, outline) or kind.unheard(config, chosen, outline):
                raise ConfigError(f"{where}.candidates.{number}.{reason}")
            _check_weights(weights, block, f"{where}.candidates.{number}")


def _check_space(params: Params, where: str) -> None:
    """Raises ConfigError of what a search cannot try; a default space holds what not all samplers have."""
    search = params.evaluate.search
    kinds = [family_class(block.family) for block in params.samplers.values()]
    known = {AVERAGE, *(name for kind in kinds for name in kind.Settings.model_fields)}
    refuse_bad_space(search.space, known if "space" in search.model_fields_set else search.space, where)


def _check_whole_batch(block: TrainBlock, where: str) -> None:
    """Raises ConfigError of a training that leaves a loss no rows to compare, or not all of them."""
    if block.training.accumulate > 1:
        raise ConfigError(
            f"{where}.training.accumulate: {block.family} compares all rows of a batch, which parts of it cannot; "
            f"expected 1, found {block.training.accumulate}; more workers share a batch out"
        )
    if block.training.steps and block.training.batch_size < 2:
        raise ConfigError(f"{where}.training.batch_size: {block.family} compares rows; expected at least 2, found 1")


def _check_held(params: Params, name: str, block: TrainBlock, where: str) -> None:
    """Raises ConfigError of a block without steps that is something else than the run that it starts from."""
    given = params.inputs_of(name)
    if START not in given:
        raise ConfigError(
            f"{where}.training.steps: 0 holds a run as it is; expected {name}/{START}: runs/... in inputs, or steps "
            "above 0"
        )
    if others := [role for role in given if role != START]:
        raise ConfigError(f"{where}.training.steps: 0 needs no other input than {START}; found {name}/{others[0]}")
    if block.model:
        raise ConfigError(f"{where}.model: expected none beside training.steps: 0, which holds a run as it is")


def _outline(params: Params, name: str) -> DataOutline:
    """Of a model's data or, where it holds a run as it is, of that run's."""
    block = params.models[name]
    if block.training.steps:
        return DataOutline(_on_latents(params, block), params.inputs_of(name))
    start = Path(os.path.normpath(params.inputs_of(name)[START]))
    if start == paths.RUNS / start.name and start.name in params.models:
        return _outline(params, start.name)
    return run_folder.read_config(start).data.outline


def _on_latents(params: Params, block: TrainBlock) -> bool:
    """Whether a model's data set is one of latents, which a block of `encode` makes."""
    folder = Path(block.data)
    made = params.encode.get(folder.name) if folder.parent == paths.DATA else None
    return made is not None and made.tokens is None


def _check_weights(weights: dict, block: TrainBlock, where: str) -> None:
    """Raises ConfigError of weights that the block's training does not keep."""
    if AVERAGE in weights and not block.training.ema_snapshots:
        raise ConfigError(f"{where}.{AVERAGE}: needs training.ema_snapshots above 0 in its block")
    checkpoint = weights.get(CHECKPOINT, "last")
    if checkpoint not in ("last", "best"):
        raise ConfigError(f"{where}.{CHECKPOINT}: expected last or best, found {checkpoint!r}")
    if checkpoint == "best" and block.training.keep != "best":
        raise ConfigError(f"{where}.{CHECKPOINT}: best needs training.keep: best in its block")
    if checkpoint == "best" and AVERAGE in weights:
        raise ConfigError(f"{where}: expected {AVERAGE} or {CHECKPOINT}: best, found both")


def train_block(params: Params, key: str) -> TrainBlock:
    """The block that a key such as `samplers.dcgan` names. Raises ConfigError listing the keys there are."""
    group, _, name = key.partition(".")
    if group in TRAINED and name in getattr(params, group):
        return getattr(params, group)[name]
    keys = [f"{group}.{name}" for group in TRAINED for name in getattr(params, group)]
    raise ConfigError(f"no block {key!r} in params.yaml; expected one of {', '.join(keys)}")


def name_in(params: Params, group: str, key: str) -> str:
    """The run folder's name for a key of one group: `samplers.dcgan` -> `dcgan`. Raises ConfigError listing the keys
    there are."""
    blocks = getattr(params, group)
    if not key.startswith(f"{group}.") or name_of(key) not in blocks:
        known = ", ".join(f"{group}.{name}" for name in blocks)
        raise ConfigError(f"no {group.removesuffix('s')} {key!r} in params.yaml; expected one of {known}")
    return name_of(key)


def name_of(key: str) -> str:
    """The run folder's name for a key: `samplers.dcgan` -> `dcgan`."""
    return key.partition(".")[2]
