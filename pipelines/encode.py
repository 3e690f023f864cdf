"""Encodes the training images: `python -m pipelines.encode latents` -> data/latents, latents or tokens with the
autoencoder that made them, with the text encoder that embedded the captions where params.yaml names one, and with what
a teacher of transformers sees of the images where `inputs` gives one."""

from __future__ import annotations

import shutil
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from components.artifacts import run_folder
from components.conditioning.text import texts_of_column
from components.data.dataset import Dataset, Manifest, read_manifest, verify, write_manifest
from components.data.info import TEACHER, AutoencoderInfo
from components.data.media import medium
from components.data.media.tokens import MEDIUM as TOKENS
from components.errors import ConfigError, DataError, SamplerError
from components.families.base import Family
from components.files import whole_folder, write_json
from components.interchange import text_encoders
from components.nets.text_encoders import EncoderLayout, FrozenText
from components.shapes import shape_text
from infra.ray_cluster import encoding
from infra.ray_cluster.ray_session import session
from infra.storage.buckets import check_storage
from pipelines.support import cli, inputs, paths, remote
from pipelines.support.inputs import AUTOENCODER, Given
from pipelines.support.params import Params, TextConfig, load
from pipelines.support.paths import ROOT

_CAPTIONS = 8192  # that are read at once


def encode(params: Params, name: str, images: Path, target: Path) -> Manifest:
    """Writes the latent data set of a block of `encode`, whole or not at all."""
    options, given = params.encode[name], inputs.resolve(params, name)
    autoencoder, facts = given[AUTOENCODER].path, verify(images)
    check_storage(params.cluster.storage(ROOT))
    run = run_folder.load(autoencoder)
    if AUTOENCODER not in run.family.nets:
        raise SamplerError(
            f"inputs: {name}/{AUTOENCODER}: {autoencoder}: expected a run that holds an autoencoder, found one of "
            f"{run.config.family} without"
        )
    # a sampler's run holds the autoencoder that it was trained on
    info = run.config.data.autoencoder or AutoencoderInfo(
        family=run.config.family, config=run.config.config, data=run.config.data
    )
    sizes = latent_sizes(facts, run.family, name) if options.crops else None
    source = {"images": facts.source.get("source", "images"), "autoencoder": run.config.provenance.job}
    if options.tokens is not None:
        source["codebook"] = codebook_of(run, name).fingerprint()
    text = None if options.text is None else open_text(options.text, facts, images)
    if text is not None and (note := on_cut_captions(text, Dataset(images))):
        print(f"{name}: {note}", flush=True)
    teacher = None
    if TEACHER in given:
        refuse_blind(given[TEACHER], facts, name)
        source[TEACHER] = inputs.content_hash(given[TEACHER].path)
        teacher = encoding.Teacher(given[TEACHER].path, options.finest_patch)
    with whole_folder(target) as folder, session(params.cluster, ROOT):
        work = encoding.Work(
            autoencoder,
            images,
            options.batch_size,
            flips=options.flips,
            crops=options.crops,
            shifts=None if options.tokens is None else options.tokens.shifts,
            text=None if text is None else encoding.Text(write_text(folder, text), folder),
            teacher=teacher,
        )
        shards, statistics = encoding.encode(work, folder, params.cluster, params.cluster.storage(ROOT))
        if options.tokens is not None:
            refuse_unused(statistics, options.tokens.least_usage, name)
        write_json(folder / paths.AUTOENCODER_INFO, info.model_dump(mode="json"))
        shutil.copy(autoencoder / "autoencoder.safetensors", folder)
        write_manifest(
            folder,
            shards,
            sizes,
            medium=facts.medium if options.tokens is None else TOKENS.name,
            value_range=facts.value_range if options.tokens is None else TOKENS.value_range,
            rate=facts.rate,
            classes=facts.classes,
            speakers=facts.speakers,
            statistics=statistics,
            source=source,
        )
    return read_manifest(target)


def latent_sizes(facts: Manifest, family: Family, name: str) -> dict[tuple[int, int], int]:
    """The sides that latents of each bucket's crops have, and how many shards are its own. Raises DataError of images
    without crops, and of sizes that the autoencoder cannot take."""
    if not facts.buckets:
        raise DataError(f"encode.{name}.crops: images without crops; expected data.crops in params.yaml")
    net, channels = family.nets["autoencoder"], facts.columns[medium(facts.medium).column].shape[0]
    device, found = next(net.parameters()).device, {}
    for bucket in facts.buckets:
        try:
            with torch.inference_mode():
                mean, _ = net.encode(torch.zeros(1, channels, *bucket.size, device=device))
        except (RuntimeError, ValueError) as error:
            told = f"{shape_text(bucket.size)} pixels, which the autoencoder cannot take ({error})"
            raise DataError(f"encode.{name}.crops: data.crops has crops of {told}") from None
        sides = tuple(mean.shape[2:])
        if sides in found:
            raise DataError(
                f"encode.{name}.crops: two sizes of crops have latents of {shape_text(sides)}; see data.crops"
            )
        found[sides] = bucket.shards
    return found


def refuse_blind(teacher: Given, facts: Manifest, name: str) -> None:
    """Raises ConfigError of a teacher that learned from other images, and of images that are no planes."""
    seen, shape = teacher.run.data, facts.columns[medium(facts.medium).column].shape
    if (seen.medium, seen.shape) != (facts.medium, shape) or len(shape) != 3:
        raise ConfigError(
            f"inputs: {name}/{TEACHER}: {teacher.path}: expected a run on planes, {facts.medium} rows "
            f"{shape_text(shape)}, found one on {seen.medium} rows {shape_text(seen.shape)}"
        )


def codebook_of(run: run_folder.Run, name: str) -> nn.Module:
    """Of an autoencoder's or a sampler's run. Raises ConfigError of one whose codes cannot be stored as tokens."""
    codebook = getattr(run.family.nets["autoencoder"], "codebook", None)
    if codebook is None:
        raise ConfigError(f"encode.{name}.tokens: expected an autoencoder with model.codebook, found {run.folder}")
    if codebook.size > TOKENS.value_range[1] + 1:
        raise ConfigError(f"encode.{name}.tokens: expected at most 65536 codes, found {codebook.size} in {run.folder}")
    return codebook


def refuse_unused(statistics: dict[str, tuple[float, ...]], least: float, name: str) -> None:
    """Raises DataError of tokens among which too few of the codes occur."""
    (used,), (size,) = statistics["usage"], statistics["vocabulary"]
    if used < least:
        raise DataError(
            f"encode.{name}.tokens.least_usage: {round(used * size)} of {size:.0f} codes occur; expected "
            f"{least:.0%} of them; train the autoencoder longer or with fewer codes"
        )


def open_text(config: TextConfig, facts: Manifest, images: Path) -> FrozenText:
    """Raises InputError of images without captions, and of an encoder that cannot be had."""
    if "caption" not in facts.columns:
        raise DataError(f"{images}: no captions; encode.text needs some to embed")
    return text_encoders.read(config.encoder, config.length, "encode.text.encoder")


def on_cut_captions(text: FrozenText, dataset: Dataset) -> str | None:
    """A note on the captions that are longer than a text encoder takes, if there are any."""
    chunks = dataset.chunks(_CAPTIONS, ("caption",))
    count, length = sum(text.num_cut(texts_of_column(chunk["caption"])) for chunk in chunks), text.layouts[0].length
    found = f"{count} of {len(dataset)} captions are longer than {length} tokens and are cut"
    return f"{found}; text.length says how long they may be, up to the encoder's own" if count else None


def write_text(folder: Path, text: FrozenText) -> EncoderLayout:
    """Puts a text encoder into a latent data set, for trainings to carry into their run folders."""
    (layout,) = text.layouts
    write_json(folder / paths.TEXT_INFO, layout.model_dump(mode="json"))
    weights = {name: value.contiguous() for name, value in text.state_dict().items()}
    safetensors.torch.save_file(weights, folder / encoding.TEXT_WEIGHTS)
    return layout


def name_asked(params: Params, argv: list[str]) -> str:
    """The latent data set that a command line names, or the only one. Raises ConfigError listing those there are."""
    if argv not in [[name] for name in params.encode] and (argv or len(params.encode) != 1):
        known = ", ".join(params.encode) or "none"
        raise ConfigError(
            f"expected the name of a block of encode in params.yaml, one of {known}; found {' '.join(argv) or 'none'}"
        )
    return argv[0] if argv else next(iter(params.encode))


def main(argv: list[str]) -> None:
    params = load()
    name = name_asked(params, argv)
    autoencoder, text, target = params.inputs_of(name)[AUTOENCODER], params.encode[name].text, paths.DATA / name
    if remote.is_away(params.cluster):
        named = [] if text is None else [Path(text.encoder)]
        read = [paths.TRAIN_IMAGES, *params.inputs_of(name).values(), *(path for path in named if path.is_dir())]
        remote.run(params, "pipelines.encode", [name], read, [target])
        return
    manifest = encode(params, name, paths.TRAIN_IMAGES, target)
    column, rows = ("mean", "posteriors") if "mean" in manifest.columns else (TOKENS.column, "rows of tokens")
    print(f"{target}: {manifest.count} {rows} {shape_text(manifest.columns[column].shape)} by {autoencoder}")
    for statistic, values in manifest.statistics.items():
        print(f"  {statistic}: {', '.join(f'{value:.3f}' for value in values)}")


if __name__ == "__main__":
    cli.run(main)
