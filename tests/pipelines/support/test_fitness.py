"""What prepare refuses because models could not be trained on it."""

import pytest
import yaml
from PIL import Image

from components import sources
from components.data.info import data_info
from components.errors import DataError
from components.families import family_class
from components.sources import DataConfig, Source
from pipelines import prepare, train
from pipelines.support.fitness import cut_captions, refuse_unfit, too_few
from pipelines.support.params import load
from tests.clones import ROOT, tiny_params
from tests.pipelines.measured import PARAMS

CLASSES = ("cat", "dog")


def source(classes: tuple[str, ...] = CLASSES, captions: bool = False, medium: str = "image") -> Source:
    return Source(classes, {}, {}, medium, captions=captions)


def params(root, size, **changes):
    """As shipped, with other sizes and keys of the U-Net."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["data"]["image_size"] = size
    content["samplers"]["ldm"]["model"] |= changes
    path = root / "params.yaml"
    path.write_text(yaml.safe_dump(content))
    return load(path)


def test_captions_that_a_model_cuts_are_counted(tmp_path):
    for number, text in enumerate(("short", "é" * 6, "x" * 13, "y" * 40)):
        Image.new("L", (16, 16), number).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(text)
    config = DataConfig(source="folder", path=tmp_path, test_fraction=0.3)
    (tmp_path / "sets").mkdir()
    manifest = prepare.prepare(sources.read(config, 0), config, tmp_path / "sets/images")["train"]
    model = {"conditioning": "text", "text": {"length": 4, "width": 8, "layers": 1, "heads": 2}}
    model["backbone"] = {"widths": (8, 8), "heads": 2, "context_dim": 8}
    told = "model.text.length says how long they may be"
    for length, num in ((4, manifest.count), (40, 0)):
        model["text"] |= {"length": length}
        kind = family_class("latent_diffusion")
        args = kind.Config(**model), data_info(manifest), tmp_path / "sets/images/train"
        found = cut_captions("latent_diffusion", *args)
        count = f"{num} of {manifest.count} captions are longer than {length} bytes and are cut; {told}"
        assert found == ((count,) if num else ())
    assert cut_captions("dcgan", family_class("dcgan").Config(), data_info(manifest), args[-1]) == ()


def test_a_size_that_fits_all_passes(tmp_path):
    refuse_unfit(params(tmp_path, 32), source())
    refuse_unfit(params(tmp_path, 32, conditioning="text"), source((), captions=True))
    refuse_unfit(params(tmp_path, 32, conditioning="none"), source(()))


@pytest.mark.parametrize(("size", "told"), [(48, "48"), ([48, 64], r"\[48, 64\]"), (20, "20")])
def test_a_size_that_does_not_fit_is_refused_with_those_that_would(size, told, tmp_path):
    with pytest.raises(DataError) as caught:
        refuse_unfit(params(tmp_path, size), source())
    message = str(caught.value)
    assert message.startswith(f"params.yaml: data.image_size: {size}: samplers.cgan: cgan: expected ")
    assert message.endswith("all models take 8, 16, 32, 64, 128, 256")
    assert "\n" not in message


@pytest.mark.parametrize("widths", [[-1, 16], [10**30, 16], [10**12, 16]])
def test_a_net_that_torch_cannot_build_is_told_in_a_line(widths, tmp_path):
    asked = params(tmp_path, 16)
    asked.autoencoders["vae"].model["widths"] = widths
    with pytest.raises(DataError, match="autoencoders.vae: no net can be built of its model") as caught:
        refuse_unfit(asked, source())
    assert "\n" not in str(caught.value)


def test_latents_are_checked_as_the_autoencoder_will_make_them(tmp_path):
    asked = params(tmp_path, 16)
    unet = asked.samplers["ldm"].model["backbone"] | {"widths": [8] * 5, "attention": [False] * 5}
    with pytest.raises(
        DataError, match=r"samplers.ldm: latent_diffusion: .* multiples of 16, found 8x8; all models take"
    ):
        refuse_unfit(params(tmp_path, 16, backbone=unet), source())


@pytest.mark.parametrize(
    ("conditioning", "told"), [("class", "expected labelled images"), ("text", "expected images with captions")]
)
def test_what_steers_a_model_must_be_there(conditioning, told, tmp_path):
    found = f"^params.yaml: samplers.ldm: latent_diffusion: {told}[^;]*(; or [^;]*)?; samplers.student: "
    with pytest.raises(DataError, match=found):
        refuse_unfit(params(tmp_path, 16, conditioning=conditioning), source(()))


def test_too_few_images_to_measure_are_told(tmp_path):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    asked = load(tmp_path / "params.yaml")
    counted = [{"test": type("Counted", (), {"count": count, "medium": "image"})()} for count in (3, 4)]
    (note,) = too_few(asked, counted[0])
    assert note.startswith("3 images for the test split; training wants 4 or more to be measured on")
    assert too_few(asked, counted[1]) == ()


def test_training_refuses_a_test_split_that_nothing_can_be_measured_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = tiny_params()
    content["data"] |= {"source": "folder", "path": "own"}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content | {"evaluate": {"neighbours": 5}}))
    for number in range(10):
        path = tmp_path / "own" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (16, 16), number * 20).save(path)
    prepare.main([])
    with pytest.raises(DataError, match=r"data/images/test: \d images for the test split; training wants 6 or more"):
        train.main(["judges.judge"])
    assert not (tmp_path / "mlflow.db").exists(), "before anything is started"
