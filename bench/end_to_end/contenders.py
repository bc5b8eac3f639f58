"""What requests are given, and the bare loop over sessions on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter

import numpy as np

from export.runtime import Array, Session
from models.card import ModelCard, TensorSpec
from models.program import Program

from .served import Floats, Taken

Run = Callable[[], Taken]
"""One request, from beginning to end."""


def images_of(card: ModelCard, program: Program, rows: int) -> Floats | None:
    """Random images `(rows, elements)` in the model's range, where the program starts from images."""
    if not program.needs_image:
        return None
    size = (rows, int(np.prod(card.image.shape)))
    return np.random.default_rng(rows).uniform(card.image.low, card.image.high, size).astype(np.float32)


def random_inputs(card: ModelCard, network: str, rows: int) -> dict[str, Array]:
    """Inputs of a network for so many rows, as they might come."""
    draw = np.random.default_rng(rows)
    return {spec.name: _random(spec, rows, draw) for spec in card.networks[network].inputs}


def _random(spec: TensorSpec, rows: int, draw: np.random.Generator) -> Array:
    if spec.dtype == "int64":
        return np.zeros((rows, *spec.shape), dtype=np.int64)
    if spec.shape:
        return draw.standard_normal((rows, *spec.shape), dtype=np.float32)
    low, high = spec.range or (0.0, 999.0)
    return draw.uniform(low, high, rows).astype(np.float32)


def bare(sessions: Mapping[str, Session], card: ModelCard, program: Program, rows: int) -> Run:
    """The networks of the program's lines one after the other on inputs that are there, and nothing in between."""
    inputs = {line.network: random_inputs(card, line.network, rows) for line in program.lines}
    calls = [(sessions[line.network], inputs[line.network]) for line in program.lines]

    def run() -> Taken:
        began = perf_counter()
        for session, given in calls:
            session.run(given)
        seconds = perf_counter() - began
        return Taken(seconds)

    return run
