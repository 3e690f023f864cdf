"""Work over a whole data set on a Ray cluster: the only module that knows Ray Data.

A task is one shard: an actor of a pool reads it, computes, and writes the new shard itself, so that no rows pass
through the driver and the result does not depend on who did what when.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import ray.data
import torch

from components.artifacts.run_folder import load, load_weights
from components.conditioning.text import EMBEDDED, texts_of_column
from components.data.crops import CROP, views
from components.data.dataset import Dataset, Shard, read_manifest, write_shard
from components.data.info import FLIPPED
from components.data.media import medium
from components.data.media.tokens import MEDIUM as TOKENS
from components.data.randomness import Draws
from components.diffusion import alignment
from components.metrics.codes import code_counts, perplexity, usage
from components.nets.text_encoders import EncoderLayout, FrozenText
from components.shapes import all_but_channels
from infra.config import ClusterConfig
from infra.progress import told
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


Folder = Path | Staged  # on this machine, or on its way to others


class Text(NamedTuple):
    """What embeds captions: its layout, and the folder with its weights."""

    layout: EncoderLayout
    folder: Folder


class Teacher(NamedTuple):
    """The run of a judge whose maps of each image lie beside its latents, no finer than the tokens of a transformer of
    this patch."""

    run: Folder
    finest_patch: int


@dataclass(frozen=True)
class Work:
    """What is made of every shard of a data set of images.

    batch_size:  rows at a time
    flips:       each row also holds the mirrored image's
    crops:       how many crops of each row it holds beside
    shifts:      None: latents; else tokens, also those of the image moved by so many cells
    text:        what embeds captions, if anything does
    teacher:     of trainings on it, if there is one
    """

    autoencoder: Folder
    images: Folder
    batch_size: int
    flips: bool = False
    crops: int = 0
    shifts: int | None = None
    text: Text | None = None
    teacher: Teacher | None = None

    @property
    def folders(self) -> list[Folder]:
        """All that it reads."""
        others = [self.text.folder] if self.text else []
        return [self.autoencoder, self.images, *others, *([self.teacher.run] if self.teacher else [])]

    @property
    def manner(self) -> str:
        """Tells apart what is made of the same folders in other ways."""
        return hashlib.sha256(repr(self.moved(lambda folder: Path())).encode()).hexdigest()[:16]

    def moved(self, move: Callable[[Folder], Folder]) -> Work:
        """The same of folders that lie elsewhere."""
        return replace(
            self,
            autoencoder=move(self.autoencoder),
            images=move(self.images),
            text=self.text and self.text._replace(folder=move(self.text.folder)),
            teacher=self.teacher and self.teacher._replace(run=move(self.teacher.run)),
        )


class Encoder:
    """An actor that does a piece of work, shard by shard: it holds the autoencoder and turns rows into posteriors, with
    a text encoder captions into embeddings too, and with a teacher it adds what that sees of the rows."""

    sums: ClassVar[type[Moments | CodeCounts]] = Moments  # over a shard's rows

    def __init__(self, work: Work, target: Store):
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._work, self._target = work, target
        self._net = load(local(work.autoencoder), self._device).family.nets["autoencoder"]
        self._images = Dataset(local(work.images))
        self._medium = self._images.medium
        self._text = self._teacher = None
        if work.teacher is not None:
            self._teacher = load(local(work.teacher.run), self._device).family.nets["classifier"]
        if work.text is not None:
            self._text = FrozenText(work.text.layout).eval().to(self._device)
            load_weights(self._text, local(work.text.folder) / TEXT_WEIGHTS)

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
        if self._work.crops:
            columns |= views([self._crop(number, view) for view in range(self._work.crops)])
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
        ways = {"": stored} | ({FLIPPED: self._medium.mirrored(stored)} if self._work.flips else {})
        found = {}
        for ending, seen in ways.items():
            mean, std = (parts.cpu().numpy() for parts in self._posteriors(seen))
            found |= {f"mean{ending}": mean, f"std{ending}": std}
            if self._teacher is not None:
                finest = [max(1, side // self._work.teacher.finest_patch) for side in mean.shape[2:]]
                found |= self._maps(seen, finest, ending)
        return found

    @torch.inference_mode()
    def _maps(self, stored: torch.Tensor, most: list[int], ending: str) -> dict[str, np.ndarray]:
        seen = [alignment.columns(self._teacher, part, most, ending) for part in self._parts(stored)]
        return {name: torch.cat([part[name] for part in seen]).cpu().numpy() for name in seen[0]}

    @torch.inference_mode()
    def _posteriors(self, stored: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        means, stds = zip(*(self._net.encode(part) for part in self._parts(stored)), strict=True)
        return torch.cat(means), torch.cat(stds)

    def _parts(self, stored: torch.Tensor) -> Iterator[torch.Tensor]:
        """Of stored rows, as nets take them."""
        return (self._medium.to_floats(part.to(self._device)) for part in stored.split(self._work.batch_size))

    @torch.inference_mode()
    def _embeddings(self, captions: torch.Tensor) -> np.ndarray:
        """Of stored captions (N, any): (N, length, width) float16."""
        texts, size = texts_of_column(captions), self._work.batch_size
        parts = [texts[start : start + size] for start in range(0, len(texts), size)]
        return np.concatenate([self._text.encoded(part).context.half().cpu().numpy() for part in parts])


class Tokeniser(Encoder):
    """An actor that turns shards of rows into shards of tokens (1, ...), and where other views of the rows are wanted,
    mirrored or moved by `work.shifts` cells, into those of each, (views, ...)."""

    sums = CodeCounts

    def _encoded(self, stored: torch.Tensor) -> tuple[dict[str, np.ndarray], CodeCounts]:
        views = torch.stack([self._tokens(view) for view in self._views(stored)], dim=1)  # (N, views, ...)
        counts = code_counts(views, self._net.codebook.size).double().numpy()
        stored_views = views.to(torch.uint16).numpy()
        others = {VIEWS: stored_views[:, 1:]} if views.shape[1] > 1 else {}
        return {TOKENS.column: stored_views[:, :1], **others}, CodeCounts(counts)

    def _views(self, stored: torch.Tensor) -> list[torch.Tensor]:
        ways = [stored] + ([self._medium.mirrored(stored)] if self._work.flips else [])
        by = (0, -self._work.shifts, self._work.shifts) if self._work.shifts else (0,)
        offsets = [(down, right) for down in by for right in by]
        return [way if at == (0, 0) else self._medium.shifted(way, at) for way in ways for at in offsets]

    @torch.inference_mode()
    def _tokens(self, stored: torch.Tensor) -> torch.Tensor:
        return torch.cat([self._net.tokens(part).cpu() for part in self._parts(stored)])


def actor(work: Work, target: Store) -> Encoder:
    """What does a piece of work in this process."""
    return _kind(work)(work, target)


def _kind(work: Work) -> type[Encoder]:
    return Encoder if work.shifts is None else Tokeniser


def gathered(work: Work, done: Sequence[Mapping]) -> tuple[list[Shard], dict[str, tuple[float, ...]]]:
    """What a manifest tells of all that actors have done, whoever did what when: its entries in order, and the
    statistics of the whole set."""
    done = sorted(done, key=lambda row: row["number"])
    sums = _kind(work).sums.unpacked(np.sum([row["sums"] for row in done], axis=0))
    return [Shard.model_validate_json(row["shard"]) for row in done], sums.statistics()


def encode(
    work: Work, target: Path, cluster: ClusterConfig, storage: str = ""
) -> tuple[list[Shard], dict[str, tuple[float, ...]]]:
    """Writes a shard of latents or tokens into `target` for every shard of images, and returns what its manifest tells
    of them. `storage`: s3://bucket/prefix that inputs and shards go through, where nodes do not see these folders."""
    facts = read_manifest(work.images)
    num_shards = len(facts.shards)
    work, made = work.moved(Path.resolve), Store.open(target.resolve())
    if is_remote(storage):
        work = work.moved(functools.partial(stage, storage=storage, cache_bytes=cluster.cache_bytes))
        made = Store.open(storage) / "encoded" / "-".join([*(staged.hash[:16] for staged in work.folders), work.manner])
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it tells of its execution plan otherwise
    ray.data.DataContext.get_current().enable_progress_bars = False
    done = (
        # a block a shard from the start: a repartition would be tasks, which actors on every CPU leave no room for
        ray.data.from_items([{"shard": number} for number in range(num_shards)], override_num_blocks=num_shards)
        .map_batches(
            _kind(work),
            fn_constructor_args=(work, made),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(cluster.max_workers, num_shards)),
            num_cpus=1,
            num_gpus=int(has_gpu(cluster.use_gpu)),
        )
        .iter_rows()
    )
    sizes = [shard.rows for shard in facts.shards]
    done = list(told(done, "encode", medium(facts.medium).plural, sum(sizes), lambda row: sizes[row["number"]]))
    if not made.is_local:
        made.copy_to(target)
    return gathered(work, done)
