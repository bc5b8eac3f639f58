"""NVIDIA Triton Inference Server through pytriton, with dynamic batching: Open Inference Protocol over gRPC.

Why these settings:
- one inference function a model, as one execution thread is what the engine has;
- the sampler and the number of steps are request parameters; requests that differ in them share a batch, which pytriton
  hands over as it was formed (`bench.peers.engine` makes the best of it);
- a queue policy that lets each request's `timeout` (microseconds) count and refuses what is late: the nearest thing to
  a deadline that Triton's scheduler knows;
- no metrics and no HTTP beyond what pytriton itself needs to see that the server is up.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pytriton.model_config import DynamicBatcher, ModelConfig, QueuePolicy, Tensor, TimeoutAction
from pytriton.triton import Triton, TritonConfig

from .engine import Engine, load_engines
from .serving import HOST, free_port, read_options

MAX_BATCH = 64
DELAY = 0.0
Answers = list[dict[str, Any]]


def sampler_of(engine: Engine) -> Callable[[Sequence[Any]], Answers]:
    """The inference function of a model that draws samples."""

    def infer(requests: Sequence[Any]) -> Answers:
        asked = []
        for request in requests:
            parameters = request.parameters or {}
            seeds = request.data["SEED"].ravel().tolist()
            labels = request.data["LABEL"].ravel().tolist() if "LABEL" in request.data else None
            steps = parameters.get("steps")
            asked.append(
                engine.sample_request(parameters.get("sampler"), None if steps is None else int(steps), seeds, labels)
            )
        return [{"IMAGES": images} for images in engine.run(asked)]

    return infer


def scorer_of(engine: Engine) -> Callable[[Sequence[Any]], Answers]:
    """The inference function of a model that scores."""

    def infer(requests: Sequence[Any]) -> Answers:
        energies = engine.run([engine.score_request(request.data["IMAGES"]) for request in requests])
        return [{"ENERGY": energy[:, None]} for energy in energies]

    return infer


def main() -> None:
    """Serve until SIGTERM."""
    options = read_options("triton", max_batch=MAX_BATCH, delay=DELAY)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # an exception, so that Triton itself is stopped
    policy = QueuePolicy(timeout_action=TimeoutAction.REJECT, allow_timeout_override=True)
    batcher = DynamicBatcher(max_queue_delay_microseconds=round(options.delay * 1e6), default_queue_policy=policy)
    config = ModelConfig(max_batch_size=options.max_batch, batcher=batcher)
    server = TritonConfig(
        **{"grpc_address": HOST, "grpc_port": options.port, "http_address": HOST, "http_port": free_port()},
        **{"allow_metrics": False, "exit_timeout_secs": 5},
    )
    with Triton(config=server) as triton:
        for name, engine in load_engines(options.repository, options.threads).items():
            card = engine.card
            images = Tensor(name="IMAGES", dtype=np.float32, shape=card.image.shape)
            if card.sampling is not None:
                inputs = [Tensor(name="SEED", dtype=np.uint64, shape=(1,))]
                if card.labels is not None:
                    inputs.append(Tensor(name="LABEL", dtype=np.int64, shape=(1,), optional=True))
                triton.bind(name, sampler_of(engine), inputs, [images], config=config)
            if card.energy is not None:
                energy = Tensor(name="ENERGY", dtype=np.float64, shape=(-1,))
                triton.bind(f"{name}.score", scorer_of(engine), [images], [energy], config=config)
        triton.serve()


if __name__ == "__main__":
    main()
