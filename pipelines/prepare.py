"""`python -m pipelines.prepare`: a source's images -> data/images/train and data/images/test."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from components import sources
from components.data.dataset import Dataset, Manifest, Rejected, write_buckets, write_manifest
from components.data.media import medium
from components.errors import DataError, InputError
from components.files import whole_folder
from components.shapes import shape_text
from components.sources import DataConfig, Source
from infra.progress import told
from infra.storage import object_manifest
from infra.storage.buckets import mirror_prefix
from pipelines.support.cli import run
from pipelines.support.fitness import refuse_unfit, small_buckets, too_few
from pipelines.support.params import load

TARGET = Path("data/images")
CACHE = Path(".cache/sources")
FEW = 10  # training images of a class below which it is named
_SLACK = 0.001  # seconds that a file may differ from a row's length, as resampling makes it
_SHOWN = 10  # rejected files named in the summary; the manifest lists all


def open_source(config: DataConfig, seed: int, cache: Path) -> Source:
    """The source, brought below `cache` first if it lies in a bucket. Raises DataError if it cannot be read."""
    if not config.source.startswith(sources.S3):
        return sources.read(config, seed)
    local = cache / hashlib.sha256(config.source.rstrip("/").encode()).hexdigest()[:16]
    only = None
    if config.objects is not None:
        only = [item for part in object_manifest.read(config.objects, config.source).values() for item in part]
    mirror_prefix(config.source, local, only=only)
    return sources.read(config, seed, local)


def prepare(
    source: Source, config: DataConfig, target: Path, seconds: list[float] | None = None
) -> dict[str, Manifest]:
    """Writes every split of the source as a data set folder below `target`: all of them or none.

    Returns their manifests; `seconds` gets how long the rows' files last, of sound and film. Raises DataError if too
    many files had to be left out, or a split has no image.
    """
    rejected: list[Rejected] = []

    def rows_of(split: str) -> Iterator[sources.Row]:
        return sources.accepted(source.splits[split](), rejected, config.max_rejected, seconds)

    with whole_folder(target) as folder:
        return {
            split: _write_split(source, split, config, folder / split, rows_of(split), rejected)
            for split in source.splits
        }


def _write_split(
    source: Source,
    split: str,
    config: DataConfig,
    folder: Path,
    rows: Iterator[sources.Row],
    rejected: list[Rejected],
) -> Manifest:
    """`rejected` grows as `rows` are read."""
    folder.mkdir()
    num_before = len(rejected)
    rows = told(rows, f"prepare {split}", medium(source.medium).plural)
    buckets = write_buckets(folder, rows, config.rows_per_shard)
    if not buckets:
        left_out = sources.left_out(rejected[num_before:])
        raise DataError(
            f"data.source {config.source}: no readable {source.medium} for the {split} split; expected one{left_out}"
        )
    sizes = config.sizes
    return write_manifest(
        folder,
        [shard for part in buckets.values() for shard in part],
        {sizes[number]: len(part) for number, part in buckets.items()} if sizes else None,
        medium=source.medium,
        value_range=medium(source.medium).value_range,
        rate=source.rate,
        classes=source.classes,
        speakers=source.speakers,
        statistics=source.statistics,
        source={**source.facts, "split": split},
        rejected=tuple(rejected[num_before:]),
    )


def summary(manifests: dict[str, Manifest], target: Path, notes: Sequence[str] = ()) -> str:
    """What was written, a line per split, then the classes, those with few images among them, the files that were left
    out, and what the source notes."""
    lines = []
    for split, manifest in manifests.items():
        of = medium(manifest.medium)
        shape = shape_text(manifest.columns[of.column].shape)
        lines.append(f"{target / split}: {manifest.count} {of.plural} {shape} in {len(manifest.shards)} shards")
        if manifest.buckets:
            lines.append(f"  crops, height x width: {', '.join(counted(Dataset(target / split)))}")
    classes = next(iter(manifests.values())).classes
    if classes:
        lines.append(f"classes ({len(classes)}): {', '.join(classes)}")
        lines += few_of(target / "train", classes)
    if speakers := next(iter(manifests.values())).speakers:
        lines.append(f"speakers ({len(speakers)}): {', '.join(speakers)}")
    rejected = [file for manifest in manifests.values() for file in manifest.rejected]
    if rejected:
        lines.append(f"left out ({len(rejected)}, all in the manifests):")
        lines += [f"  {file.path}: {file.reason}" for file in rejected[:_SHOWN]]
    return "\n".join([*lines, *(f"note: {note}" for note in notes)])


def on_lengths(seconds: Sequence[float], config: DataConfig, usual: str) -> tuple[str, ...]:
    """A note on how many files, of these lengths, are cut or filled to the length of a row. `usual`: the medium."""
    of, shape = config.of(usual)
    if not seconds:
        return ()
    kept, slack = shape[1] / of.rate, max(_SLACK, 1.5 / of.rate)
    cut, filled = [one for one in seconds if one > kept + slack], [one for one in seconds if one < kept - slack]
    told = [f"{len(cut)} cut, the longest of {max(cut):.3g} s"] if cut else []
    told += [f"{len(filled)} filled, the shortest of {min(filled):.3g} s"] if filled else []
    return (f"of {len(seconds)} {of.plural}, each a row of {kept:.4g} s: {'; '.join(told)}",) if told else ()


def counted(dataset: Dataset) -> Iterator[str]:
    """Each bucket's size and how many rows it has."""
    for bucket, rows in zip(dataset.manifest.buckets, dataset.buckets, strict=True):
        yield f"{shape_text(bucket.size)} of {len(rows)}"


def few_of(train: Path, classes: tuple[str, ...]) -> list[str]:
    """A line on the classes with fewer than FEW training images, if there are any."""
    counts = torch.bincount(Dataset(train).labels(), minlength=len(classes)).tolist()
    few = [f"{name} {count}" for name, count in zip(classes, counts, strict=True) if count < FEW]
    more = f" and {len(few) - _SHOWN} more" if len(few) > _SHOWN else ""
    return [f"classes with fewer than {FEW} training images: {', '.join(few[:_SHOWN])}{more}"] if few else []


def main(argv: list[str]) -> None:
    if argv:
        raise InputError(
            f"usage: python -m pipelines.prepare, found argument {argv[0]}; params.yaml says what to prepare"
        )
    params = load()
    source = open_source(params.data, params.seed, CACHE)
    refuse_unfit(params, source)
    seconds: list[float] = []
    manifests = prepare(source, params.data, TARGET, seconds)
    notes = (*source.notes, *on_lengths(seconds, params.data, source.medium))
    print(summary(manifests, TARGET, (*notes, *too_few(params, manifests), *small_buckets(params, manifests))))


if __name__ == "__main__":
    run(main)
