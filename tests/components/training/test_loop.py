"""The training loop: who moves when, what is reported and saved, and that nothing bad is saved."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from components.data.dataset import Batch
from components.data.randomness import Draws
from components.families.base import Family, Phase
from components.training import ema
from components.training.loop import State, TrainingConfig, fit
from components.training.metric_averages import MetricAverages, NonFiniteError
from components.training.optimizers import OptimizerConfig
from components.training.weight_sync import DesyncError, fingerprint, refuse_desync
from tests.components.helpers import assert_same, copied, no_wrap

PLAIN = OptimizerConfig(name="rmsprop", learning_rate=0.01)


class Toy(Family):
    """Two one-weight nets; `second` moves at every third step. `turns` records who moved on which batch."""

    kept = ("first",)

    def __init__(self, optimizer: OptimizerConfig = PLAIN, scale: float = 1.0):
        self.nets = nn.ModuleDict({name: nn.Linear(1, 1, bias=False) for name in ("first", "second")})
        for net in self.nets.values():
            nn.init.ones_(net.weight)
        self.turns: list[tuple[str, float]] = []
        self.scale = scale
        self.phases = (
            Phase("one", "first", lambda net, batch: self.loss("one", net, batch), optimizer),
            Phase("two", "second", lambda net, batch: self.loss("two", net, batch), optimizer, every=3),
        )

    def loss(self, phase: str, net: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        x = batch.columns["x"]
        self.turns.append((phase, float(x.mean())))
        return {"loss": self.scale * net(x).mean(), "x": x.mean()}


def numbered(start: int = 0, values: dict[int, float] | None = None, weight: float = 1.0):
    """Batch k holds the number k + 1, or what `values` says."""
    step = start
    while True:
        x = torch.full((2, 1), (values or {}).get(step, step + 1.0))
        yield Batch({"x": x}, Draws.of(0, step, torch.arange(2)), weight)
        step += 1


def run(family: Family, batches=None, start: State | None = None, wrap=no_wrap, **config):
    """The final state, the reports and, for every save, its step and the live weights."""
    reports, saves = [], []

    def report(step, figures):
        reports.append((step, figures))
        return figures

    state = fit(
        family,
        batches or numbered(),
        TrainingConfig(**{"steps": 7, "batch_size": 2, **config}),
        start=start,
        wrap=wrap,
        report=report,
        save=lambda state: saves.append((state.step, copied(family.nets))),
    )
    return state, reports, saves


def test_phases_move_in_turn_and_every_k_steps():
    family = Toy()
    run(family, steps=7)
    assert [(phase, int(x)) for phase, x in family.turns] == [
        ("one", 1), ("one", 2), ("one", 3), ("two", 3), ("one", 4), ("one", 5), ("one", 6), ("two", 6), ("one", 7),
    ]  # fmt: skip


def test_turns_continue_after_a_restart():
    whole = Toy()
    final, _, _ = run(whole, steps=7)
    first = Toy()
    state, _, _ = run(first, steps=2)
    second = Toy()
    again, _, _ = run(second, numbered(2), start=state, steps=7)
    assert first.turns + second.turns == whole.turns
    assert_same(again.nets, final.nets)


def test_a_finished_run_does_nothing_more():
    family = Toy()
    state, _, _ = run(family, steps=3)
    family.turns.clear()
    again, reports, saves = run(family, start=state, steps=3)
    assert (family.turns, reports, saves) == ([], [], [])
    assert_same(vars(again), vars(state))


def test_reports_and_saves_come_when_due():
    state, reports, saves = run(Toy(), steps=10, report_every=3, save_every=4)
    assert [step for step, _ in saves] == [4, 8, 10]
    assert [step for step, _ in reports] == [3, 4, 6, 8, 9, 10], "and before every save"
    assert [report["step"] for report in state.history] == [3, 4, 6, 8, 9, 10]


def test_figures_are_means_since_the_last_report():
    _, reports, _ = run(Toy(), steps=6, report_every=4, save_every=100)
    (_, first), (_, second) = reports
    assert first["one/x"] == 2.5
    assert second["one/x"] == 5.5
    assert first["two/x"] == 3
    assert second["two/x"] == 6
    assert set(first) == {
        f"{phase}/{figure}" for phase in ("one", "two") for figure in ("loss", "x", "grad_norm", "learning_rate")
    }


def test_history_keeps_what_the_workers_agree_on():
    state = fit(
        Toy(),
        numbered(),
        TrainingConfig(steps=2, batch_size=2),
        start=None,
        wrap=no_wrap,
        report=lambda step, figures: {"agreed": 1.0},
        save=lambda state: None,
    )
    assert state.history == [{"step": 2, "agreed": 1.0}]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_loss_stops_before_it_is_saved(value):
    saves, reports = [], []
    with pytest.raises(NonFiniteError, match=r"^one/loss became (nan|inf) at step 4, on global batch 4"):
        fit(
            Toy(),
            numbered(values={4: value}),
            TrainingConfig(steps=20, batch_size=2, report_every=10, save_every=2),
            start=None,
            wrap=no_wrap,
            report=lambda step, figures: reports.append(step) or figures,
            save=lambda state: saves.append(copied_state(state)),
        )
    assert [step for step, _ in saves] == [2, 4]
    assert reports == [2, 4]
    assert all(torch.isfinite(weight).all() for _, nets in saves for net in nets.values() for weight in net.values())


def copied_state(state: State) -> tuple[int, dict]:
    return state.step, {name: {key: value.clone() for key, value in net.items()} for name, net in state.nets.items()}


def test_non_finite_gradient_of_a_finite_loss_is_not_saved():
    class Root(Toy):
        def loss(self, phase, net, batch):
            return {"loss": (net(batch.columns["x"]) - 1).clamp(min=0).sqrt().mean()}  # infinite slope at 0

    family, saves = Root(), []
    with pytest.raises(NonFiniteError, match="grad_norm"):
        fit(
            family,
            numbered(),
            TrainingConfig(steps=1, batch_size=2),
            start=None,
            wrap=no_wrap,
            report=lambda step, figures: figures,
            save=saves.append,
        )
    assert saves == []


def test_clip_bounds_the_whole_gradient():
    norms = {}

    def wrap(net, optimizer):
        step = optimizer.step

        def recorded():
            norms.setdefault(id(net), []).append(float(net.weight.grad.norm()))
            step()

        optimizer.step = recorded
        return net, optimizer

    _, reports, _ = run(Toy(scale=10), wrap=wrap, clip_norm=0.5, report_every=1, steps=3)
    assert all(norm == pytest.approx(0.5, rel=1e-4) for found in norms.values() for norm in found)
    assert reports[0][1]["one/grad_norm"] == pytest.approx(10), "as it was before clipping"
    norms.clear()
    run(Toy(scale=10), wrap=wrap, steps=3)
    assert list(norms.values()) == [pytest.approx([10, 20, 30]), pytest.approx([30])]


def test_weight_of_a_batch_scales_its_gradient():
    _, whole, _ = run(Toy(), steps=1)
    _, half, _ = run(Toy(), numbered(weight=0.5), steps=1)
    assert half[0][1]["one/grad_norm"] == pytest.approx(whole[0][1]["one/grad_norm"] / 2)
    assert half[0][1]["one/loss"] == whole[0][1]["one/loss"]


def test_learning_rate_follows_its_schedule():
    rates = []

    def wrap(net, optimizer):
        step = optimizer.step

        def recorded():
            rates.append(optimizer.param_groups[0]["lr"])
            step()

        optimizer.step = recorded
        return net, optimizer

    optimizer = OptimizerConfig(learning_rate=0.8, schedule="cosine", warmup=2)
    run(Toy(optimizer), wrap=wrap, steps=4)
    assert rates == pytest.approx([0.4, 0.8, 0.8, 0.8, 0.4])  # the fourth is the second phase's, at the third step


def test_average_follows_the_kept_net():
    family, seen = Toy(), []

    def watch():
        for batch in numbered():
            if family.turns:
                seen.append(copied(family.nets["first"])["weight"])
            yield batch

    state, _, _ = run(family, watch(), steps=6, ema_sigma_rel=0.2)
    seen.append(family.nets["first"].weight.detach())
    assert state.average.keys() == {"first"}
    expected = torch.zeros(1, 1)
    for step, weight in enumerate(seen):
        expected.lerp_(weight, 1 - ema.decay(ema.power_gamma(0.2), step))
    assert len(seen) == 6
    assert torch.allclose(state.average["first"]["weight"], expected)


def test_wrapped_net_is_the_one_that_is_called():
    class Doubled(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            return 2 * self.net(x)

    _, reports, _ = run(Toy(), wrap=lambda net, optimizer: (Doubled(net), optimizer), steps=1)
    assert reports[0][1]["one/loss"] == 2


def test_only_the_moving_net_is_trainable_when_wrapped():
    """A data-parallel wrapper registers the weights that want a gradient as it is made."""
    family, wants = Toy(), []

    def wrap(net, optimizer):
        wants.append({name: other.weight.requires_grad for name, other in family.nets.items()})
        return net, optimizer

    run(family, wrap=wrap, steps=1)
    assert wants == [{"first": True, "second": False}, {"first": False, "second": True}]


def test_a_bad_update_may_be_left_out_and_is_counted():
    family, reports = Toy(), []
    state = fit(
        family,
        numbered(values={4: math.nan}),
        TrainingConfig(steps=10, batch_size=2, report_every=10, on_nonfinite="skip"),
        start=None,
        wrap=no_wrap,
        report=lambda step, figures: reports.append(figures) or figures,
        save=lambda state: None,
    )
    assert reports[0]["one/skipped"] == pytest.approx(0.1)
    assert math.isfinite(reports[0]["one/loss"])
    assert all(torch.isfinite(weight).all() for net in state.nets.values() for weight in net.values())


def test_a_step_that_is_left_out_moves_no_codes_and_no_running_statistics():
    class Moving(torch.nn.Module):
        """Linear, and a buffer that its forwards move."""

        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(1, 1)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            self.seen += x.sum()
            return self.linear(x)

    class OfOne(Toy):
        def __init__(self):
            super().__init__()
            self.nets["first"] = Moving()

    def seen(**values):
        made = fit(
            OfOne(),
            numbered(**values),
            TrainingConfig(steps=5, batch_size=2, report_every=5, on_nonfinite="skip"),
            start=None,
            wrap=no_wrap,
            report=lambda step, figures: figures,
            save=lambda state: None,
        )
        return float(made.nets["first"]["seen"])

    assert math.isfinite(seen(values={2: math.nan})) and seen(values={2: math.nan}) != 0


def test_equal_weights_have_equal_fingerprints_and_one_flipped_bit_is_named():
    torch.manual_seed(0)
    net, other = torch.nn.Linear(7, 5), torch.nn.Linear(7, 5)
    other.load_state_dict(net.state_dict())
    refuse_desync(net, "unet", torch.stack([fingerprint(net), fingerprint(other)]))
    with torch.no_grad():
        other.bias[3] = torch.nextafter(other.bias[3], torch.tensor(10.0))
    with pytest.raises(DesyncError, match=r"different weights of unet\.bias"):
        refuse_desync(net, "unet", torch.stack([fingerprint(net), fingerprint(other)]))
    with torch.no_grad():
        other.load_state_dict(net.state_dict())
        other.weight[[0, 1]] = other.weight[[1, 0]]
    with pytest.raises(DesyncError, match=r"unet\.weight"):
        refuse_desync(net, "unet", torch.stack([fingerprint(net), fingerprint(other)]))


def test_figures_come_in_one_order_whatever_their_devices_are():
    """Workers add them by place, and a set of devices has an order of its own on the eighth GPU of a machine."""
    for places in (("meta", "cpu"), ("cpu", "meta")):
        means = MetricAverages()
        means.add("phase", {place: torch.zeros((), device=place) for place in places}, 0)
        assert list(means._groups) == [(f"phase/{place}",) for place in places]


def test_means():
    means = MetricAverages()
    means.add("a", {"x": torch.tensor(1.0), "y": torch.tensor(5.0)}, 0)
    means.add("a", {"x": torch.tensor(3.0)}, 1)
    means.add("b", {"x": torch.tensor(7.0)}, 1)
    assert means.take() == {"a/x": 2, "a/y": 5, "b/x": 7}
    assert means.take() == {}


def test_means_leave_the_figures_alone():
    means, value = MetricAverages(), torch.tensor(1.0)
    for step in range(3):
        means.add("a", {"x": value}, step)
    assert means.take() == {"a/x": 1}
    assert value == 1


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": -1},
        {"steps": 0, "ema_snapshots": 2},
        {"steps": 0, "keep": "best"},
        {"batch_size": 0},
        {"clip_norm": 0},
        {"clip_norm": -1},
        {"ema_sigma_rel": 0},
        {"ema_sigma_rel": 0.3},
        {"report_every": 0},
        {"save_every": 0},
        {"epochs": 3},
    ],
)
def test_config_refuses_the_impossible(bad):
    with pytest.raises(ValidationError):
        TrainingConfig(**{"steps": 1, "batch_size": 1, **bad})


def test_largest_width_of_the_average_has_an_exponent():
    config = TrainingConfig(steps=1, batch_size=1, ema_sigma_rel=0.2799)
    assert ema.power_gamma(config.ema_sigma_rel) > 0
