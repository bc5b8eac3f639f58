"""The engine on a device, without gRPC: what it gives equals the offline loop, and what it is told to do once it does
once. Run on the CPU in a GPU's manner, and on a GPU where there is one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.end_to_end.bundles import untraced
from export.runtime.device import batch_buckets, open_device_runtime
from models.bundle import Bundle
from models.card import ModelCard
from models.checkpoint import load_modules
from models.program import Program
from models.run import networks_of, run
from models.samplers import SampleOptions, compile_refine, compile_sample, compile_score
from server.backend import TURN, DeviceBackend
from server.config import Limits
from server.loop.device import AHEAD
from server.loop.device.plan import known_plans
from server.loop.device.stream import CudaStream
from server.loop.engine import Engine
from server.loop.sizes import RowSizes
from server.types import Job, ModelKey, Row

from ..ahead import LateStream
from ..conftest import ZOO

LIMITS = Limits(step_seconds=60.0, turn_seconds=60.0, max_batch_rows=16)
DEVICES = ["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)]
MODELS = ["digits-vdrme", "digits-gdim", "digits-hat", "digits-latent", "checkerboard-vdrme", "digits-ddpm"]


class Asked:
    """One model on one device."""

    def __init__(self, bundle: Bundle, device: str, turn: int = TURN) -> None:
        self.card = bundle.card
        self.stream = LateStream() if device == "cpu" else CudaStream(torch.device(device))
        runtime = open_device_runtime("torch", self.stream.device)
        backend = DeviceBackend(runtime, self.stream, depth=AHEAD, turn=turn)
        self.runner = backend.runner(bundle, LIMITS, {})
        self.runner.warm_up()
        self.engine = Engine(LIMITS, depth=AHEAD, turn=turn)
        self.key = ModelKey(self.card.name, 1)
        self.engine.add_model(self.key, self.runner)
        self.engine.start()

    def send(
        self, program: Program, *, seed: int, count: int, images: np.ndarray | None = None, labels=None
    ) -> Callable[[], list[Row]]:
        """Submit a job; what is returned waits for its rows."""
        ended: queue.SimpleQueue = queue.SimpleQueue()
        job = Job(self.key, lambda _, error: ended.put(error))
        flat = [None] * count if images is None else images.reshape(count, -1)
        names = labels or [None] * count
        job.rows = [Row(job, seed, i, program, label=names[i], image=flat[i]) for i in range(count)]
        job.row_bytes = RowSizes.of(self.card).row_bytes(program)
        self.engine.submit(job)

        def wait() -> list[Row]:
            error = ended.get(timeout=120)
            if error is not None:
                raise error
            return job.rows

        return wait


@cache
def checkpoint(name: str) -> tuple[Bundle, dict]:
    bundle = untraced(ZOO / name, "float32")
    return bundle, networks_of(bundle.card, load_modules(ZOO / name, bundle.card.modules))


@pytest.fixture(scope="module", params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def asked(device: str) -> Iterator[Callable[[str], Asked]]:
    """Models by name, each loaded once on the device."""
    try:
        import diffusers  # noqa: F401
    except ImportError:
        without = {"digits-ddpm"}
    else:
        without = set()
    loaded: dict[str, Asked] = {}

    def ask(name: str) -> Asked:
        if name in without:
            pytest.skip("its network is one of diffusers'")
        if name not in loaded:
            loaded[name] = Asked(checkpoint(name)[0], device)
        return loaded[name]

    yield ask
    for one in loaded.values():
        assert one.engine.stop()


def programs(card: ModelCard) -> dict[str, Program]:
    """What a model can be asked for, by name."""
    found: dict[str, Program] = {}
    for name in card.sampling.samplers if card.sampling is not None else ():
        if name != "custom":
            found[name] = compile_sample(card, SampleOptions(sampler=name))
    if card.sampling is not None and "custom" in card.sampling.samplers:
        found["custom"] = compile_sample(
            card, SampleOptions(sampler="custom", steps=3, weights=((1.0,), (1.0, 3.0), (0.0, 1.0, 1.0)))
        )
        found["guided"] = compile_sample(card, SampleOptions(sampler="ddim", steps=4, guidance=1.5))
        found["accumulator"] = compile_sample(
            card, SampleOptions(sampler="iddim", steps=5, m=(0.5,), form="accumulator")
        )
        found["stochastic"] = compile_sample(card, SampleOptions(sampler="ddim", steps=5, eta=0.8))
    if card.langevin is not None:
        found["langevin"] = compile_sample(card, SampleOptions(sampler="langevin", steps=20))
        found["metropolis"] = compile_sample(
            card, SampleOptions(sampler="langevin", steps=6, parameters=(("metropolis", (1.0,)),))
        )
        found["refine"] = compile_refine(card, SampleOptions(sampler="langevin", steps=5))
    if card.energy is not None:
        for scale in card.energy.scales:
            found[f"score {scale.name}"] = compile_score(card, scale)
    return found


CASES = [(name, case) for name in MODELS for case in programs(untraced(ZOO / name, "float32").card)]


def pictures(card: ModelCard, count: int) -> np.ndarray:
    shape = (count, *card.image.shape)
    return np.random.default_rng(5).uniform(card.image.low, card.image.high, shape).astype(np.float32)


@pytest.mark.parametrize(("model", "case"), CASES)
def test_it_gives_what_the_offline_loop_gives(asked: Callable[[str], Asked], model: str, case: str):
    """States and energies of every kind of program, in float32, alone and beside other requests."""
    one = asked(model)
    card, program = one.card, programs(one.card)[case]
    images = pictures(card, 3) if program.needs_image else None
    labels = [2, 0, 1] if card.labels is not None else None
    offline = run(
        *(program, card, checkpoint(model)[1]),
        seed=2**63 + 1,
        count=3,
        labels=labels,
        images=None if images is None else torch.from_numpy(images),
    )
    answers = [one.send(program, seed=2**63 + 1, count=3, images=images, labels=labels)]
    answers += [one.send(program, seed=seed, count=1 + seed, images=pictures(card, 1 + seed)) for seed in range(3)]
    rows, *others = [answer() for answer in answers]
    assert [len(found) for found in others] == [1, 2, 3]
    wanted = offline.state.numpy().reshape(3, -1)
    got = np.stack([row.state for row in rows])
    assert np.abs(got - wanted).max() <= 1e-4 * max(1.0, np.abs(wanted).max())
    for index, scores in enumerate(offline.scores):
        energies = np.array([row.scores[index] for row in rows])
        assert np.allclose(energies, scores.numpy(), rtol=1e-4, atol=1e-4 * max(1.0, float(scores.abs().max())))
    if not offline.scores and offline.energy is not None:
        energies = np.array([row.energy for row in rows])
        assert np.allclose(energies, offline.energy.numpy(), rtol=1e-4, atol=1e-3 * np.abs(energies).max())


@pytest.mark.parametrize("model", ["digits-vdrme", "digits-ddpm"])
def test_a_turn_gives_what_single_steps_give(device: str, model: str):
    """Many steps given at once are the same steps: to the bit, as no row's company changes.

    Of a chain, and of `custom`, whose steps weight the predictions of those before them in the same turn.
    """
    if model == "digits-ddpm":
        pytest.importorskip("diffusers")
    bundle, _ = checkpoint(model)
    weights = tuple(tuple(1.0 + (i * k) % 3 for k in range(i + 1)) for i in range(20))
    options = {
        "digits-vdrme": SampleOptions(sampler="langevin", steps=100),
        "digits-ddpm": SampleOptions(sampler="custom", steps=20, weights=weights),
    }
    program = compile_sample(bundle.card, options[model])
    states, turns = [], []
    for turn in (1, TURN):
        one = Asked(bundle, device, turn)
        lengths: list[int] = []
        enqueue = one.runner.enqueue

        def noting(batch, enqueue=enqueue, lengths=lengths):
            lengths.append(batch.steps)
            return enqueue(batch)

        one.runner.enqueue = noting
        for seed in range(3):  # the first ones tell what a step costs
            rows = one.send(program, seed=seed, count=2)()
        states.append(np.stack([row.state for row in rows]))
        turns.append(max(lengths))
        assert sum(lengths) == 3 * len(program.lines)
        assert one.engine.stop()
    assert turns == [1, TURN]
    assert states[0].tobytes() == states[1].tobytes()


def test_no_more_is_captured_than_plans_and_buckets(asked: Callable[[str], Asked]):
    """One capture for each plan of the model and each bucket, at most buckets times networks, and none by requests."""
    one = asked("digits-vdrme")
    captured = one.runner.captured
    assert captured == len(known_plans(one.card)) * len(batch_buckets(LIMITS.max_batch_rows))
    assert captured <= len(one.card.networks) * len(batch_buckets(LIMITS.max_batch_rows))
    one.send(programs(one.card)["metropolis"], seed=1, count=2)()
    assert one.runner.captured == captured


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_near(precision: str, tmp_path: Path):
    """A network in half precision with its state in float32 gives samples near those of float32."""
    bundle = untraced(ZOO / "digits-vdrme", precision)
    one = Asked(bundle, "cuda:0")
    program = compile_sample(one.card, SampleOptions(steps=4))
    offline = run(program, one.card, checkpoint("digits-vdrme")[1], seed=4, count=8)
    rows = one.send(program, seed=4, count=8)()
    wanted = offline.state.numpy().reshape(8, -1)
    assert np.abs(np.stack([row.state for row in rows]) - wanted).mean() <= 0.05
    assert one.engine.stop()


@pytest.mark.gpu
def test_enqueueing_does_not_wait_for_the_device():
    """The host is done with a step long before the device is: nothing in it synchronises."""
    one = Asked(checkpoint("digits-hat")[0], "cuda:0")
    enqueue, enqueued = one.runner.enqueue, threading.Event()

    def noting(batch):
        try:
            return enqueue(batch)
        finally:
            enqueued.set()

    one.runner.enqueue = noting
    with torch.cuda.stream(one.stream.steps):
        torch.cuda._sleep(2_000_000_000)  # about a second
    busy = torch.cuda.Event()
    busy.record(one.stream.steps)
    program = programs(one.card)["langevin"]
    wait = one.send(program, seed=1, count=1)
    assert enqueued.wait(60)
    assert not busy.query()
    wait()
    assert one.engine.stop()
