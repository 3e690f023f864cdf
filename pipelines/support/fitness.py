"""Whether the models of params.yaml can take the data that `prepare` is about to write: each is built without drawing
its weights, so that no hour of training goes before a refusal."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

from components.conditioning.text import longer_than
from components.config import Strict, parse
from components.data.crops import Size
from components.data.dataset import MANIFEST, Dataset, Manifest, read_manifest
from components.data.info import AutoencoderInfo, DataInfo, RunInfo
from components.data.media import medium
from components.data.media.tokens import MEDIUM as TOKENS
from components.errors import DataError, InputError
from components.families import family_class
from components.families.base import Autoencoder
from components.shapes import shape_text
from components.sources import Source
from pipelines.support import inputs, paths
from pipelines.support.inputs import AUTOENCODER
from pipelines.support.params import TRAINED, Params

_CAPTIONS = 8192  # that are read at once
_DRAWS = {"normal_", "uniform_", "random_", "bernoulli_", "exponential_"}
SIZES = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256)  # pixels a side, that are proposed


class _WithoutDraws(TorchFunctionMode):
    """Leaves out the drawing of initial weights, so that even large nets are built at once and touch no memory."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in _DRAWS or (getattr(func, "__module__", "") == "torch.nn.init" and name.endswith("_")):
            return args[0] if args else kwargs["tensor"]
        if name in ("rand", "randn"):
            return torch.empty(*args, **{key: value for key, value in (kwargs or {}).items() if key != "generator"})
        return func(*args, **(kwargs or {}))


def refuse_unfit(params: Params, source: Source) -> None:
    """Raises DataError telling each model that cannot take the data and, where that helps, the sizes that all take."""
    of, shape = params.data.of(source.medium)
    info = DataInfo(
        shape=shape,
        medium=of.name,
        rate=of.rate,
        classes=source.classes,
        speakers=source.speakers,
        caption_length=int(source.captions),
        crops=params.data.sizes,
    )
    found = list(problems(params, info))
    if not found:
        return
    sizes = SIZES if len(shape) == 3 else ()  # that a row of another rank does not have
    fitting = [size for size in sizes if not any(problems(params, _of_size(params, info, size)))]
    size = params.data.image_size
    told = f"data.image_size: {list(size) if isinstance(size, tuple) else size}: " if fitting else ""
    proposed = f"; all models take {', '.join(map(str, fitting))}" if fitting else ""
    raise DataError(f"params.yaml: {told}{'; '.join(found)}{proposed}")


def too_few(params: Params, manifests: dict[str, Manifest]) -> tuple[str, ...]:
    """A note on a test split that figures cannot be measured on; empty on one that they can."""
    test, least = manifests["test"], params.evaluate.neighbours + 1
    if test.count >= least:
        return ()
    return (
        f"{test.count} {medium(test.medium).plural} for the test split; training wants {least} or more to be measured "
        f"on, because evaluate.neighbours is {params.evaluate.neighbours}: more images, a larger data.test_fraction or "
        "fewer neighbours",
    )


def small_buckets(params: Params, manifests: dict[str, Manifest]) -> tuple[str, ...]:
    """A note on sizes of crops with fewer training images than a batch has rows, which hold some of them twice."""
    train, first, notes = manifests["train"], 0, []
    wanting = [
        block for block in params.samplers.values() if isinstance(block.model, dict) and block.model.get("crops")
    ]
    most = max((block.training.batch_size for block in wanting), default=0)
    for bucket in train.buckets:
        last = first + bucket.shards
        count, first = sum(shard.rows for shard in train.shards[first:last]), last
        if count < most:
            notes.append(f"{shape_text(bucket.size)} of {count}")
    found = ", ".join(notes)
    return (f"sizes of crops with fewer images than a batch of {most} has rows: {found}",) if notes else ()


def cut_captions(family: str, config: Strict, info: DataInfo, folder: Path) -> tuple[str, ...]:
    """Notes on the captions of a data set that are longer than a family of this config is trained on."""
    with _WithoutDraws():
        limits = family_class(family)(config, info).caption_limits
    dataset, cut = Dataset(folder), collections.Counter[str]()
    for chunk in dataset.chunks(_CAPTIONS, ("caption",)) if limits else ():
        cut.update({key: longer_than(chunk["caption"], length) for key, length in limits.items()})
    return tuple(
        f"{count} of {len(dataset)} captions are longer than {limits[key]} bytes and are cut; {key} says how long they "
        "may be"
        for key, count in cut.items()
        if count
    )


def refuse_unmeasurable(params: Params) -> None:
    """Raises DataError of a test split that nothing could be measured on in the end, before hours of training."""
    if (paths.TEST_IMAGES / MANIFEST).is_file():
        for reason in too_few(params, {"test": read_manifest(paths.TEST_IMAGES)}):
            raise DataError(f"{paths.TEST_IMAGES}: {reason}")


def problems(params: Params, info: DataInfo) -> Iterator[str]:
    """What each model cannot take, its block named, of images of these facts."""
    for group in TRAINED:
        for name, block in getattr(params, group).items():
            if block.training.steps == 0:  # a run that is there, and knows its data
                continue
            try:
                data = data_of(params, block.data, info)
                if data is not None:
                    _build(params, name, data, info)
            except InputError as error:
                yield f"{group}.{name}: {error}"
            # torch's own refusals of sizes: negative, beyond memory, beyond 64 bits
            except (RuntimeError, TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
                yield f"{group}.{name}: no net can be built of its model ({str(error).splitlines()[0][:200]})"


def data_of(params: Params, folder: str, info: DataInfo) -> DataInfo | None:
    """What a block's data set will be; None where that depends on what is not here yet."""
    if folder == paths.TRAIN_IMAGES.as_posix():
        return info
    names = [name for name in params.encode if folder == (paths.DATA / name).as_posix()]
    source = params.inputs_of(names[0]).get(AUTOENCODER) if names else None
    block = params.autoencoders.get(source.name) if source is not None else None
    if block is None or params.encode[names[0]].text is not None:
        return None
    family = _build(params, source.name, info, info)
    if not isinstance(family, Autoencoder):
        return None
    shape = family.latent_shape
    of = AutoencoderInfo(family=block.family, config=family.config.model_dump(mode="json"), data=info)
    if params.encode[names[0]].tokens is not None:
        codebook = getattr(family.config, "codebook", None)
        grid = (1, *shape[1:]) if codebook is None else codebook.token_shape(shape)  # encode refuses what has none
        return info.model_copy(update={"shape": grid, "medium": TOKENS.name, "autoencoder": of, "crops": ()})
    moments = {"channel_mean": (0.0,) * shape[0], "channel_std": (1.0,) * shape[0]}
    options = params.encode[names[0]]
    crops = _smaller(info.crops, info.shape, shape) if options.crops else ()
    told = {"statistics": moments, "autoencoder": of, "flips": options.flips, "crops": crops}
    return info.model_copy(update={"shape": shape, **told})


def _smaller(crops: tuple[Size, ...], shape: tuple[int, ...], latent_shape: tuple[int, ...]) -> tuple[Size, ...]:
    """The sides that latents of crops have, as those of whole images have theirs."""
    by = [side // latent for side, latent in zip(shape[1:], latent_shape[1:], strict=True)]
    return tuple(tuple(side // part for side, part in zip(size, by, strict=True)) for size in crops)


def _build(params: Params, name: str, data: DataInfo, info: DataInfo) -> object:
    block = params.models[name]
    kind = family_class(block.family)
    config = parse(kind.Config, inputs.whole_model(params, name), f"{name}.model")
    kept = {}
    for role, expected in (inputs.roles(params, name) or {}).items():
        source = params.inputs_of(name).get(role)
        given = params.models.get(source.name) if source is not None else None
        if given is not None and expected.kept:
            given_data = data_of(params, given.data, info)
            model = parse(family_class(given.family).Config, inputs.whole_model(params, source.name), f"{role}.model")
            if given_data is not None:
                kept[role] = RunInfo(family=given.family, config=model.model_dump(mode="json"), data=given_data)
    with _WithoutDraws():
        return kind(config, data.model_copy(update={"inputs": kept}))


def _of_size(params: Params, info: DataInfo, size: int) -> DataInfo:
    crops = params.data.crops.sizes((size, size)) if info.crops else ()
    return info.model_copy(update={"shape": (info.shape[0], size, size), "crops": crops})
