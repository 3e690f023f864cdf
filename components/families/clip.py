"""CLIP (Radford et al. 2021), trained from scratch on the data's images and captions: one embedding of both, which
evaluation measures distances and the fit of texts by, and `unclip` draws.

A batch contrasts each of its images with the captions of all others, on whatever worker they are; captions that say
the same (`duplicates`) are no contrast. On few pairs it soon knows them by heart: let `training: {keep: best, keep_by:
retrieval_at_1}` keep the best checkpoint, and whoever reads the run takes that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from components.conditioning.near_duplicates import NearDuplicates
from components.conditioning.text import cut_tokens_of, tokens_of_column
from components.config import Strict, parse
from components.data.dataset import Batch
from components.data.info import DataInfo
from components.errors import DataError
from components.families.base import Family, Judge, Losses, Phase, Tiny
from components.families.judge import augment
from components.metrics.figures import Figures, named
from components.metrics.retrieval import BOTH, NAMES, TRAINING, retrieval_figures
from components.nets.clip import CLIP, Answer, ImageTower, TextTower
from components.shapes import refuse_unless_planar
from components.training.optimizers import OptimizerConfig
from components.training.worker_rows import of_all_workers

ROLE = "clip"  # by which `inputs` gives it to those that keep it
_AT_ONCE = 256  # rows embedded in validation


class ImageConfig(Strict):
    """The tower of images: a residual block a width, the sides halved between them."""

    widths: tuple[int, ...] = Field((32, 64, 128), min_length=1)


class TextConfig(Strict):
    """The tower of texts: a transformer over their bytes."""

    length: int = Field(64, ge=1)  # bytes; longer captions are cut, longer prompts refused
    width: int = Field(128, ge=1)
    layers: int = Field(2, ge=1)
    heads: int = Field(4, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> TextConfig:
        if self.width % self.heads:
            raise ValueError(f"width must be divisible by heads ({self.heads})")
        return self


class Config(Strict):
    dim: int = Field(64, ge=2)  # of the embeddings
    image: ImageConfig = ImageConfig()
    text: TextConfig = TextConfig()
    duplicates: NearDuplicates = NearDuplicates()  # which captions say the same
    shift: float = Field(0.1, ge=0, lt=1)  # of the image's side: the largest translation in augmentation
    rotate: float = Field(10.0, ge=0, le=180)  # degrees, likewise
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3, weight_decay=0.1, schedule="cosine", warmup=50)


class Model(Family):
    Config = Config
    kept = ("clip",)
    checkpoint_figures = (*NAMES, TRAINING.name)
    prefers_best = True
    whole_batch = True

    def __init__(self, config: Config, data: DataInfo):
        refuse_unless_planar(data.shape, 2 ** (len(config.image.widths) - 1), "clip")
        if not data.caption_length:
            raise DataError(
                "clip: expected images with captions, found none; data.caption makes some of classes' names"
            )
        self.config, self.data = config, data
        image = ImageTower(data.shape[0], config.image.widths, config.dim)
        net = CLIP(image, TextTower(**config.text.model_dump(), context_dim=config.dim))
        self.nets = nn.ModuleDict({"clip": net})
        self.calls = {"image": net.images, "text": net.texts}
        self.phases = (Phase("contrast", "clip", self.loss, config.optimizer),)

    @property
    def caption_limits(self) -> Mapping[str, int]:
        return {"model.text.length": self.config.text.length}

    def loss(self, net: nn.Module, batch: Batch) -> Losses:
        """Cross-entropy of which text is the image's, and which image the text's, over the rows of all workers."""
        images = augment(self.medium.rows(batch.columns), batch.draws, self.config.shift, self.config.rotate)
        tokens = tokens_of_column(batch.columns["caption"], self.config.text.length)
        answer: Answer = net(images, tokens)
        (all_images, all_texts, all_tokens), start = of_all_workers(answer.images, answer.texts, tokens)
        own = torch.arange(len(tokens), device=tokens.device) + start
        same = self.config.duplicates.same(tokens, all_tokens)
        left_out = same.scatter(1, own[:, None], False)
        to_text = (answer.scale * answer.images @ all_texts.T).masked_fill(left_out, -torch.inf)
        to_image = (answer.scale * answer.texts @ all_images.T).masked_fill(left_out, -torch.inf)
        loss = (F.cross_entropy(to_text, own) + F.cross_entropy(to_image, own)) / 2
        return {"loss": loss, "accuracy": (to_text.detach().argmax(1) == own).float().mean()}

    @torch.inference_mode()
    def embedded(self, columns: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Images and captions of rows, (N, dim) each of unit length, by the weights of the moment."""
        net = self.nets["clip"].eval()
        images, tokens = self.medium.rows(columns), tokens_of_column(columns["caption"], self.config.text.length)
        pictured = torch.cat([net.images(part) for part in images.split(_AT_ONCE)])
        return pictured, torch.cat([net.texts(part)["pooled"] for part in tokens.split(_AT_ONCE)])

    @torch.inference_mode()
    def score(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """Of images (N, C, ...) in [-1, 1] and N texts, (N,) 100 max(cosine, 0) (Hessel et al. 2021, equation 1, with
        the usual weight 100); longer texts are cut as captions are."""
        net, device = self.nets["clip"], self.nets["clip"].log_scale.device
        spoken = net.texts(cut_tokens_of(texts, self.config.text.length).to(device))["pooled"]
        cosine = (net.images(images.to(device)) * spoken).sum(1)
        return 100 * cosine.clamp(min=0).double().cpu()

    def retrieval(self, columns: Mapping[str, Tensor]) -> Figures:
        """Recall of rows' captions and images among each other."""
        tokens = tokens_of_column(columns["caption"], self.config.text.length).cpu()
        images, texts = (found.cpu() for found in self.embedded(columns))
        return retrieval_figures(images, texts, self.config.duplicates.same(tokens, tokens))

    def validate(
        self, train: Mapping[str, Tensor], held_out: Mapping[str, Tensor], judge: Judge | None = None
    ) -> Figures:
        known = self.retrieval(train)
        return self.retrieval(held_out) | named(TRAINING.figure(known[BOTH[1].name].value))


def kept_clip(data: DataInfo, who: str) -> Model:
    """The CLIP that `inputs` gives a family of this name to keep. Raises DataError of none, of data without captions,
    and of one that sees other images than the data's."""
    run = data.inputs.get(ROLE)
    if run is None:
        raise DataError(f"{who}: expected the run of a CLIP in inputs, NAME/{ROLE}: runs/..., found none")
    if not data.caption_length:
        raise DataError(f"{who}: expected images with captions, found none")
    if run.data.shape != data.decoded.shape:
        raise DataError(f"{who}: expected a CLIP of images {data.decoded.shape}, found one of {run.data.shape}")
    return Model(parse(Config, run.config, ROLE), run.data)


def give_tiny_weights(net: nn.Module) -> None:
    """For tests: what a trained CLIP has, always the same."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)


TINY = Tiny(
    {
        "dim": 6,
        "image": {"widths": (4, 8)},
        "text": {"length": 12, "width": 8, "layers": 1, "heads": 2},
        "optimizer": {"learning_rate": 0.01},
    },
    data="captioned images",
)
