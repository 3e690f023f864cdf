"""What the judge learns of data without two classes."""

import pytest
import torch

from components.data.randomness import Draws
from components.families.judge import turned
from components.training.loop import step_phase
from tests.components.families.contract import CONFIG, active_phase
from tests.components.helpers import IMAGES, build, stream

pytestmark = pytest.mark.usefixtures("exact")


@pytest.mark.parametrize("classes", [(), ("all",)])
@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 16, 24)])
def test_data_without_two_classes_teach_features_without_labels(classes, shape):
    judge = build("judge", data=IMAGES.model_copy(update={"classes": classes, "shape": shape}))
    assert not judge.tells_classes
    judge.nets.train()
    batch = next(stream("judge"))
    images = torch.randint(0, 256, (6, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch.columns.clear()
    batch.columns["image"] = images
    figures = step_phase(judge, active_phase(judge, "classify"), batch, 0, CONFIG)
    assert {"turns_told", "coarse_error"} <= figures.keys() and torch.isfinite(figures["loss"])
    assert all(parameter.grad is not None for parameter in judge.nets.parameters())


def test_each_image_is_turned_by_its_own_draw():
    images, draws = torch.rand(64, 1, 8, 8), Draws.of_seeds(torch.arange(64))
    shown, turns = turned(images, draws)
    assert set(turns.tolist()) == {0, 1, 2, 3}
    for image, one, turn in zip(images, shown, turns.tolist(), strict=True):
        assert torch.equal(one.rot90(-turn, (1, 2)), image)
    wide, ways = turned(torch.rand(64, 1, 8, 12), draws)
    assert wide.shape == (64, 1, 8, 12) and torch.equal(ways, turns)
    alone, _ = turned(images[5:6], Draws(draws.keys[5:6]))
    assert torch.equal(alone[0], shown[5])
