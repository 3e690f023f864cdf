"""Work over a whole data set on a Ray cluster: the only module that knows Ray Data.

A task is one shard: an actor of a pool reads it, computes, and writes the new shard itself, so that no rows pass
through the driver and the result does not depend on who did what when.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
import ray.data
import torch

from components.artifacts.run_folder import load, load_weights
from components.conditioning.text import EMBEDDED, texts_of_column
from components.data.crops import CROP, views
from components.data.dataset import Dataset, Shard, read_manifest, write_shard
from components.data.info import FLIPPED
from components.data.media.tokens import MEDIUM as TOKENS
from components.data.randomness import Draws
from components.diffusion import alignment
from components.metrics.codes import code_counts, perplexity, usage
from components.nets.text_encoders import EncoderLayout, FrozenText
from components.shapes import all_but_channels
from infra.config import ClusterConfig
from infra.ray_cluster.ray_session import has_gpu
from infra.storage.buckets import is_remote
from infra.storage.staging import Staged, local, stage
from infra.storage.store import Store

VIEWS = "views"  # the column of tokens of other views of a row
TEXT_WEIGHTS = "text.safetensors"  # of a text encoder, beside the shards


class Moments(NamedTuple):
    """Sums over the rows of a set, per channel, from which whole-set statistics follow in any order of shards."""

    count: float
    mean: np.ndarray
    mean_square: np.ndarray
    variance: np.ndarray  # of the posterior

    def statistics(self) -> dict[str, tuple[float, ...]]:
        """Mean and total spread of a latent channel, sqrt(var(mean) + mean(std^2)): what a draw from the posterior of
        a random image spreads by."""
        mean = self.mean / self.count
        spread = np.sqrt(self.mean_square / self.count - mean**2 + self.variance / self.count)
        return {"channel_mean": tuple(mean.tolist()), "channel_std": tuple(spread.tolist())}

    def packed(self) -> np.ndarray:
        """As numbers that add up over shards."""
        return np.concatenate([[self.count], *self[1:]])

    @staticmethod
    def unpacked(packed: np.ndarray) -> Moments:
        return Moments(packed[0], *np.split(packed[1:], 3))


class CodeCounts(NamedTuple):
    """How often each code occurs among the tokens of a set."""

    counts: np.ndarray

    def statistics(self) -> dict[str, tuple[float, ...]]:
        """`vocabulary`: how many codes there are; the share of them that occurs, and their perplexity."""
        counts = torch.from_numpy(self.counts)
        told = {"vocabulary": len(counts), "usage": usage(counts), "perplexity": perplexity(counts)}
        return {name: (float(value),) for name, value in told.items()}

    def packed(self) -> np.ndarray:
        """As numbers that add up over shards."""
        return self.counts

    @staticmethod
    def unpacked(packed: np.ndarray) -> CodeCounts:
        return CodeCounts(packed)


class Teacher(NamedTuple):
    """The run of a judge whose maps of each image lie beside its latents, no finer than the tokens of a transformer of
    this patch."""

    run: Path | Staged
    finest_patch: int


class Encoder:
    """An actor that holds the autoencoder and turns shards of rows into shards of posteriors; with a text encoder,
    told by its layout and the folder of its weights, captions into embeddings too, and with a teacher what that sees of
    the rows."""

    def __init__(
        self,
        autoencoder: Path | Staged,
        images: Path | Staged,
        target: Store,
        batch_size: int,
        flips: bool = False,
        text: tuple[EncoderLayout, Path | Staged] | None = None,
        crops: int = 0,
        teacher: Teacher | None = None,
    ):
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._net = load(local(autoencoder), self._device).family.nets["autoencoder"]
        self._images, self._target, self._batch_size = Dataset(local(images)), target, batch_size
        self._medium = self._images.medium
        self._flips, self._crops, self._text, self._teacher = flips, crops, None, None
        if teacher is not None:
            self._teacher = load(local(teacher.run), self._device).family.nets["classifier"]
            self._finest_patch = teacher.finest_patch
        if text is not None:
            self._text = FrozenText(text[0]).eval().to(self._device)
            load_weights(self._text, local(text[1]) / TEXT_WEIGHTS)

    def __call__(self, numbers: dict[str, np.ndarray]) -> dict[str, list]:
        shards = [self._encode(int(number)) for number in numbers["shard"]]
        return {
            "number": numbers["shard"],
            "shard": [shard.model_dump_json() for shard, _ in shards],
            "sums": [sums.packed() for _, sums in shards],
        }

    def _encode(self, number: int) -> tuple[Shard, Moments | CodeCounts]:
        rows = self._images.take(self._images.shard_rows(number))
        stored = rows.pop(self._medium.column)
        columns, sums = self._encoded(stored)
        if self._crops:
            columns |= views([self._crop(number, view) for view in range(self._crops)])
        others = {name: values.numpy() for name, values in rows.items()}
        texts = {} if self._text is None else {EMBEDDED: self._embeddings(rows["caption"])}
        with self._target.filled_from_disk() as folder:
            return write_shard(folder, number, columns | others | texts), sums

    def _crop(self, number: int, view: int) -> dict[str, np.ndarray]:
        """Posteriors of a crop of each row of a shard, and where it lies: a function of row and view."""
        rows = self._images.shard_rows(number)
        taken = self._images.crops(rows, Draws.of(0, view, torch.from_numpy(rows)))
        return {**self._columns(taken[self._medium.column]), CROP: taken[CROP].numpy()}

    def _encoded(self, stored: torch.Tensor) -> tuple[dict[str, np.ndarray], Moments | CodeCounts]:
        """The new columns of stored rows, and sums over them."""
        columns = self._columns(stored)
        mean, std = (
            np.concatenate([values for name, values in columns.items() if name.startswith(which)])
            for which in ("mean", "std")
        )
        exact, places = mean.astype(np.float64), all_but_channels(mean.ndim)
        variance = (std.astype(np.float64) ** 2).sum(places)
        return columns, Moments(mean.size / mean.shape[1], exact.sum(places), (exact**2).sum(places), variance)

    def _columns(self, stored: torch.Tensor) -> dict[str, np.ndarray]:
        """Posteriors of the rows, and of their mirror images where these are wanted, and what a teacher sees of both,
        where there is one."""
        ways = {"": stored} | ({FLIPPED: self._medium.mirrored(stored)} if self._flips else {})
        found = {}
        for ending, seen in ways.items():
            mean, std = (parts.cpu().numpy() for parts in self._posteriors(seen))
            found |= {f"mean{ending}": mean, f"std{ending}": std}
            if self._teacher is not None:
                found |= self._maps(seen, [max(1, side // self._finest_patch) for side in mean.shape[2:]], ending)
        return found

    @torch.inference_mode()
    def _maps(self, stored: torch.Tensor, most: list[int], ending: str) -> dict[str, np.ndarray]:
        parts = (self._medium.to_floats(part.to(self._device)) for part in stored.split(self._batch_size))
        seen = [alignment.columns(self._teacher, part, most, ending) for part in parts]
        return {name: torch.cat([part[name] for part in seen]).cpu().numpy() for name in seen[0]}

    @torch.inference_mode()
    def _posteriors(self, stored: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        parts = (self._medium.to_floats(part.to(self._device)) for part in stored.split(self._batch_size))
        encoded = [self._net.encode(part) for part in parts]
        means, stds = zip(*encoded, strict=True)
        return torch.cat(means), torch.cat(stds)

    @torch.inference_mode()
    def _embeddings(self, captions: torch.Tensor) -> np.ndarray:
        """Of stored captions (N, any): (N, length, width) float16."""
        texts = texts_of_column(captions)
        parts = [texts[start : start + self._batch_size] for start in range(0, len(texts), self._batch_size)]
        return np.concatenate([self._text.encoded(part).context.half().cpu().numpy() for part in parts])


class Tokeniser(Encoder):
    """An actor that turns shards of rows into shards of tokens (1, ...), and where other views of the rows are wanted,
    mirrored or moved by `shifts` cells, into those of each, (views, ...)."""

    def __init__(self, *args, shifts: int = 0, **kwargs):
        super().__init__(*args, **kwargs)
        self._shifts = shifts

    def _encoded(self, stored: torch.Tensor) -> tuple[dict[str, np.ndarray], CodeCounts]:
        views = torch.stack([self._tokens(view) for view in self._views(stored)], dim=1)  # (N, views, ...)
        counts = code_counts(views, self._net.codebook.size).double().numpy()
        stored_views = views.to(torch.uint16).numpy()
        others = {VIEWS: stored_views[:, 1:]} if views.shape[1] > 1 else {}
        return {TOKENS.column: stored_views[:, :1], **others}, CodeCounts(counts)

    def _views(self, stored: torch.Tensor) -> list[torch.Tensor]:
        ways = [stored] + ([self._medium.mirrored(stored)] if self._flips else [])
        by = (0, -self._shifts, self._shifts) if self._shifts else (0,)
        offsets = [(down, right) for down in by for right in by]
        return [way if at == (0, 0) else self._medium.shifted(way, at) for way in ways for at in offsets]

    @torch.inference_mode()
    def _tokens(self, stored: torch.Tensor) -> torch.Tensor:
        parts = (self._medium.to_floats(part.to(self._device)) for part in stored.split(self._batch_size))
        return torch.cat([self._net.tokens(part).cpu() for part in parts])


def encode(
    autoencoder: Path,
    images: Path,
    target: Path,
    batch_size: int,
    cluster: ClusterConfig,
    storage: str = "",
    flips: bool = False,
    text: EncoderLayout | None = None,
    shifts: int | None = None,
    crops: int = 0,
    teacher: Teacher | None = None,
) -> tuple[list[Shard], dict[str, tuple[float, ...]]]:
    """Writes one shard of posteriors into `target` for every shard of `images`, or of tokens, where `shifts` is told;
    returns the manifest entries in order and the statistics of the whole set. `storage`: s3://bucket/prefix that inputs
    and shards go through, where nodes do not see these folders; `flips`: each row also holds the mirrored image's;
    `text`: what embeds the captions, its weights in `target` already; `shifts`: see Tokeniser; `crops`: how many of
    each row it holds beside; `teacher`: of trainings on it."""
    num_shards = len(read_manifest(images).shards)
    inputs, made = (autoencoder.resolve(), images.resolve()), Store.open(target.resolve())
    inputs += () if text is None else (target.resolve(),)
    inputs += () if teacher is None else (teacher.run.resolve(),)
    if is_remote(storage):
        inputs = tuple(stage(folder, storage, cluster.cache_bytes) for folder in inputs)
        made = Store.open(storage) / "encoded" / "-".join(staged.hash[:16] for staged in inputs)
    autoencoder_at, images_at, *others = inputs
    told = None if text is None else (text, others[0])
    teacher = None if teacher is None else teacher._replace(run=others[-1])
    arguments = (autoencoder_at, images_at, made, batch_size, flips, told, crops, teacher)
    kind, sums = (Encoder, Moments) if shifts is None else (Tokeniser, CodeCounts)
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it tells of its execution plan otherwise
    ray.data.DataContext.get_current().enable_progress_bars = False
    done = (
        # a block a shard from the start: a repartition would be tasks, which actors on every CPU leave no room for
        ray.data.from_items([{"shard": number} for number in range(num_shards)], override_num_blocks=num_shards)
        .map_batches(
            kind,
            fn_constructor_args=arguments,
            fn_constructor_kwargs={} if shifts is None else {"shifts": shifts},
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(cluster.max_workers, num_shards)),
            num_cpus=1,
            num_gpus=int(has_gpu(cluster.use_gpu)),
        )
        .take_all()
    )
    if not made.is_local:
        made.copy_to(target)
    done.sort(key=lambda row: row["number"])
    total = sums.unpacked(np.sum([row["sums"] for row in done], axis=0))
    return [Shard.model_validate_json(row["shard"]) for row in done], total.statistics()
