"""The judge of films: what it learns of motion without labels, and what it tells of a set."""

from __future__ import annotations

import pytest
import torch

from components.data.randomness import Draws
from components.errors import SamplerError
from components.families.film_judge import MOTIONS, played
from tests.components.helpers import build, tiny_data


def test_films_are_played_as_they_are_said_to_be():
    films = torch.arange(9.0)[None, None, :, None, None].expand(600, 1, 9, 2, 2)
    changed, motions = played(films, Draws.of_seeds(torch.arange(600)))
    shares = torch.bincount(motions, minlength=len(MOTIONS)) / 600
    assert torch.allclose(shares, torch.tensor([1 / 2, 1 / 6, 1 / 6, 1 / 6]), atol=0.06)
    times = changed[:, 0, :, 0, 0]
    assert (times[motions == 0] == torch.arange(9.0)).all()
    assert (times[motions == 1].sort(1).values == torch.arange(9.0)).all(), "shuffled: the same frames"
    assert (times[motions == 2] == times[motions == 2][:, :1]).all()
    assert (times[motions == 3] == torch.tensor([0.0, 0, 2, 2, 4, 4, 6, 6, 8])).all()


def test_figures_are_what_the_judge_sees():
    data = tiny_data("film_judge")
    judge = build("film_judge", data=data.model_copy(update={"statistics": {"speed": (1.0,), "room": (3.0, 3.0)}}))
    net = judge.nets["classifier"].eval()
    rows = torch.rand(7, *data.shape, generator=torch.Generator().manual_seed(2)) * 2 - 1
    seen = net.frame_logits(rows).argmax(2)
    labels = seen[:, 0].clone()
    found = judge.figures(rows, labels)
    assert found["frame_agreement"].value == pytest.approx(float((seen == labels[:, None]).double().mean()))
    natural = net.motion_logits(net.features(rows)).argmax(1) == 0
    assert found["motion_agreement"].value == pytest.approx(float(natural.double().mean()))
    assert found["trajectory_error"].value > 0
    assert set(judge.figures(rows, None)) == {"motion_agreement", "trajectory_error"}
    assert set(build("film_judge").figures(rows, None)) == {"motion_agreement"}, "of data that obey no law"
    with pytest.raises(SamplerError, match="film_judge: expected 3 frames or more, found 1"):
        build("film_judge", data=data.model_copy(update={"shape": (1, 1, 8, 8)}))


def test_features_hold_frames_before_motion():
    judge = build("film_judge")
    net = judge.nets["classifier"].eval()
    rows = torch.rand(3, *judge.data.shape) * 2 - 1
    features = net.features(rows)
    assert features.shape == (3, 6 + 4)
    assert torch.allclose(
        features[:, :6], torch.stack([net.frames.features(f) for f in rows.unbind(2)]).mean(0), atol=1e-6
    )
    reversed_features = net.features(rows.flip(2))
    assert torch.allclose(features[:, :6], reversed_features[:, :6], atol=1e-6), "looks know no order"
    assert not torch.allclose(features[:, 6:], reversed_features[:, 6:], atol=1e-4)
