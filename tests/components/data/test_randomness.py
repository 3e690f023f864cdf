"""Random streams: the published generator, the right distributions, and independence of everything but the key."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch

from components.data.randomness import _GAMMA, Draws, _unit, hash64, mix

ROWS = torch.arange(64)
RECORDED = {
    "keys": [-4449091916988487985, 4335662922428911021],
    "uniform": [0.8165386319160461, 0.4057486653327942, 0.5133448243141174, 0.40904754400253296],
    "normal": [
        0.07274423539638519,
        -0.16126160323619843,
        -2.4707436561584473,
        -1.6573565006256104,
        0.960588276386261,
        -1.0325385332107544,
    ],
    "seed 42": [-1.0282148122787476, -0.6324849128723145],
}


def test_mix_is_splitmix64():
    """The first outputs for seed 1234567, as reference implementations of SplitMix64 give them."""
    states = 1234567 + torch.arange(1, 6) * _GAMMA
    assert [value % 2**64 for value in mix(states).tolist()] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_mix_is_splitmix64_for_negative_states():
    def reference(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        return z ^ (z >> 31)

    states = torch.randint(-(2**63), 2**63 - 1, (1000,), generator=torch.Generator().manual_seed(0))
    assert [value % 2**64 for value in mix(states).tolist()] == [reference(state % 2**64) for state in states.tolist()]


def test_hash_is_stable_and_tells_parts_apart():
    assert hash64("order", 0, 1) == hash64("order", 0, 1)
    assert len({hash64(1), hash64("1"), hash64(1, 0), hash64(0, 1), hash64(10), hash64("a", "b"), hash64("ab")}) == 7
    assert hash64("sample") == 1871622067530876302, "changing it changes every image that a seed stands for"


def test_names_folded_in_at_once_are_those_folded_in_one_by_one():
    draws = Draws.of_seeds(torch.tensor([3, -8]))
    keys = draws.folds(["a", 5])
    assert torch.equal(keys, torch.stack([draws.fold("a").keys, draws.fold(5).keys], 1))
    assert torch.equal(Draws(keys[:, 0]).uniforms(7), draws.uniform("a", (7,)))


def test_uniform_is_open_at_both_ends():
    ends = _unit(torch.tensor([0, 2**23 - 1]))
    assert 0 < ends[0] < ends[1] < 1
    assert torch.isfinite(torch.logit(ends)).all()


@pytest.mark.parametrize("by", ["rows", "places", "steps", "names", "seeds"])
@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_distribution_along_every_axis(kind, by):
    """Kolmogorov-Smirnov, mean and variance, over 20,000 numbers that differ in one part of their key only."""
    count = 20_000

    def draw(draws: Draws, name: str | int, shape: tuple[int, ...]) -> torch.Tensor:
        return getattr(draws, kind)(name, shape)

    one = torch.tensor([3])
    values = {
        "rows": lambda: draw(Draws.of(1, 2, torch.arange(count)), "x", ()),
        "places": lambda: draw(Draws.of(1, 2, one), "x", (count,)),
        "steps": lambda: torch.cat([draw(Draws.of(1, step, ROWS[:40]), "x", ()) for step in range(count // 40)]),
        "names": lambda: torch.cat([draw(Draws.of(1, 2, ROWS[:40]), name, ()) for name in range(count // 40)]),
        "seeds": lambda: draw(Draws.of_seeds(torch.arange(count)), "x", ()),
    }[by]()
    values = values.flatten().double().numpy()
    assert len(values) == count
    expected = scipy.stats.uniform() if kind == "uniform" else scipy.stats.norm()
    assert scipy.stats.kstest(values, expected.cdf).pvalue > 1e-3
    assert values.mean() == pytest.approx(expected.mean(), abs=4 * expected.std() / math.sqrt(count))
    assert values.var() == pytest.approx(expected.var(), rel=0.05)


def test_normal_has_no_structure_between_places():
    values = Draws.of(0, 0, torch.arange(4000)).normal("x", (8,)).double()
    correlation = torch.corrcoef(torch.cat([values, values**2], dim=1).T) - torch.eye(16)
    assert correlation.abs().max() < 5 / math.sqrt(4000)
    assert scipy.stats.kurtosis(values.flatten().numpy()) == pytest.approx(0, abs=0.15)


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_streams_are_uncorrelated(kind):
    """Neighbouring rows, steps, seeds and names, folds, and a training row against a sampling seed."""

    def draw(draws: Draws, name: str | int = "x") -> torch.Tensor:
        return getattr(draws, kind)(name, (50,)).double()

    base = Draws.of(1, 2, ROWS)
    others = [
        draw(Draws.of(1, 2, ROWS + 1)),
        draw(Draws.of(1, 3, ROWS)),
        draw(Draws.of(2, 2, ROWS)),
        draw(Draws.of(2, 1, ROWS)),
        draw(Draws.of_seeds(ROWS)),
        draw(base, "y"),
        draw(base, 0),
        draw(base.fold("x")),
        draw(base.fold("y")),
        draw(base.fold(0)),
    ]
    kinds = [draw(base), *others]
    for place, left in enumerate(kinds):
        for right in kinds[place + 1 :]:
            correlation = float(torch.corrcoef(torch.stack([left.flatten(), right.flatten()]))[0, 1])
            assert abs(correlation) < 5 / math.sqrt(left.numel())


def test_values_are_the_same_everywhere():
    """Recorded once: every sampled image and every training run depends on them."""
    draws = Draws.of(0, 3, torch.tensor([0, 7]))
    assert draws.keys.tolist() == RECORDED["keys"]
    assert draws.uniform("u", (2,)).flatten().tolist() == pytest.approx(RECORDED["uniform"], abs=1e-7)
    assert draws.normal("n", (3,)).flatten().tolist() == pytest.approx(RECORDED["normal"], abs=1e-5)
    assert Draws.of_seeds(torch.tensor([42])).normal("sample", (2,)).flatten().tolist() == pytest.approx(
        RECORDED["seed 42"], abs=1e-5
    )


def everything(draws: Draws) -> list[torch.Tensor]:
    return [draws.uniform("u", (3,)), draws.normal("n", (2, 3)), draws.integers("i", 10), draws.fold("f").uniform("u")]


def test_a_rows_draws_do_not_depend_on_its_company():
    rows = torch.tensor([5, 9, 5, 0, 10**9])
    together = everything(Draws.of(1, 2, rows))
    for place, row in enumerate(rows):
        for values, alone in zip(together, everything(Draws.of(1, 2, row[None])), strict=True):
            assert torch.equal(values[place], alone[0])


@pytest.mark.parametrize(
    "rows",
    [
        torch.arange(20)[::2],
        torch.arange(20).reshape(10, 2)[:, 0],
        torch.arange(0, 20, 2, dtype=torch.int64).flip(0).flip(0),
        torch.from_numpy(np.arange(0, 20, 2)),
    ],
)
def test_draws_do_not_depend_on_memory_layout(rows):
    plain = torch.tensor([0, 2, 4, 6, 8, 10, 12, 14, 16, 18])
    for values, expected in zip(everything(Draws.of(1, 2, rows)), everything(Draws.of(1, 2, plain)), strict=True):
        assert torch.equal(values, expected)


def test_draws_ignore_and_leave_the_global_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = everything(Draws.of(1, 2, ROWS))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    for left, right in zip(first, everything(Draws.of(1, 2, ROWS)), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3, 5)])
def test_shapes_and_types(shape):
    draws = Draws.of(0, 0, ROWS)
    for values in (draws.uniform("x", shape), draws.normal("x", shape)):
        assert values.shape == (64, *shape)
        assert values.dtype == torch.float32
        assert torch.isfinite(values).all()


@pytest.mark.parametrize("high", [1, 2, 10, 1000])
def test_integers_are_uniform(high):
    values = Draws.of(0, 0, torch.arange(20_000)).integers("x", high)
    assert values.dtype == torch.int64
    assert values.min() >= 0
    assert values.max() < high
    counts = np.bincount(values.numpy(), minlength=high)
    assert high == 1 or scipy.stats.chisquare(counts).pvalue > 1e-3
