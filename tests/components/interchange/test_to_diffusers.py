"""A run exported for diffusers, loaded and sampled there: the same noise gives the same images."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.torch
import torch

from components.artifacts.run_folder import Provenance, Run, RunConfig
from components.data.info import AutoencoderInfo, DataInfo
from components.data.randomness import Draws
from components.errors import SamplerError
from components.families import family_class
from components.interchange import to_diffusers
from components.sampling.requests import Conditions, Request

IMAGES = DataInfo(shape=(1, 16, 16), classes=("nought", "one", "two"))
AUTOENCODER = {"latent_channels": 2, "widths": [32, 64]}


def run(tmp_path, autoencoder=AUTOENCODER, images=IMAGES, widths=(32, 64), norm_groups=8, **config) -> Run:
    """An untrained sampler whose weights are all away from their initial values."""
    data = DataInfo(
        shape=(2, images.shape[1] // 2, images.shape[1] // 2),
        classes=images.classes,
        caption_length=8,
        statistics={"channel_mean": (0.3, -0.2), "channel_std": (1.5, 0.8)},
        autoencoder=AutoencoderInfo(config=autoencoder, data=images),
    )
    config = {"backbone": {"widths": widths, "heads": 2, "context_dim": 8, "norm_groups": norm_groups}, **config}
    kind = family_class("latent_diffusion")
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        family = kind(kind.Config(**config), data)
        for parameter in family.nets.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    family.nets.requires_grad_(False).eval()
    provenance = Provenance(data="d", code="c", job="j", seed=0, step=1)
    described = RunConfig(family="latent_diffusion", config={}, data=data, provenance=provenance)
    return Run(family, described, tmp_path / "run")


def ours(sampler: Run, labels: torch.Tensor, **settings) -> torch.Tensor:
    family = sampler.family
    return family.sample(Request(torch.arange(len(labels)), family.Settings(**settings), Conditions(label=labels)))


def theirs(sampler: Run, folder, labels: torch.Tensor, scale: float, **how) -> torch.Tensor:
    """The same images from the folder. Their flow starts from pure noise, ours a thousandth before it."""
    diffusers = pytest.importorskip("diffusers")
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    known = safetensors.torch.load_file(folder / to_diffusers.EMBEDDINGS)
    noise = Draws.of_seeds(torch.arange(len(labels))).normal("start", sampler.family.data.shape)
    none = torch.full_like(labels, -1)
    images = pipe(
        prompt_embeds=known["prompt_embeds"][labels],
        pooled_prompt_embeds=known["pooled_prompt_embeds"][labels],
        negative_prompt_embeds=known["prompt_embeds"][none],
        negative_pooled_prompt_embeds=known["pooled_prompt_embeds"][none],
        guidance_scale=scale,
        latents=noise * (0.999 if sampler.family.config.objective == "flow" else 1.0),
        output_type="pt",
        **how,
    ).images
    return images * 2 - 1


@pytest.mark.parametrize(
    ("objective", "schedule"),
    [("epsilon", "scaled_linear"), ("v", "linear"), ("edm", "cosine"), ("x0", "linear"), ("flow", "flow")],
)
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_diffusers_draws_the_same_images(objective, schedule, scale, tmp_path):
    sampler = run(tmp_path, objective=objective, schedule={"name": schedule})
    to_diffusers.export(sampler, tmp_path / "out")
    labels, steps = torch.tensor([0, 2, 1]), 9
    if objective == "flow":  # nine steps visit whole thousandths, to which diffusers rounds down
        solver, sigmas = "unipc", (np.linspace(999, 0, steps, endpoint=False).round() + 1e-6) / 1000
    else:
        solver, sigmas = "euler", sampler.family.sigmas(sampler.family.Settings(num_inference_steps=steps))
    expected = ours(sampler, labels, solver=solver, num_inference_steps=steps, guidance_scale=scale)
    found = theirs(sampler, tmp_path / "out", labels, scale, sigmas=sigmas)
    assert found.shape == expected.shape
    assert (expected[0] - expected[2]).abs().max() > 1e-2
    assert (found - expected).abs().max() < 1e-3


def test_zero_terminal_snr_and_no_classes_travel(tmp_path):
    sampler = run(tmp_path, conditioning="none", objective="v", schedule={"name": "linear", "zero_terminal_snr": True})
    to_diffusers.export(sampler, tmp_path / "out")
    labels = torch.tensor([0, 0])
    sigmas = sampler.family.sigmas(sampler.family.Settings(num_inference_steps=9))
    settings = sampler.family.Settings(solver="euler", num_inference_steps=9, guidance_scale=1.0)
    expected = sampler.family.sample(Request(torch.arange(2), settings))
    assert (theirs(sampler, tmp_path / "out", labels, 1.0, sigmas=sigmas) - expected).abs().max() < 1e-3


def test_autoencoder_speaks_normalised_latents(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    sampler = run(tmp_path)
    to_diffusers.export(sampler, tmp_path / "out")
    vae = diffusers.AutoencoderKL.from_pretrained(tmp_path / "out" / "vae")
    images = torch.linspace(-1, 1, 256).reshape(1, 1, 16, 16)
    with torch.inference_mode():
        posterior = vae.encode(images).latent_dist
        mean, std = sampler.family.nets["autoencoder"].encode(images)
        assert (posterior.mean - sampler.family.space.normalise(mean)).abs().max() < 1e-4
        assert (posterior.std[:, 0] - std[:, 0] / 1.5).abs().max() < 1e-4
        decoded = sampler.family.nets["autoencoder"].decode(mean)
        assert (vae.decode(sampler.family.space.normalise(mean)).sample - decoded).abs().max() < 1e-4


def test_folder_says_how_to_use_it_and_holds_no_pickle(tmp_path):
    to_diffusers.export(run(tmp_path), tmp_path / "out")
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files == {
        "README.md",
        "class_embeddings.safetensors",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    }
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "0 nought, 1 one, 2 two" in readme
    assert "8 in vae, 8 in unet" in readme
    for part in ("vae", "unet"):
        assert json.loads((tmp_path / "out" / part / "config.json").read_text())["norm_num_groups"] == 8
    assert json.loads((tmp_path / "out" / "model_index.json").read_text())["_class_name"] == to_diffusers.PIPELINE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "edm"}, "objective edm on schedule flow; diffusers has flow on flow"),
        ({"objective": "flow", "schedule": {"name": "linear"}}, "objective flow on schedule linear"),
        ({"schedule": {"name": "flow", "shift": 3.0}}, "flow with shift 3.0"),
        ({"autoencoder": {**AUTOENCODER, "reconstruction": "bce"}}, "logits"),
        ({"autoencoder": {**AUTOENCODER, "codebook": {}}}, "codebook"),
        ({"conditioning": "text", "text": {"width": 8}}, "what makes its texts a context was trained here"),
        ({"widths": (32, 48), "norm_groups": 32}, "norms of .*32 groups in one net; diffusers has one"),
        ({"backbone": {"name": "dit", "width": 16, "heads": 2}}, "its backbone is a dit.*expected unet"),
        ({"backbone": {"name": "mmdit", "width": 16, "heads": 2}}, "its backbone is a mmdit.*expected unet"),
        ({"images": IMAGES.model_copy(update={"shape": (1, 28, 28)})}, "28 pixels"),
        ({"images": IMAGES.model_copy(update={"classes": tuple(map(str, range(128)))})}, "129 classes"),
    ],
)
def test_what_diffusers_cannot_express_is_refused(changes, message, tmp_path):
    with pytest.raises(SamplerError, match=message):
        to_diffusers.export(run(tmp_path, **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_families_are_refused(tmp_path):
    family = family_class("vae")(family_class("vae").Config(**AUTOENCODER), IMAGES)
    provenance = Provenance(data="d", code="c", job="j", seed=0, step=1)
    config = RunConfig(family="vae", config=AUTOENCODER, data=IMAGES, provenance=provenance)
    with pytest.raises(SamplerError, match="a vae; expected latent_diffusion"):
        to_diffusers.export(Run(family, config, tmp_path / "run"), tmp_path / "out")
