"""Sound through families of images: spectra as latents, speakers beside classes, judges that look at spectra."""

from __future__ import annotations

import pytest
import torch

from components import spectra
from components.data.info import AutoencoderInfo
from components.errors import SamplerError
from components.families import family_class
from components.sampling.requests import Conditions, Request
from tests.components.helpers import Rows, build, tiny, tiny_data

pytestmark = pytest.mark.usefixtures("exact")

SOUND = tiny_data("vocoder")
CONFIG = family_class("vocoder").Config(**tiny("vocoder").config)
SPECTRA = SOUND.model_copy(
    update={
        "shape": (1, 4, 8),
        "statistics": {"channel_mean": (-0.5,), "channel_std": (0.4,)},
        "autoencoder": AutoencoderInfo(family="vocoder", config=CONFIG.model_dump(mode="json"), data=SOUND),
    }
)


def test_a_vocoder_keeps_what_it_hears_and_ends_where_a_clip_ends():
    kind = family_class("vocoder")
    data = SOUND.model_copy(update={"shape": (1, 4096)})
    family = kind(kind.Config(width=8, depth=1), data)
    noise = 0.1 * torch.randn(4096, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
    rows = torch.stack([noise, noise * (torch.arange(4096) < 2000)])[:, None]
    found = family.medium.quantised(family.reconstruct(rows))
    wanted, heard = (spectra.log_mel(part[:, 0], 8000, 128) for part in (rows, found))
    assert (wanted - heard).abs().mean() < 0.15, "6 dB, untrained, from bands that are spread over frequencies"
    assert abs(int(family.medium.num_values(found)[1]) - 2000) <= 256 and not found[1, 0, 2300:].any()


def test_phases_of_the_nets_own_learn_from_spectra_and_the_discriminator():
    family = build("vocoder", adversarial={"width": 4, "halvings": 1})
    batch, net = next(iter_batches(Rows(SOUND, 4).columns)), family.nets["autoencoder"]
    found = family.loss(net, batch)
    for term in ("waves", "adversarial"):
        (gradient,) = torch.autograd.grad(found[term], net.head.weight, retain_graph=True)
        assert gradient[net.frequencies :].abs().sum() > 0, "the phases'"
    scores = family.discriminator_loss(family.nets["discriminator"], batch)
    assert scores["loss"] > 0
    late = build("vocoder", adversarial={"width": 4, "halvings": 1, "start": 1})
    assert late.discriminator_loss(late.nets["discriminator"], batch)["loss"] == 0
    rows = family.medium.rows(Rows(SOUND, 4).columns)
    torch.testing.assert_close(family.reconstruct(rows[1:2]), family.reconstruct(rows)[1:2])


def test_clips_of_broken_hops_are_told_with_a_length_that_fits():
    kind = family_class("vocoder")
    with pytest.raises(SamplerError, match=r"whole hops of 128 samples, found 6000 .*data.seconds: 0.752 has them"):
        kind(kind.Config(), SOUND.model_copy(update={"shape": (1, 6000)}))


def test_speakers_steer_diffusion_beside_classes():
    family = build("latent_diffusion", data=SPECTRA)
    assert {"label", "speaker"} <= family.accepts
    with torch.no_grad():
        family.nets["denoiser"].backbone.class_embedding.weight.normal_()
        family.nets["denoiser"].backbone.conv_out.weight.normal_(std=0.3)
    settings = family.Settings(num_inference_steps=2)

    def made(**told) -> torch.Tensor:
        return family.sample(Request(torch.tensor([1]), settings, Conditions(label=torch.tensor([2]), **told)))

    ann, bob, nobody = made(speaker=torch.tensor([0])), made(speaker=torch.tensor([1])), made()
    assert ann.shape == (1, 1, 64) and not torch.allclose(ann, bob) and not torch.allclose(ann, nobody)
    with pytest.raises(SamplerError, match="^speaker: expected numbers 0 to 1, found"):
        made(speaker=torch.tensor([2]))
    with pytest.raises(SamplerError, match="^speaker: this sampler is not steered by speakers"):
        build("latent_diffusion").sample(Request(torch.tensor([1]), settings, Conditions(speaker=torch.tensor([0]))))


def test_a_class_and_a_speaker_are_embedded_by_a_sum_and_dropped_together():
    family = build("latent_diffusion", data=SPECTRA, label_dropout=0.5)
    conditioner = family.nets["denoiser"].conditioner
    both = conditioner.together(torch.tensor([1]), torch.tensor([0]))
    assert both.tolist() == [[0, 1, 0, 0, 1, 0, 0]], "three classes, none, two speakers, nobody"
    columns = Rows(SPECTRA, 400).columns
    batch = next(iter_batches(columns))
    told = family._training_condition(batch, 0.5)["label"]
    without_class, nobody = told[:, 3] == 1, told[:, 6] == 1
    assert torch.equal(told.sum(1), torch.full((len(told),), 2.0)) and not (without_class & ~nobody).any()
    assert 0.4 < without_class.float().mean() < 0.6 < nobody.float().mean() < 0.85


def iter_batches(columns):
    from components.data.dataset import Batch
    from components.data.randomness import Draws

    yield Batch(columns, Draws.of(0, 0, torch.arange(len(columns["label"]))))


def test_a_judge_of_sound_looks_at_spectra_whatever_their_loudness():
    family = build("judge", data=SOUND.model_copy(update={"shape": (1, 4096)}))
    net, generator = family.nets["classifier"].eval(), torch.Generator().manual_seed(0)
    rows = 0.2 * torch.randn(2, 1, 4096, generator=generator).clamp(-1, 1)
    found = net.features(rows)
    assert found.shape == (2, 6)
    torch.testing.assert_close(net.features(rows / 4), found, rtol=0, atol=1e-3)
