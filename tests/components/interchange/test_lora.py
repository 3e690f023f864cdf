"""Adapters to and from the files that diffusers reads: the same images there."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from components.artifacts.run_folder import Provenance, Run, RunConfig
from components.errors import SamplerError
from components.families.stable_diffusion import Model, adapter_net
from components.interchange import lora
from components.interchange.from_diffusers import read
from tests.components.helpers import assert_same, copied
from tests.components.interchange import folders
from tests.components.interchange.test_from_diffusers import PROMPTS, noise, ours


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The folder of a pipeline of XL, and the pipeline."""
    folder = tmp_path_factory.mktemp("lora") / "model"
    made = folders.stable_diffusion_xl(folder)
    made.set_progress_bar_config(disable=True)
    return folder, made


def adapted(folder, adapters) -> Model:
    """Our model of a folder, with adapters of random weights."""
    family = read(folder)
    config = Model.Config(**{**family.config.model_dump(), "adapters": adapters})
    made = Model(config, family.data)
    made.nets.load_state_dict(family.nets.state_dict(), strict=False)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name in adapters:
            for parameter in made.nets[adapter_net(name)].parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 5)
    made.nets.requires_grad_(False).eval()
    return made


def exported(family: Model, target):
    run = RunConfig(
        family="stable_diffusion",
        config=family.config.model_dump(mode="json"),
        data=family.data,
        provenance=Provenance(data="d", code="c", job="j", seed=0, step=1),
    )
    lora.export(Run(family, run, target), target)
    return target


def test_diffusers_loads_an_adapter_and_draws_the_same(pair, tmp_path):
    folder, pipe = pair
    family = adapted(folder, {"style": {"rank": 3, "alpha": 6.0, "targets": ("to_q", "to_v", "ff.net.0.proj")}})
    file = exported(family, tmp_path / "out") / lora.WEIGHTS
    found, settings = ours(family, guidance_scale=4.0)

    def theirs() -> torch.Tensor:
        made = pipe(
            prompt=list(PROMPTS),
            guidance_scale=4.0,
            num_inference_steps=settings.num_inference_steps,
            latents=noise(family, len(PROMPTS)),
            output_type="pt",
        )
        return made.images * 2 - 1

    plain = theirs()
    pipe.load_lora_weights(tmp_path / "out")
    assert (found - theirs()).abs().max() < 1e-3
    pipe.unload_lora_weights()
    assert (found - plain).abs().max() > 1e-2
    back = read(folder, adapters={"style": file, "other": file})
    assert_same(copied(back.nets["adapter_other"]), copied(back.nets["adapter_style"]))
    assert torch.allclose(ours(back, guidance_scale=4.0, adapter="style")[0], found, atol=1e-4)
    assert (ours(back, guidance_scale=4.0)[0] - plain).abs().max() < 1e-3, "of several adapters none is on"


def test_files_of_other_kinds_are_refused(pair, tmp_path):
    folder, _ = pair
    path = tmp_path / "style.safetensors"
    with pytest.raises(SamplerError, match="style.safetensors: missing; expected LoRA weights as diffusers saves them"):
        lora.read(path)
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    bad = {
        "text_encoder.layer.q.lora_A.weight": "of the U-Net alone",
        f"unet.{name}.lora_A.weight": "expected a pair of matrices",
        f"lora_unet_{name.replace('.', '_')}.lora_down.weight": "expected LoRA weights as diffusers saves them",
    }
    for key, message in bad.items():
        safetensors.torch.save_file({key: torch.zeros(2, 64)}, path)
        with pytest.raises(SamplerError, match=message):
            lora.read(path)
    pair_of = {f"unet.{name}.lora_A.weight": torch.zeros(2, 65), f"unet.{name}.lora_B.weight": torch.zeros(64, 2)}
    safetensors.torch.save_file(pair_of, path)
    with pytest.raises(SamplerError, match="style.safetensors: adapts another U-Net"):
        read(folder, adapters={"style": path})


def test_old_names_and_alphas_are_read(tmp_path):
    path, name = tmp_path / "old.safetensors", "unet.mid_block.attentions.0.to_q"
    down, up = torch.randn(4, 6), torch.randn(5, 4)
    old = {f"{name}.lora.down.weight": down, f"{name}.lora.up.weight": up, f"{name}.alpha": torch.tensor(2.0)}
    safetensors.torch.save_file(old, path)
    config, weights = lora.read(path)
    assert config.rank == 4 and config.scale == 1
    assert torch.equal(weights["up.backbone/mid_block/attentions/0/to_q"], up / 2)
    with pytest.raises(SamplerError, match=r"expected a run of stable_diffusion with model\.adapters"):
        family = type("Other", (), {"config": None})()
        lora.export(Run(family, None, tmp_path), tmp_path / "out")


def test_the_alpha_of_a_header_is_applied_and_one_by_layer_refused(tmp_path):
    path, layer = tmp_path / "new.safetensors", "mid_block.attentions.0.to_q"
    down, up = torch.randn(4, 6), torch.randn(5, 4)
    pair = {f"unet.{layer}.lora_A.weight": down, f"unet.{layer}.lora_B.weight": up}
    told = {"unet.r": 4, "unet.lora_alpha": 16, "unet.alpha_pattern": {}, "unet.use_rslora": False}
    safetensors.torch.save_file(pair, path, metadata={lora.HEADER: json.dumps(told)})
    assert torch.equal(lora.read(path)[1][f"up.backbone/{layer.replace('.', '/')}"], 4 * up)
    safetensors.torch.save_file(pair, path, metadata={lora.HEADER: json.dumps({**told, "unet.use_rslora": True})})
    with pytest.raises(SamplerError, match="use_rslora in its header; expected one alpha for all layers"):
        lora.read(path)
