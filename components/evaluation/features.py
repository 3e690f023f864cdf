"""What evaluation knows of an image: the features of the extractor that distances are measured with, and the answers
of the judge of classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from components.artifacts import run_folder
from components.data.media import Medium, medium
from components.errors import ConfigError, DataError
from components.evaluation import pretrained
from components.evaluation.extractor import Extractor, clip_extractor, judge_extractor
from components.evaluation.protocol import ExtractorConfig
from components.metrics.principal import small


class Features(NamedTuple):
    """Features of N images. `vectors`: (N, D) float32, the extractor's. `logits`: (N, K) float32, the extractor's own
    classes, or None. `judged`: (N, num_classes) float32, the judge's classes, or None without a judge. `pixels`: (N, P)
    float32, the image itself averaged down, for the second opinion."""

    vectors: Tensor
    logits: Tensor | None
    judged: Tensor | None
    pixels: Tensor | None = None

    @staticmethod
    def joined(parts: list[Features]) -> Features:
        """The features of all parts, in order."""
        return Features(*(None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True)))

    def take(self, rows: Tensor) -> Features:
        """The features of some of the images."""
        return Features(*(None if column is None else column[rows] for column in self))


@dataclass(frozen=True)
class Extractors:
    """Feature extractor for distribution metrics and classifier for label metrics; often one and the same."""

    extractor: Extractor
    judge: Extractor | None

    @staticmethod
    def open(config: ExtractorConfig, judge: Path | None, device: str, clip: Path | None = None) -> Extractors:
        """`judge`, `clip` are the folders of trained ones. Raises ConfigError without one that is to be the
        extractor."""
        judging = None if judge is None else judge_extractor(run_folder.load(judge, device), judge.name)
        if config.name == "clip" and not config.weights:
            if clip is None:
                raise ConfigError(
                    "evaluate.extractor.weights: no path given; expected a folder or hub name of a pretrained CLIP, or "
                    "in inputs evaluate/clip: runs/..., one trained on the data's captions"
                )
            return Extractors(clip_extractor(run_folder.load(clip, device), clip.name), judging)
        if config.name != "judge":
            return Extractors(pretrained.build(config, device), judging)
        if judging is None:
            raise ConfigError(
                "params.yaml.inputs: expected evaluate/judge: runs/..., which evaluate.extractor judge needs, or "
                "another extractor"
            )
        return Extractors(judging, judging)

    def features(self, images: Tensor, of: Medium) -> Features:
        """Features of a medium's rows (N, C, ...) in [-1, 1]."""
        vectors, logits = self.extractor.embed(images)
        one = self.judge is self.extractor
        judged = None if self.judge is None else logits if one else self.judge.embed(images).logits
        # float32 is what the networks computed in
        found = (vectors, None if one else logits, judged, small(of.seen(images).cpu()))
        return Features(*(None if column is None else column.float() for column in found))

    def refuse_unless_fits(self, folder: Path, of: Medium, shape: tuple[int, ...]) -> None:
        """Raises DataError of a data set whose rows the extractor does not take, or the judge was not trained for."""
        if self.extractor.medium not in ("", of.name):
            raise DataError(
                f"{folder}: holds {of.plural}; evaluate.extractor {self.extractor.name} takes "
                f"{medium(self.extractor.medium).plural}, expected one trained on {of.plural}, as judge"
            )
        known = {"judge": self.judge, self.extractor.name: self.extractor}
        for name, one in known.items():
            if one is not None and one.shape not in (None, shape):
                raise DataError(f"{folder}: {of.plural} of shape {shape}; the {name} was trained on {one.shape}")
