"""Pretrained extractors against the libraries that published figures come from, on the same files and images: weights
are random, their layout is the true one. `pip install` of the extra `metrics` lets these tests run."""

import json

import pytest
import torch
from PIL import Image
from torch import Tensor

from components.autoencoding.perceptual import by_lpips
from components.data.media.image import MEDIUM
from components.errors import ConfigError, SamplerError
from components.evaluation import pretrained
from components.evaluation.extractor import extract
from components.evaluation.protocol import EvaluateConfig, ExtractorConfig
from components.evaluation.set_figures import label_figures
from components.files import sha256
from components.metrics.frechet import Moments, frechet_distance
from components.metrics.kernel import KernelReference, kernel_distance
from components.metrics.neighbours import Inside, Manifold
from tests.components.evaluation.pretrained_libraries import need

COUNT = 12
RELATIVE = 1e-4


def pictures(count: int, seed: int, side: int = 20, channels: int = 3) -> Tensor:
    """uint8 images; blocks of colour, so that features differ more than noise's do."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (count, channels, 5, 5), generator=generator, dtype=torch.uint8)
    return blocks.repeat_interleave(side // 5, 2).repeat_interleave(side // 5, 3)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """The TF-ported layout, random weights whose activations neither vanish nor explode."""
    need("torchvision", "torch_fidelity")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Net

    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(Net, "load_state_dict", lambda *_: None)  # its constructor wants the file that is to be written
        patch.setattr(torch, "load", lambda *_, **__: None)
        net = Net("inception-v3-compat", ["2048"], feature_extractor_weights_path="none")
    for name, value in net.state_dict().items():
        if name.endswith("conv.weight"):
            torch.nn.init.kaiming_normal_(value)
        elif value.is_floating_point() and value.ndim == 1 and "running" not in name and "bn.weight" in name:
            value.fill_(1)
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(net.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same images as files, as torch-fidelity reads them."""
    root = tmp_path_factory.mktemp("images")
    sets = {"made": pictures(COUNT, 1), "real": pictures(COUNT, 2)}
    for name, images in sets.items():
        (root / name).mkdir()
        for number, image in enumerate(MEDIUM.to_floats(images)):
            MEDIUM.picture(image).save(root / name / f"{number:03d}.png")
    return root, sets


def test_figures_on_inception_equal_torch_fidelitys(inception_file, folders):
    from torch_fidelity import calculate_metrics

    root, sets = folders
    theirs = calculate_metrics(
        input1=str(root / "made"),
        input2=str(root / "real"),
        cuda=False,
        fid=True,
        isc=True,
        kid=True,
        prc=True,
        feature_extractor="inception-v3-compat",
        isc_splits=1,
        kid_subsets=1,
        kid_subset_size=COUNT,
        prc_neighborhood=3,
        batch_size=6,
        feature_extractor_weights_path=str(inception_file),
        cache=False,
        verbose=False,
    )
    extractor = pretrained.inception(str(inception_file), "cpu")
    made, real = (extract(extractor, MEDIUM.to_floats(images).split(6)) for images in (sets["made"], sets["real"]))
    assert made.vectors.shape == (COUNT, 2048) and made.logits.shape == (COUNT, 1008)
    ours = frechet_distance(Moments.of(made.vectors), Moments.of(real.vectors))
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=RELATIVE)
    kid, _ = kernel_distance(made.vectors, KernelReference(real.vectors))
    # theirs is a difference of float32 means of kernels of about 1, and here close to 0
    assert kid == pytest.approx(theirs["kernel_inception_distance_mean"], rel=RELATIVE, abs=1e-6)
    inside = Inside.of(made.vectors, Manifold.of(real.vectors, 3), 3)
    assert float(inside.precise().double().mean()) == pytest.approx(theirs["precision"])
    assert float(inside.recalled().double().mean()) == pytest.approx(theirs["recall"])
    score = label_figures(None, made.logits, EvaluateConfig(resamples=20))["inception_score"].value
    assert score == pytest.approx(theirs["inception_score_mean"], rel=RELATIVE)


def test_fid_on_inception_equals_torchmetrics(inception_file, folders):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Network(torch.nn.Module):
        """As torchmetrics wraps it where torch-fidelity was there when torchmetrics was imported."""

        num_features = 2048

        def __init__(self):
            super().__init__()
            path = str(inception_file)
            net = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=path)
            self.hidden = [net]  # from set_dtype, which is meant for the sums

        def forward(self, images: Tensor) -> Tensor:
            return self.hidden[0](images)[0]

    _, sets = folders
    theirs = FrechetInceptionDistance(feature=Network()).set_dtype(torch.float64)
    theirs.update(sets["real"], real=True)
    theirs.update(sets["made"], real=False)
    extractor = pretrained.inception(str(inception_file), "cpu")
    moments = [Moments.of(extractor.embed(MEDIUM.to_floats(sets[name])).vectors) for name in ("made", "real")]
    assert frechet_distance(*moments) == pytest.approx(float(theirs.compute()), rel=RELATIVE)


def test_grey_images_are_shown_to_inception_in_three_channels(inception_file):
    grey = MEDIUM.to_floats(pictures(2, 0, channels=1))
    extractor = pretrained.inception(str(inception_file), "cpu")
    torch.testing.assert_close(extractor.embed(grey).vectors, extractor.embed(grey.expand(-1, 3, -1, -1)).vectors)
    assert extractor.weights_hash == sha256(inception_file)


def test_other_weights_and_pickles_are_refused(tmp_path):
    need("torchvision", "torch_fidelity")
    path = tmp_path / "weights.pth"
    torch.save({"fc.weight": torch.zeros(2)}, path)
    with pytest.raises(SamplerError, match="not Inception-v3's weights"):
        pretrained.inception(str(path), "cpu")
    torch.save(Image.new("L", (1, 1)), path)  # unpickling it would run code
    with pytest.raises(SamplerError, match="not a file of weights"):
        pretrained.inception(str(path), "cpu")


@pytest.mark.parametrize(
    ("name", "source"),
    [("inception", "inception-2015-12-05-6726825d.pth"), ("dinov2", "facebook/dinov2"), ("clip", "openai/clip-vit")],
)
def test_missing_weights_say_where_to_get_them(name, source, tmp_path, monkeypatch):
    if name != "inception":
        need("transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for weights in ("", str(tmp_path / "none")):
        with pytest.raises(ConfigError, match=source):
            pretrained.build(ExtractorConfig(name=name, weights=weights), "cpu")
    with pytest.raises(ConfigError, match="alexnet-owt"):
        pretrained.lpips(str(tmp_path / "none"), "cpu")


@pytest.fixture(scope="module")
def dinov2_folder(tmp_path_factory):
    need("transformers")
    from transformers import Dinov2Config, Dinov2Model

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
        folder = tmp_path_factory.mktemp("dinov2")
        Dinov2Model(config).save_pretrained(folder)
    return folder


def test_dinov2_equals_transformers_own_processing(dinov2_folder):
    from transformers import Dinov2Model

    images = pictures(4, 0, side=50)
    found = pretrained.build(ExtractorConfig(name="dinov2", weights=str(dinov2_folder)), "cpu").embed(
        MEDIUM.to_floats(images)
    )
    mean, std = ((torch.tensor(values)[:, None, None]) for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    # Pillow's bicubic is antialiased; it works in 8 bits, so values differ by a level here and there
    resized = [MEDIUM.picture(image).resize((224, 224), Image.Resampling.BICUBIC) for image in MEDIUM.to_floats(images)]
    pixels = torch.stack(
        [torch.tensor(list(image.getdata())).reshape(224, 224, 3).permute(2, 0, 1) for image in resized]
    )
    theirs = Dinov2Model.from_pretrained(dinov2_folder).eval()(pixel_values=(pixels / 255 - mean) / std).pooler_output
    torch.testing.assert_close(found.vectors.float(), theirs, rtol=0.02, atol=0.02)
    assert found.logits is None


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    need("transformers")
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    tower = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    text = {**tower, "vocab_size": len(words), "max_position_embeddings": 40, "bos_token_id": 0, "eos_token_id": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vision = {**tower, "image_size": 32, "patch_size": 8}
        config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
        CLIPModel(config).save_pretrained(folder)
    return folder


def test_clip_equals_transformers_own(clip_folder):
    from transformers import AutoTokenizer, CLIPModel

    images, texts = MEDIUM.to_floats(pictures(3, 0, side=40)), ["a photo of a cat", "a dog", "a photo of a cat"]
    net = CLIPModel.from_pretrained(clip_folder).eval()
    pixels = pretrained.resized(images, 32, pretrained._CLIP)
    tokens = AutoTokenizer.from_pretrained(clip_folder)(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        theirs = net(pixel_values=pixels, **tokens)
    found = pretrained.build(ExtractorConfig(name="clip", weights=str(clip_folder)), "cpu").embed(images).vectors
    directions = torch.nn.functional.normalize(found.float())
    torch.testing.assert_close(directions, theirs.image_embeds)
    score, _ = pretrained.clip_scorer(str(clip_folder), "cpu")
    cosine = theirs.logits_per_image.diagonal() / net.logit_scale.detach().exp()
    torch.testing.assert_close(score(images, texts).float(), 100 * cosine.clamp(min=0))


def test_images_of_the_networks_own_size_are_not_resized():
    pixels = pictures(1, 0, side=20)
    mean = torch.tensor(pretrained._CLIP[0])[:, None, None]
    std = torch.tensor(pretrained._CLIP[1])[:, None, None]
    torch.testing.assert_close(
        pretrained.resized(MEDIUM.to_floats(pixels), 20, pretrained._CLIP), (pixels.float() / 255 - mean) / std
    )


def test_lpips_equals_torchmetrics_on_the_same_weights(tmp_path, monkeypatch):
    need("torchvision")
    import torchvision
    from torchmetrics.functional.image import lpips
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    monkeypatch.setattr(lpips, "_TORCHVISION_AVAILABLE", True)  # looked for when torchmetrics was imported

    with torch.random.fork_rng():
        torch.manual_seed(0)
        alexnet = torchvision.models.alexnet(weights=None)
    torch.save(alexnet.state_dict(), tmp_path / "alexnet.pth")
    theirs = _NoTrainLpips(net="alex", pnet_rand=True, resize=64)
    for slice_name, slice_net in theirs.net.named_children():
        for number, layer in slice_net.named_children():
            layer.load_state_dict(alexnet.features[int(number)].state_dict())
        assert slice_name.startswith("slice")
    a, b = (MEDIUM.to_floats(pictures(3, seed, side=40)) for seed in (1, 2))
    distance, digest = pretrained.lpips(str(tmp_path / "alexnet.pth"), "cpu")
    torch.testing.assert_close(distance(a, b).float(), theirs(a, b).flatten())
    assert float(distance(a, a).abs().max()) == 0 and digest == sha256(tmp_path / "alexnet.pth")
    a.requires_grad_()
    by_lpips(pretrained.lpips_net(str(tmp_path / "alexnet.pth"), "perceptual.lpips"), a, b).sum().backward()
    assert a.grad.abs().max() > 0, "a loss that teaches nothing"
