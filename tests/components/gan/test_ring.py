"""Remedies on Gaussians in the plane: the small fast version of the benchmark gan_ring."""

from __future__ import annotations

import pytest
import torch

from tests.benchmarks import gan_ring


def test_modes_are_counted_where_points_lie():
    centres = gan_ring.CENTRES["ring"]
    assert gan_ring.modes_kept(centres.repeat(10, 1), centres) == (8, 1.0)
    assert gan_ring.modes_kept(centres[:3].repeat(10, 1), centres) == (3, 1.0)
    astray = torch.cat([centres[:1].repeat(50, 1), torch.zeros(50, 2)])
    assert gan_ring.modes_kept(astray, centres) == (1, 0.5)
    stray = torch.cat([centres[:1].repeat(999, 1), centres[1:2]])
    assert gan_ring.modes_kept(stray, centres)[0] == 1, "one point in a thousand is no mode"


def test_gradient_penalty_brings_the_critics_gradient_to_one():
    config = {**gan_ring.REMEDIES["wgan_gp"], "gradient_penalty": 10.0, "num_critic_steps": 1}
    before, after = (gan_ring.gradient_norm(gan_ring.trained("ring", config, 0, steps), "ring") for steps in (1, 350))
    assert abs(after - 1) < abs(before - 1) / 2, "the benchmark waits until it is there"


@pytest.mark.slow
@pytest.mark.parametrize("remedy", ["unrolled", "minibatch discrimination"])
def test_remedies_keep_modes_that_vanilla_drops(remedy):
    def kept(name: str) -> int:
        family = gan_ring.trained("ring", gan_ring.REMEDIES[name], 0, gan_ring.STEPS)
        return gan_ring.modes_kept(gan_ring.sampled(family), gan_ring.CENTRES["ring"])[0]

    assert kept(remedy) > kept("vanilla")


def test_the_plot_and_the_table_tell_every_run(tmp_path):
    def of(places: str, remedy: str, seed: int) -> dict:
        points = gan_ring.CENTRES[places].repeat(3, 1)[: 10 + seed]
        modes, share = gan_ring.modes_kept(points, gan_ring.CENTRES[places])
        return {"modes": modes, "share": share, "gradient_norm": 1.0 + seed, "points": points.tolist()}

    table = {
        places: {remedy: [of(places, remedy, seed) for seed in gan_ring.SEEDS] for remedy in gan_ring.REMEDIES}
        for places in gan_ring.CENTRES
    }
    gan_ring.plot(table, tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text()
    assert drawn.lstrip().startswith("<?xml") and all(remedy in drawn for remedy in gan_ring.REMEDIES)
    assert "[8, 8, 8] of 8" in drawn and "[10, 11, 12] of 25" in drawn
    told = dict(gan_ring.told(table))
    assert told["ring"]["vanilla"] == {"modes": [8, 8, 8], "share_at_modes": 1.0, "gradient_norm": 2.0}
