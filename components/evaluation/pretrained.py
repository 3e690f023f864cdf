"""Pretrained networks behind figures that are compared across projects: Inception-v3 as ported from TensorFlow, DINOv2,
CLIP, and AlexNet for LPIPS. The libraries that own them build them; they are the extra `metrics`, imported on demand.

Weights come from a local path, or from the hub by name where the library can fetch them; nothing stands in for a file
that is missing.
"""

from __future__ import annotations

import importlib
import importlib.util
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from components.data.media.image import MEDIUM
from components.errors import ConfigError, SamplerError
from components.evaluation.extractor import Embedding, Extractor
from components.evaluation.protocol import EvaluateConfig, ExtractorConfig
from components.files import sha256, sha256_folder
from components.interchange import folders
from components.shapes import per_channel

_INCEPTION = "weights-inception-2015-12-05-6726825d.pth, an asset of torch-fidelity's releases"
_ALEXNET = "torchvision's alexnet-owt-7be5be79.pth (AlexNet_Weights.IMAGENET1K_V1)"
_SOURCES = {"dinov2": "facebook/dinov2-large", "clip": "openai/clip-vit-large-patch14-336"}  # as published: FD, CMMD
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and spread of a channel
_CLIP = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)  # Radford et al. 2021, released code
_LPIPS_SIDE = 64  # pixels: smaller images leave AlexNet nothing after its strides


def _library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"evaluate: {name} cannot be imported ({error}); install the extra `metrics`") from None


def _file(path: str, what: str, where: str) -> Path:
    if not path or not Path(path).is_file():
        raise ConfigError(f"{what}: {path or 'no path given'}: no such file; expected {where}")
    return Path(path)


def _state_dict(path: Path) -> dict[str, Tensor]:
    """Raises SamplerError unless the file holds tensors alone; loading runs no code."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise SamplerError(f"{path}: not a file of weights ({str(error).splitlines()[0][:200]})") from None


def refuse_missing(config: EvaluateConfig, has_clip: bool) -> None:
    """Raises ConfigError of weights or libraries that this configuration needs and that are not here. Imports none and
    asks no network: what only their content tells, opening them will. `has_clip`: whether one is trained here."""
    extractor, where = config.extractor, "evaluate.extractor.weights"
    if extractor.name == "inception":
        _file(extractor.weights, where, _INCEPTION)
        _refuse_uninstalled("torch_fidelity")
    elif extractor.name == "dinov2" or (extractor.name == "clip" and (extractor.weights or not has_clip)):
        _refuse_no_transformer(extractor.weights, where, extractor.name)
    if config.lpips:
        _file(config.lpips, "evaluate.lpips", _ALEXNET)
        _refuse_uninstalled("torchvision")
    if config.clip_score:
        _refuse_no_transformer(config.clip_score, "evaluate.clip_score", "clip")


def _refuse_no_transformer(weights: str, what: str, name: str) -> None:
    if not weights:
        raise ConfigError(f"{what}: no path given; expected {_known(name)}")
    folders.refuse_missing(weights, what, _known(name))
    _refuse_uninstalled("transformers")


def _known(name: str) -> str:
    return f"a folder or hub name such as {_SOURCES[name]}"


def _refuse_uninstalled(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        raise ConfigError(f"evaluate: {name} is not installed; install the extra `metrics`")


def rgb(images: Tensor) -> Tensor:
    """(N, 1 or 3, H, W) -> (N, 3, H, W)."""
    return images.expand(-1, 3, -1, -1)


def build(config: ExtractorConfig, device: str) -> Extractor:
    """The extractor that a pretrained name stands for. Raises ConfigError if its library or its weights are missing,
    telling where they are to be had, SamplerError if the weights are another network's."""
    return {"inception": inception, "dinov2": dinov2, "clip": clip}[config.name](config.weights, device)


def inception(weights: str, device: str) -> Extractor:
    """Inception-v3 of the published FID (Heusel et al. 2017): 2048 pooled features; as logits the 1008 classes without
    bias, which the Inception Score is computed on. Resizes inside, as TensorFlow 1 did."""
    path = _file(weights, "evaluate.extractor.weights", _INCEPTION)
    module = _library("torch_fidelity.feature_extractor_inceptionv3")
    _state_dict(path)  # the library unpickles whatever it is given: refuse here what is more than tensors
    try:
        net = module.FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
        ).to(device)
    except RuntimeError as error:
        raise SamplerError(f"{path}: not Inception-v3's weights ({' '.join(str(error).split())[:200]})") from None

    @torch.inference_mode()
    def embed(images: Tensor) -> Embedding:
        vectors, logits = net(MEDIUM.to_stored(rgb(images)).to(device))
        return Embedding(vectors.double().cpu(), logits.double().cpu())

    resize, libraries = "bilinear to 299 as TensorFlow 1", ("torch-fidelity",)
    return Extractor("inception", sha256(path), None, embed, resize, libraries, MEDIUM.name)


def resized(images: Tensor, side: int, statistics: tuple[Sequence[float], Sequence[float]]) -> Tensor:
    """Images in [-1, 1] -> (N, 3, side, side) as a vision transformer takes them: 256 levels, antialiased bicubic
    resize, channels standardised."""
    pixels = MEDIUM.to_stored(rgb(images))
    if pixels.shape[-2:] != (side, side):
        pixels = F.interpolate(pixels.float(), (side, side), mode="bicubic", antialias=True).clamp(0, 255).round()
    mean, std = (per_channel(torch.tensor(values, device=pixels.device), pixels) for values in statistics)
    return (pixels.float() / 255 - mean) / std


def _transformer(kind: str, weights: str, what: str, name: str) -> tuple[torch.nn.Module, Path]:
    """A model of transformers and the folder that it came from."""
    known = _known(name)
    if not weights:
        raise ConfigError(f"{what}: no path given; expected {known}")
    transformers = _library("transformers")
    folder = folders.folder_of(weights, what, known)
    try:
        return getattr(transformers, kind).from_pretrained(folder, use_safetensors=True).eval(), folder
    except (OSError, ValueError) as error:
        raise ConfigError(f"{what}: {weights}: {str(error).splitlines()[0]}; expected {known}") from None


def dinov2(weights: str, device: str) -> Extractor:
    """DINOv2's class token (Oquab et al. 2024), the features of FD-DINOv2 (Stein et al. 2023)."""
    net, folder = _transformer("Dinov2Model", weights, "evaluate.extractor.weights", "dinov2")
    net, side = net.to(device), 224

    @torch.inference_mode()
    def embed(images: Tensor) -> Embedding:
        found = net(pixel_values=resized(images.to(device), side, _IMAGENET)).pooler_output
        return Embedding(found.double().cpu(), None)

    resize = f"antialiased bicubic to {side}"
    weights_hash = sha256_folder(folder, "*.safetensors")
    return Extractor("dinov2", weights_hash, None, embed, resize, ("transformers",), MEDIUM.name)


def clip(weights: str, device: str) -> Extractor:
    """CLIP's projected image embedding (Radford et al. 2021), the features of CMMD (Jayasumana et al. 2024)."""
    net, folder = _transformer("CLIPModel", weights, "evaluate.extractor.weights", "clip")
    net, side = net.to(device), net.config.vision_config.image_size

    def embed(images: Tensor) -> Embedding:
        return Embedding(_embedded(net, images, device).double().cpu(), None)

    resize = f"antialiased bicubic to {side}"
    weights_hash = sha256_folder(folder, "*.safetensors")
    return Extractor("clip", weights_hash, None, embed, resize, ("transformers",), MEDIUM.name)


@torch.inference_mode()
def _embedded(net: torch.nn.Module, images: Tensor, device: str) -> Tensor:
    """(N, projection_dim) CLIP embeddings of images."""
    pixels = resized(images.to(device), net.config.vision_config.image_size, _CLIP)
    return net.visual_projection(net.vision_model(pixel_values=pixels).pooler_output)


def clip_scorer(weights: str, device: str) -> tuple[Callable[[Tensor, list[str]], Tensor], str]:
    """A function of images (N, C, H, W) and N texts: (N,) 100 max(cosine, 0) (Hessel et al. 2021, equation 1, with the
    usual weight 100), and the hash of its weights."""
    net, folder = _transformer("CLIPModel", weights, "evaluate.clip_score", "clip")
    net, tokenizer = net.to(device), _library("transformers").AutoTokenizer.from_pretrained(folder)

    @torch.inference_mode()
    def score(images: Tensor, texts: list[str]) -> Tensor:
        different = list(dict.fromkeys(texts))
        tokens = tokenizer(different, padding=True, truncation=True, return_tensors="pt").to(device)
        spoken = net.text_projection(
            net.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output
        )
        places = torch.tensor([different.index(text) for text in texts], device=device)
        cosine = F.cosine_similarity(_embedded(net, images, device), spoken[places])
        return 100 * cosine.clamp(min=0).double().cpu()

    return score, sha256_folder(folder, "*.safetensors")


def lpips(weights: str, device: str) -> tuple[Callable[[Tensor, Tensor], Tensor], str]:
    """A function of two sets of images: (N,) LPIPS between pairs; and the hash of its weights."""
    net = lpips_net(weights, "evaluate.lpips").to(device)

    @torch.inference_mode()
    def distance(a: Tensor, b: Tensor) -> Tensor:
        return net(rgb(a).to(device), rgb(b).to(device)).flatten(0).double().cpu()

    return distance, sha256(Path(weights))


def lpips_net(weights: str, where: str) -> torch.nn.Module:
    """LPIPS (Zhang et al. 2018), AlexNet, sides brought to 64: two sets of images (N, 3, H, W) -> N differentiable
    distances. torchmetrics has the linear layers, the file holds AlexNet. `where` is told in errors."""
    path = _file(weights, where, _ALEXNET)
    _library("torchvision")
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    net = _NoTrainLpips(net="alex", pnet_rand=True, resize=_LPIPS_SIDE)
    state = _state_dict(path)
    places = {key.split(".", 1)[1]: key for key in net.net.state_dict()}  # slice3.6.weight: torchvision's features.6
    missing = [name for name in places if f"features.{name}" not in state]
    if missing:
        raise SamplerError(f"{path}: no features.{missing[0]} in it; expected {_ALEXNET}")
    net.net.load_state_dict({key: state[f"features.{name}"] for name, key in places.items()})
    return net
