import pytest

from components.sampling.engine import Engine
from components.sampling.workload import Kinds, Paces, Work
from tests.components.gate import TIMEOUT, walk


def test_work_scales_with_steps_where_a_net_is_called_at_each():
    kinds = Kinds()
    assert kinds.expect("heun", 10) == Work({}, {})  # nothing is known yet
    kinds.add("heun", 10, Work({"denoiser": 19, "decoder": 1}, {"denoiser": 38, "decoder": 1}))
    assert kinds.expect("heun", 20) == Work({"denoiser": 38, "decoder": 1}, {"denoiser": 76, "decoder": 1})
    kinds.add("heun", 1, Work({"denoiser": 1, "decoder": 1}, {"denoiser": 2, "decoder": 1}))  # tells nets less apart
    assert kinds.expect("heun", 20).calls == {"denoiser": 38, "decoder": 1}


def test_of_a_kind_never_seen_the_most_is_expected():
    kinds = Kinds()
    kinds.add("euler", 10, Work({"denoiser": 10}, {"denoiser": 10}))
    kinds.add("heun", 10, Work({"denoiser": 19}, {"denoiser": 38}))
    assert kinds.expect("new", 10).rows == {"denoiser": 38}


def test_full_forwards_weigh_more_than_small_ones():
    paces = Paces()
    paces.add("denoiser", 1, 0.004)
    paces.add("denoiser", 64, 0.064)
    assert paces.seconds({"denoiser": 65}) == pytest.approx(0.068, rel=1e-2)
    assert paces.serial_seconds({"denoiser": 2}) == pytest.approx(0.068, rel=1e-2)
    assert paces.seconds({"another": 10}) == 0


def test_an_engine_knows_what_is_left_of_its_work():
    engine, used = Engine({"gate": lambda x: x}, slots=1), []
    engine.submit(walk(1, 3), on_usage=used.append).result(TIMEOUT)
    assert used[0].work == Work({"gate": 3}, {"gate": 3}) and used[0].seconds >= used[0].queue_seconds >= 0
    assert engine.seconds_to_finish() == 0
    per_row = engine.seconds_of([Work({"gate": 1}, {"gate": 1})])
    four = Work({"gate": 4}, {"gate": 4})
    assert engine.seconds_to_finish([four]) == pytest.approx(4 * per_row, rel=0.01)
    assert engine.seconds_in_turn([four]) == pytest.approx(4 * per_row, rel=0.01)
    assert engine.seconds_in_turn([four, four]) == pytest.approx(8 * per_row, rel=0.01)  # one slot: one after the other
    engine.stop(timeout=TIMEOUT)
