"""What makes each variant itself, against independent formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from components.data.randomness import Draws
from components.errors import DataError, SamplerError
from components.families import family_class, family_names
from components.gan.base import GAN
from components.gan.remedies import weights_of
from components.gan.standing_statistics import WHOLE, truncated_normal
from components.metrics.figures import values
from components.metrics.probe import probe_accuracy
from components.nets.gan.critic import Critic
from components.nets.gan.dcgan import Flat, Trunk
from components.nets.gan.layers import SelfAttention
from components.nets.gan.residual import part_sizes
from components.nets.gan.stylegan2 import ModulatedConv, demodulation, enlarge, reduce
from components.sampling.requests import Conditions, Request
from tests.components.helpers import IMAGES, Rows, build, copied, stream, tiny_data

VARIANTS = [name for name in family_names() if issubclass(family_class(name), GAN)]


def sampled(family, seeds, labels=None, **settings) -> torch.Tensor:
    labels = None if labels is None else torch.tensor(labels)
    return family.sample(Request(torch.tensor(seeds), family.Settings(**settings), Conditions(label=labels)))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("shape", [(1, 15, 15), (1, 16, 8), (1, 4, 4)])
def test_image_shape_that_does_not_fit_is_refused(name, shape):
    with pytest.raises(SamplerError, match=f"{name}: .*{shape[1]}"):
        build(name, data=tiny_data(name).model_copy(update={"shape": shape}))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 32, 32)])
def test_other_sizes_and_colour(name, shape):
    family = build(name, data=tiny_data(name).model_copy(update={"shape": shape}))
    labels = [0, 1] if family.conditional else None
    assert sampled(family, [1, 2], labels).shape == (2, *shape)


@pytest.mark.parametrize("name", ["sagan", "biggan"])
def test_conditional_variants_want_classes(name):
    with pytest.raises(DataError, match=f"{name}: expected labelled images"):
        family_class(name)(family_class(name).Config(), IMAGES.model_copy(update={"classes": ()}))


@pytest.mark.parametrize("name", ["cgan", "stylegan2", "r3gan"])
def test_classes_are_optional(name):
    family = build(name, data=IMAGES.model_copy(update={"classes": ()}))
    assert not family.conditional
    assert sampled(family, [1, 2]).shape == (2, 1, 16, 16)
    for phase in family.phases:
        loss = phase.loss(family.nets[phase.net], next(stream("dcgan")))["loss"]
        assert torch.isfinite(loss)


@pytest.mark.parametrize("name", [name for name in VARIANTS if family_class(name).conditional])
def test_the_class_steers(name):
    family = build(name)
    with torch.no_grad():  # away from initial values that ignore the class
        for parameter in family.nets["generator"].parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    images = sampled(family, [1, 1, 1], [0, 0, 1])
    assert torch.allclose(images[0], images[1], atol=1e-5)
    assert (images[0] - images[2]).abs().max() > 1e-5


def critic(condition: str) -> Critic:
    seen = 1 + (3 if condition == "concatenate" else 0)
    return Critic(Trunk(seen, 16, 4, batch_norm=False), Flat, condition=condition, num_classes=3)


def test_projection_against_its_closed_form():
    net = critic("project")
    images, label = torch.randn(5, 1, 16, 16), torch.tensor([0, 1, 2, 1, 0])
    features = net.head(net.trunk(images))
    expected = (
        features @ net.score.weight[0]
        + net.score.bias
        + torch.einsum("bd,bd->b", net.embedding.weight[label], features)
    )
    assert torch.allclose(net({"images": images, "label": label}).scores[0], expected, atol=1e-5)


def test_concatenation_is_a_plane_a_class():
    net = critic("concatenate")
    images, label = torch.randn(2, 1, 16, 16), torch.tensor([2, 0])
    planes = torch.zeros(2, 3, 16, 16)
    planes[0, 2] = planes[1, 0] = 1
    expected = net.score(net.head(net.trunk(torch.cat([images, planes], 1))))[:, 0]
    assert torch.allclose(net({"images": images, "label": label}).scores[0], expected, atol=1e-6)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_groups_are_scored_as_if_alone(batch_norm):
    net = Critic(Trunk(1, 16, 4, batch_norm), Flat)
    real, fake = {"images": torch.randn(6, 1, 16, 16)}, {"images": 3 + torch.randn(4, 1, 16, 16)}
    together = net(real, fake)
    assert [len(scores) for scores in together.scores] == [6, 4]
    for place, group in enumerate((real, fake)):
        assert torch.allclose(net(group).scores[0], together.scores[place], atol=1e-5)


def test_self_attention_against_its_definition():
    layer = SelfAttention(8)
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(layer(x), x), "it begins as the identity"
    layer.gain.data.fill_(0.7)
    query = layer.query(x).flatten(2)
    key, value = (F.max_pool2d(part(x), 2).flatten(2) for part in (layer.key, layer.value))
    out = torch.stack([
        sum(torch.softmax(query[b, :, place] @ key[b], 0)[other] * value[b, :, other] for other in range(4))
        for b in range(2) for place in range(16)
    ]).unflatten(0, (2, 4, 4)).permute(0, 3, 1, 2)  # fmt: skip
    assert torch.allclose(layer(x), x + 0.7 * layer.out(out), atol=1e-5)


# -- BigGAN


def test_truncated_normal_stays_within_and_keeps_its_shape():
    draws = Draws.of_seeds(torch.arange(2000))
    z = truncated_normal(draws, "z", 5, torch.full((2000,), 0.5))
    assert z.abs().max() < 0.5
    edge = 0.5
    density = math.exp(-(edge**2) / 2) / math.sqrt(2 * math.pi)
    expected = 1 - 2 * edge * density / math.erf(edge / math.sqrt(2))  # the variance of a normal cut at +-edge
    assert float(z.var()) == pytest.approx(expected, rel=0.03)
    whole = truncated_normal(draws, "z", 5, torch.full((2000,), WHOLE))
    assert float(whole.std()) == pytest.approx(1, rel=0.02)
    assert torch.isfinite(whole).all()


def test_standing_statistics_are_those_of_the_truncation():
    family = build("biggan")
    family.nets.eval()
    before = copied(family.nets["generator"])
    narrow, wide = (family.calls["generator"].statistics(truncation) for truncation in (0.3, WHOLE))
    assert family.calls["generator"].statistics(0.3) is narrow
    key = next(name for name in narrow if name.startswith("blocks.0.norm1") and name.endswith("var"))
    assert (narrow[key] < wide[key]).all(), "narrower draws vary less"
    for name, value in copied(family.nets["generator"]).items():
        assert torch.equal(value, before[name]), "the net's own statistics stay"
    with torch.no_grad():
        next(family.nets["generator"].parameters()).mul_(2)
    assert family.calls["generator"].statistics(0.3) is not narrow, "other weights, other statistics"


def test_statistics_of_any_truncation_are_few():
    family = build("biggan")
    family.nets.eval()
    answer = family.calls["generator"]
    assert answer.statistics(0.51) is answer.statistics(0.5) is answer.statistics(0.4801)
    assert answer.statistics(1e-4) is answer.statistics(0.05), "never of no spread"
    first = answer.statistics(0.3)
    for place in range(1, 32):
        answer.statistics(1 + place / 20)
    assert answer.statistics(0.3) is first and len(answer._found) == 32
    for place in range(1, 33):
        answer.statistics(3 + place / 20)
    assert len(answer._found) == 32 and answer.statistics(0.3) is not first


def test_rows_of_different_truncation_share_a_call():
    family = build("biggan")
    z = truncated_normal(Draws.of_seeds(torch.arange(4)), "z", 7, torch.full((4,), 0.5))
    label, levels = torch.tensor([0, 1, 2, 0]), torch.tensor([0.5, WHOLE, 0.5, WHOLE])
    family.nets.eval()
    with torch.inference_mode():
        together = family.calls["generator"](z, levels, label)
        for row in range(4):
            alone = family.calls["generator"](z[row : row + 1], levels[row : row + 1], label[row : row + 1])
            assert torch.allclose(alone[0], together[row], atol=1e-5)


def test_every_block_gets_a_part_of_z():
    assert part_sizes(7, 3) == [3, 2, 2]
    family = build("biggan")
    generator = family.nets["generator"].eval()
    z = torch.randn(1, 7).requires_grad_()
    with torch.no_grad():
        for block in generator.blocks:
            block.norm1.gain.parametrizations.weight.original.normal_()
    generator(z, torch.tensor([1])).sum().backward()
    assert (z.grad != 0).all()


def test_orthogonal_regularisation_spares_the_embedding():
    generator = build("biggan").nets["generator"]
    sizes = [tuple(weight.shape) for weight in weights_of(generator)]
    assert (3, 3) not in sizes and len(sizes) > 10


# -- BigBiGAN


def test_encoder_and_generator_want_the_opposite_of_the_discriminator():
    family = build("bigbigan")
    batch = next(stream("bigbigan"))
    family.nets["discriminator"].requires_grad_(False)  # as in the encoder's phase: spectral norms rest
    scores = family.nets["discriminator"](family.real_inputs(batch)).scores[0]
    assert scores.shape == (6, 3)
    loss = family.encoder_loss(family.nets["encoder"], batch)["loss"]
    assert float(loss.detach()) == pytest.approx(float(scores.mean().detach()), rel=1e-4), "real pairs are to score low"


def test_bigbigan_reconstructs_and_is_probed():
    family = build("bigbigan")
    rows = Rows(IMAGES, 60).columns
    figures = values(family.validate(rows, Rows(IMAGES, 40).columns, None))
    assert 0 <= figures["probe_accuracy"] <= 1
    assert 0 < figures["reconstruction"] < 4


def test_probe_reads_classes_off_separate_features_and_chance_off_noise():
    generator = torch.Generator().manual_seed(0)
    labels, others = torch.arange(300) % 3, torch.arange(150) % 3
    centres = 3 * torch.eye(3)
    noise, noise_too = torch.randn(300, 3, generator=generator), torch.randn(150, 3, generator=generator)
    assert probe_accuracy(centres[labels] + 0.3 * noise, labels, centres[others] + 0.3 * noise_too, others) == 1
    assert probe_accuracy(noise, labels, noise_too, others) < 0.5


# -- StyleGAN2


def test_demodulated_weights_have_unit_norm():
    weight, style = torch.randn(6, 4, 3, 3), torch.randn(5, 4)
    whole = weight[None] * style[:, None, :, None, None] * demodulation(weight, style)[:, :, None, None, None]
    assert torch.allclose(whole.flatten(2).norm(dim=2), torch.ones(5, 6), atol=1e-5)


@pytest.mark.parametrize("demodulate", [True, False])
def test_modulated_convolution_against_a_kernel_for_each_row(demodulate):
    conv = ModulatedConv(4, 6, 3, 5, demodulate)
    x, w = torch.randn(3, 4, 8, 8), torch.randn(3, 5)
    weight, style = conv.weight * conv.scale, conv.style(w)
    for row in range(3):
        kernel = weight * style[row][None, :, None, None]
        if demodulate:
            kernel = kernel / kernel.flatten(1).norm(dim=1)[:, None, None, None]
        expected = F.conv2d(x[row : row + 1], kernel, padding=1)
        assert torch.allclose(conv(x, w)[row], expected[0], atol=1e-4)


def test_resampling_filters():
    x = torch.zeros(1, 1, 8, 8)
    x[0, 0, 4, 4] = 1
    taps = torch.tensor([1.0, 3, 3, 1])
    assert torch.allclose(enlarge(x)[0, 0, 7:11, 7:11], torch.outer(taps, taps) / 16)
    assert float(reduce(torch.ones(1, 2, 8, 8)).std()) == pytest.approx(0, abs=1e-6)


def test_psi_of_zero_is_the_mean_style_for_every_seed():
    family = build("stylegan2")
    family.nets["generator"].mapping.mean.normal_(generator=torch.Generator().manual_seed(0))
    label = [0, 0]
    apart, drawn = sampled(family, [1, 2], label), sampled(family, [1, 2], label, truncation_psi=0)
    assert (drawn[0] - drawn[1]).abs().max() < 1e-5 < (apart[0] - apart[1]).abs().max()


def test_noise_inputs_show_once_their_strength_is_learnt():
    family = build("stylegan2")
    generator = family.nets["generator"].eval()
    z, label = torch.randn(1, 5).expand(2, -1), torch.zeros(2, dtype=torch.int64)
    noise = torch.randn(2, generator.noise_size)
    assert torch.allclose(*generator(z, noise, label), atol=1e-6), "strengths begin at 0"
    generator.seconds[-1].strength.data.fill_(0.5)
    first, second = generator(z, noise, label)
    assert (first - second).abs().max() > 1e-3


def test_mixed_rows_take_their_later_styles_from_the_second_code():
    generator = build("stylegan2").nets["generator"].eval()
    z, z2, label = torch.randn(2, 5), torch.randn(2, 5), torch.tensor([0, 1])
    w = generator.styles(z, label, z2, torch.tensor([2, generator.num_layers]), None)
    one, two = generator.mapping(z, label), generator.mapping(z2, label)
    assert torch.allclose(w[0, :2], one[0].expand(2, -1)) and torch.allclose(w[0, 2:], two[0].expand(3, -1))
    assert torch.allclose(w[1], one[1].expand(5, -1)), "not mixed"


@pytest.mark.parametrize("num_critic_steps", [1, 2, 4, 5])
def test_path_length_regularisation_comes_at_times_and_keeps_its_mean(num_critic_steps):
    family = build("stylegan2", path_length_every=2, num_critic_steps=num_critic_steps)
    family.nets.train()
    (generate,) = (phase for phase in family.phases if phase.name == "generate")
    due = [step for step in range(3 * num_critic_steps) if (step + 1) % generate.every == 0]
    found = [generate.loss(family.nets["generator"], next(stream("stylegan2", start=step))) for step in due]
    assert ["path_length" in figures for figures in found] == [True, False, True]
    assert float(family.nets["generator"].mean_path) > 0


# -- R3GAN


def test_r3gan_blocks_begin_as_the_identity():
    block = build("r3gan").nets["generator"].blocks[0]
    x = torch.randn(2, 16, 4, 4)
    assert torch.equal(block(x), x)


def test_r3gan_trains_on_both_penalties():
    family = build("r3gan")
    assert {"r1", "r2"} <= family.discriminator_loss(family.nets["discriminator"], next(stream("r3gan"))).keys()


@pytest.mark.parametrize("name", ["sagan", "biggan", "bigbigan"])
def test_attention_at_a_side_that_no_map_has_is_refused(name):
    with pytest.raises(SamplerError, match=f"{name}: attention_at: no map has a side of 12; expected one of 4, 8, 16"):
        build(name, attention_at=12)
    build(name, attention_at=None)


@pytest.mark.parametrize("key", [{"minibatch_std": True}, {"minibatch_discrimination": {}}])
def test_a_critic_of_pairs_compares_no_rows(key):
    config = family_class("bigbigan").Config
    with pytest.raises(ValidationError, match="BigBiGAN's critic of pairs compares no rows"):
        config(**key)
