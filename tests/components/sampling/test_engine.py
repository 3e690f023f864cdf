import threading
import time
from concurrent.futures import CancelledError, Future

import pytest
import torch

from components.conditioning.classes import ClassConditioner
from components.data.info import DataInfo
from components.data.randomness import Draws
from components.diffusion.backbones import UNet
from components.diffusion.denoiser import Denoiser
from components.diffusion.guidance import Guidance, Preconditioner, solve
from components.diffusion.schedules import FlowSchedule
from components.diffusion.solvers import SOLVERS
from components.families.dcgan import Model as DCGAN
from components.sampling.engine import DeadlineExceeded, Engine, EngineFull, EngineStopped, _tell
from components.sampling.requests import Request
from components.sampling.trajectories import Call, Preview, drive
from components.sampling.workload import Work
from tests.components.gate import TIMEOUT, Gate, walk

SHAPE = (2, 8, 8)


@pytest.fixture(scope="module")
def nets():
    torch.manual_seed(0)
    conditioner = ClassConditioner(10, 8)
    backbone = UNet(widths=(8, 16), heads=2, context_dim=8).build((2, 8, 8), conditioner.rows)
    denoiser = Denoiser(conditioner, backbone).eval()
    for parameter in denoiser.parameters():  # zero-initialised layers would hide the rows' differences
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return {"denoiser": denoiser, "decoder": lambda latents: torch.tanh(latents.repeat_interleave(2, dim=-1))}


@pytest.fixture
def engine(nets):
    engine = Engine(nets)
    yield engine
    engine.stop(timeout=TIMEOUT)


def guided(schedule, label, scale):
    towards, away = ({"label": torch.tensor([number])} for number in (label, 10))
    return Preconditioner("flow", schedule).guided(towards, away, Guidance(scale))


def sample(seed, solver="ddim", steps=6, guidance=2.0, label=3):
    """A small latent diffusion trajectory of one image."""
    schedule = FlowSchedule()

    def start():
        draws, sigmas = Draws.of_seeds(torch.tensor([seed])), schedule.sigmas(steps)
        begin = sigmas[0] * draws.normal("start", SHAPE)
        moves = SOLVERS[solver](begin, sigmas, lambda step: draws.normal(step, SHAPE))
        latents = yield from solve(moves, guided(schedule, label, guidance))
        return (yield Call("decoder", {"latents": latents}))

    return start


MIXED = [
    {"seed": seed, "solver": solver, "steps": steps, "guidance": guidance, "label": seed % 10}
    for seed, (solver, steps, guidance) in enumerate(
        [("ddim", 5, 1.0), ("ddpm", 12, 3.0), ("heun", 7, 1.5), ("dpmpp_2m", 20, 2.0), ("euler", 3, 0.0)] * 3
    )
]


@pytest.fixture
def gate():
    return Gate()


@pytest.fixture
def gated(gate):
    engines = []

    def build(**options):
        engines.append(Engine({"gate": gate}, **options))
        return engines[-1]

    yield build
    gate.open(10_000)
    for engine in engines:
        engine.stop(timeout=TIMEOUT)


def test_together_as_alone(nets):
    forwards = []
    engine = Engine(nets, on_forward=forwards.append)
    futures = [engine.submit(sample(**request)) for request in MIXED]
    together = [future.result(TIMEOUT) for future in futures]
    engine.stop(timeout=TIMEOUT)
    alone = [drive(sample(**request)(), nets) for request in MIXED]
    for one, other in zip(together, alone, strict=True):
        assert (one - other).abs().max() < 1e-3
    assert max(forward.num_calls for forward in forwards) > 5  # they did share forwards
    other_class = drive(sample(**{**MIXED[0], "label": 9})(), nets)
    assert (alone[0] - other_class).abs().max() > 1e-2  # a mixed-up row would show


def test_late_joins_change_nothing(nets, engine):
    early = engine.submit(sample(1, "heun", 40))
    late = []
    for seed in range(5):
        time.sleep(0.01)
        late.append(engine.submit(sample(seed, "dpmpp_2m", 8, 1.0)))
    assert (early.result(TIMEOUT) - drive(sample(1, "heun", 40)(), nets)).abs().max() < 1e-3
    for seed, future in enumerate(late):
        expected = drive(sample(seed, "dpmpp_2m", 8, 1.0)(), nets)
        assert (future.result(TIMEOUT) - expected).abs().max() < 1e-3


def test_joins_between_two_forwards(gated, gate):
    engine = gated()
    first = engine.submit(walk(1, 3))
    gate.wait()
    second = engine.submit(walk(2, 1))
    gate.open(3)
    assert first.result(TIMEOUT).item() == 1 and second.result(TIMEOUT).item() == 2
    assert gate.rows == [[1], [1, 2], [1]]


@pytest.mark.parametrize("buckets", [(4, 8), (1, 2, 3)])
def test_padding_reaches_no_answer(nets, buckets):
    forwards = []
    engine = Engine(nets, buckets=buckets, on_forward=forwards.append)
    images = [engine.submit(sample(seed, guidance=1.0)) for seed in range(3)]
    for seed, future in enumerate(images):
        assert (future.result(TIMEOUT) - drive(sample(seed, guidance=1.0)(), nets)).abs().max() < 1e-3
    engine.stop(timeout=TIMEOUT)
    assert all(forward.rows + forward.padding in buckets for forward in forwards)


def test_generators_are_served_too(engine):
    family = DCGAN(DCGAN.Config(latent_dim=4, width=4), DataInfo(shape=(1, 8, 8)))
    family.nets.eval()
    engine.nets = dict(family.calls)
    requests = [Request(torch.tensor([seed]), DCGAN.Settings()) for seed in range(4)]
    futures = [engine.submit(lambda request=request: family.trajectory(request)) for request in requests]
    for request, future in zip(requests, futures, strict=True):
        assert (future.result(TIMEOUT) - family.sample(request)).abs().max() < 1e-3


def test_what_waits_counts_until_it_is_done(gated, gate):
    engine = gated(slots=1)
    first = engine.submit(walk(1, 2), expected=Work({"gate": 2}, {"gate": 2}))
    gate.wait()
    second = engine.submit(walk(2, 4), expected=Work({"gate": 4}, {"gate": 4}))
    assert engine.num_before(first) == 0 and engine.num_before(second) == 0  # the next to have a turn
    third = engine.submit(walk(3, 1), expected=Work({"gate": 1}, {"gate": 1}))
    assert engine.num_before(third) == 1
    gate.open(1)
    gate.wait()  # one of its two calls is answered
    row = engine.seconds_of([Work({}, {"gate": 1})])
    assert row > 0 and engine.seconds_to_finish() == pytest.approx((1 + 4 + 1) * row)
    gate.open(10)
    assert [future.result(TIMEOUT).item() for future in (first, second, third)] == [1, 2, 3]
    assert engine.seconds_to_finish() == 0


def test_cancel_frees_rows_before_the_next_forward(gated, gate):
    engine = gated(slots=2, queue=0)
    doomed, kept = engine.submit(walk(1, 100)), engine.submit(walk(2, 3))
    gate.wait()
    with pytest.raises(EngineFull):
        engine.submit(walk(3, 1))
    assert doomed.cancel()
    gate.open(3)
    kept.result(TIMEOUT)
    assert [rows for rows in gate.rows[1:] if 1 in rows] in ([], [[1, 2]])  # at most the forward that was under way
    with pytest.raises(CancelledError):
        doomed.result(TIMEOUT)
    assert gated_result(engine, gate, walk(3, 1)) == 3
    assert engine.load().active == 0


def gated_result(engine, gate, start):
    gate.open(1)
    return engine.submit(start).result(TIMEOUT).item()


def test_cancel_while_waiting(gated, gate):
    engine = gated(slots=1, queue=1)
    first, waiting = engine.submit(walk(1, 2)), engine.submit(walk(2, 1))
    gate.wait()
    assert waiting.cancel()
    gate.open(2)
    first.result(TIMEOUT)
    assert gated_result(engine, gate, walk(3, 1)) == 3
    assert [2.0] not in gate.rows


def test_a_call_that_raises_fails_its_own_request_only():
    def net(x):
        if (x == 13).any():
            raise RuntimeError("unlucky")
        return x + 0

    engine = Engine({"gate": net})
    futures = {name: engine.submit(walk(name, 5)) for name in (11, 12, 13, 14)}
    for name in (11, 12, 14):
        assert futures[name].result(TIMEOUT).item() == name
    with pytest.raises(RuntimeError, match="unlucky"):
        futures[13].result(TIMEOUT)
    engine.stop(timeout=TIMEOUT)


def test_a_trajectory_that_raises_fails_alone(engine):
    def broken():
        yield Call("decoder", {"latents": torch.zeros(1, 2, 2)})
        raise ArithmeticError("in the solver")

    def stillborn():
        raise LookupError("before the first call")

    futures = [engine.submit(broken), engine.submit(stillborn), engine.submit(sample(1))]
    with pytest.raises(ArithmeticError, match="in the solver"):
        futures[0].result(TIMEOUT)
    with pytest.raises(LookupError, match="before the first call"):
        futures[1].result(TIMEOUT)
    assert futures[2].result(TIMEOUT).shape == (1, 2, 8, 16)
    assert engine.load().active == 0


def test_a_net_that_loses_rows_is_reported():
    engine = Engine({"gate": lambda x: x[:0]})
    with pytest.raises(ValueError, match="1 rows in, 0 out"):
        engine.submit(walk(1, 1)).result(TIMEOUT)
    engine.stop(timeout=TIMEOUT)


def test_a_long_request_starves_no_short_one(gated, gate):
    """Twice as many trajectories as fit into a forward: each gets every second one."""
    engine = gated(max_rows=2)
    ended = []
    for name, steps in ((1, 250), (2, 250), (3, 10), (4, 10)):
        future = engine.submit(walk(name, steps))
        future.add_done_callback(lambda _, name=name: ended.append((name, len(gate.rows))))
    gate.open(10_000)
    for _ in range(1000):
        if len(ended) == 4:
            break
        time.sleep(0.01)
    turns = dict(ended)
    assert turns[3] <= 24 and turns[4] <= 24
    assert turns[1] <= 262 and turns[2] <= 262


def test_many_images_take_no_more_turns_than_one(gated, gate):
    engine = gated(max_rows=2)
    many = [engine.submit(walk(1, 10), group="many") for _ in range(8)]
    single = engine.submit(walk(2, 10))
    forwards_until_done = []
    single.add_done_callback(lambda _: forwards_until_done.append(len(gate.rows)))
    gate.open(10_000)
    single.result(TIMEOUT)
    assert forwards_until_done[0] <= 13
    assert [future.result(TIMEOUT).item() for future in many] == [1] * 8


def test_deadline(gated, gate):
    engine = gated()
    late = engine.submit(walk(1, 3), deadline=time.monotonic() - 1)
    with pytest.raises(DeadlineExceeded):
        late.result(TIMEOUT)
    running = engine.submit(walk(2, 3), deadline=time.monotonic() + 0.2)
    gate.wait()
    time.sleep(0.3)
    gate.open(1)
    with pytest.raises(DeadlineExceeded):
        running.result(TIMEOUT)
    assert gate.rows == [[2]]


def test_full(gated, gate):
    engine = gated(slots=2, queue=1)
    accepted = [engine.submit(walk(name, 1)) for name in (1, 2, 3)]
    with pytest.raises(EngineFull, match="3 rows"):
        engine.submit(walk(4, 1))
    gate.wait()
    assert engine.load().slots == 2 and engine.load().active + engine.load().waiting == 3
    gate.open(3)
    assert [future.result(TIMEOUT).item() for future in accepted] == [1, 2, 3]
    assert max(len(rows) for rows in gate.rows) == 2  # never more than there are slots


def test_rows_are_counted_as_the_calls_have_them(gated, gate):
    engine = gated(slots=4, queue=0)
    guided = engine.submit(walk(1, 2, rows=4))
    gate.wait()
    assert engine.load().active == 4
    with pytest.raises(EngineFull):
        engine.submit(walk(2, 1))
    gate.open(2)
    guided.result(TIMEOUT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_thread_is_noticed():
    def fatal(x):
        raise SystemExit  # no Exception: nothing on the thread survives it

    engine = Engine({"gate": fatal})
    assert engine.silence() < 5
    future, waiting = engine.submit(walk(1, 1)), engine.submit(walk(2, 1))
    with pytest.raises(EngineStopped):
        future.result(TIMEOUT)
    with pytest.raises(EngineStopped):
        waiting.result(TIMEOUT)
    engine.stop(timeout=TIMEOUT)
    assert engine.silence() == float("inf")
    with pytest.raises(EngineStopped):
        engine.submit(walk(3, 1))


def test_a_stuck_forward_is_noticed(gated, gate):
    engine = gated()
    time.sleep(0.5)
    assert engine.silence() < 0.5  # idle is not stuck
    engine.submit(walk(1, 1))
    gate.wait()
    time.sleep(0.5)
    assert engine.silence() >= 0.5


def test_stop_finishes_what_was_accepted(gated, gate):
    engine = gated(slots=1)
    futures = [engine.submit(walk(name, 2)) for name in (1, 2)]
    gate.open(4)
    engine.stop(drain=True, timeout=TIMEOUT)
    assert [future.result(0).item() for future in futures] == [1, 2]


def test_stop_without_draining_leaves_nobody_waiting(gated, gate):
    engine = gated(slots=1)
    futures = [engine.submit(walk(name, 2)) for name in (1, 2)]
    gate.wait()
    stopper = threading.Thread(target=engine.stop)
    stopper.start()
    gate.open(1)
    stopper.join(TIMEOUT)
    for future in futures:
        with pytest.raises(EngineStopped):
            future.result(TIMEOUT)


def test_previews_are_the_estimates_on_the_way(nets, engine):
    """A trajectory that offers its x0 estimates: each is decoded by the engine, in order, and the end is unchanged."""
    schedule = FlowSchedule()
    estimates = {}

    def start(guidance=1.0):
        draws, sigmas = Draws.of_seeds(torch.tensor([4])), schedule.sigmas(8)
        moves = SOLVERS["ddim"](sigmas[0] * draws.normal("start", SHAPE), sigmas, lambda step: None)

        def preview(x0, sigma):
            progress = (sigmas.index(sigma) + 1) / 8
            estimates[progress] = x0
            return Preview(progress, lambda: decode(x0))

        latents = yield from solve(moves, guided(schedule, 1, guidance), preview)
        return (yield from decode(latents))

    def decode(latents):
        return (yield Call("decoder", {"latents": latents}))

    seen = []
    future = engine.submit(start, num_previews=3, on_preview=lambda *preview: seen.append(preview))
    image = future.result(TIMEOUT)
    assert [progress for progress, _ in seen] == [0.25, 0.5, 0.75]
    for progress, shown in seen:
        assert torch.equal(shown, nets["decoder"](estimates[progress]))
    assert torch.equal(image, drive(start(), nets))


def test_a_preview_that_fails_or_comes_late_harms_nothing(gated, gate):
    def broken():
        raise ValueError("no preview")
        yield

    def start():
        x = torch.ones(1, 1)
        x = yield Call("gate", {"x": x}, Preview(0.3, broken))
        x = yield Call("gate", {"x": x}, Preview(0.6, walk(5, 50)))  # needs longer than what it shows
        return (yield Call("gate", {"x": x}, Preview(0.9, walk(6, 50))))

    engine = gated()
    seen = []
    future = engine.submit(start, num_previews=3, on_preview=lambda *preview: seen.append(preview))
    gate.open(10_000)
    assert future.result(TIMEOUT).item() == 1
    assert gated_result(engine, gate, walk(3, 1)) == 3
    assert not seen and engine.load().active == 0


def test_cancelling_ends_the_previews_too(gated, gate):
    def start():
        x = yield Call("gate", {"x": torch.ones(1, 1)}, Preview(0.5, walk(5, 50)))
        return (yield Call("gate", {"x": x}))

    engine = gated()
    future = engine.submit(start, num_previews=1, on_preview=lambda *preview: None)
    gate.wait()
    future.cancel()
    gate.open(2)
    assert gated_result(engine, gate, walk(3, 1)) == 3
    assert engine.load().active == 0


def test_who_is_told_by_two_threads_at_once_is_told_once():
    """A thread that comes back while its engine is given up."""
    future, told = Future(), Future()
    future.set_running_or_notify_cancel()  # by the other thread, which has not set the result yet
    _tell(future, EngineStopped("the engine has stopped"))
    _tell(told, torch.ones(1))
    _tell(told, EngineStopped("the engine has stopped"))
    assert future.running() and told.result() == 1
