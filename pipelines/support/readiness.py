"""What stages read and no stage makes: files, trained runs, packages. They are looked for before the first training,
not by the stage that needs them, hours later."""

from __future__ import annotations

from pathlib import Path

from components.data.dataset import MANIFEST
from components.errors import ConfigError
from components.evaluation import pretrained
from components.families.base import JUDGE
from components.interchange import folders, text_encoders
from pipelines.support import inputs, paths
from pipelines.support.params import TRAINED, Params


def refuse_unready(params: Params) -> None:
    """Raises ConfigError, one line, of the first that is missing."""
    _refuse_missing_inputs(params)
    _refuse_missing_data(params)
    given, extractor = params.inputs_of("evaluate"), params.evaluate.extractor
    if extractor.name == "judge" and JUDGE not in given:
        raise ConfigError(
            "params.yaml.inputs: expected evaluate/judge: runs/..., which evaluate.extractor judge needs, or another "
            "extractor"
        )
    pretrained.refuse_missing(params.evaluate, inputs.CLIP in given)
    for name, block in params.encode.items():
        if block.text is not None:
            folders.refuse_missing(block.text.encoder, f"encode.{name}.text.encoder", text_encoders.KNOWN)


def _refuse_missing_inputs(params: Params) -> None:
    for key, path in params.inputs.items():
        if inputs.model_at(params, Path(path)) is None and not Path(path).exists():
            raise ConfigError(
                f"params.yaml.inputs: {key}: {path}: missing, and no block trains it; expected a run of "
                f"{', '.join(params.models)}, or what is there already"
            )


def _refuse_missing_data(params: Params) -> None:
    made = [paths.TRAIN_IMAGES, *(paths.DATA / name for name in params.encode)]
    for group in TRAINED:
        for name, block in getattr(params, group).items():
            if Path(block.data) not in made and not (Path(block.data) / MANIFEST).is_file():
                raise ConfigError(
                    f"params.yaml.{group}.{name}.data: {block.data}: no data set, and no stage makes it; expected one "
                    f"of {', '.join(map(str, made))}"
                )
