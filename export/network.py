"""Exports one network of a card: trace, translate, compare with torch, measure."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import sympy
from torch import nn
from torch.export import ExportedProgram

from models.bundle import GraphFile, ModelCard, ParityCheck
from models.run import networks_of

from . import ExportError
from .parity import (
    BATCHES,
    BOUNDS,
    SEEDS,
    draw_inputs,
    is_batch_invariant,
    measure_parity,
    probe_seeds,
    reference_outputs,
)
from .runtime.onnxruntime import OnnxSession
from .to_onnx import OPSET, to_onnx
from .trace import trace

TRACED_ROWS = 3
Stage = Callable[[str], None]
"""Called with what is being done, for a progress display."""


@dataclass(frozen=True)
class ExportedNetwork:
    """The bytes of a graph, its entry in the manifest, and numbers that the manifest keeps beside it.

    threads: the engine settings that batch invariance was measured with.
    """

    data: bytes
    file: GraphFile
    nodes: int
    repeated: int
    seconds: float
    threads: tuple[int, ...]


def thread_counts() -> tuple[int, ...]:
    """Thread settings that batch invariance is measured with: one, and all cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return tuple(sorted({1, cores}))


def export_network(
    name: str,
    card: ModelCard,
    modules: Mapping[str, nn.Module],
    stage: Stage,
    bounds: Mapping[str, float] = BOUNDS,
) -> ExportedNetwork:
    """Export one network of a card.

    modules: the card's modules by name, eval mode, weights loaded. bounds: largest error by function.

    Raises:
        ExportError: the module does not fit the card, cannot be exported, or the graph misses its bound.
    """
    started = time.perf_counter()
    spec = card.networks[name]
    network = networks_of(card, modules)[name]
    try:
        stage("tracing")
        example = draw_inputs(card, spec, TRACED_ROWS, seed=0)
        reference_outputs(network, spec, example)
        program = trace(modules[spec.module], spec, example)
        stage("translating to ONNX")
        graph = to_onnx(program, spec)
        stage("comparing with torch")
        file = f"{name}.onnx"
        threads = thread_counts()
        sessions = [OnnxSession(name, spec, graph.data, count, Path(file)) for count in threads]
        bound = bounds[spec.function]
        checks = measure_parity(sessions[0], network, card, spec)
        limit = _largest_traced_batch(program)
        if limit is not None:
            # The module asked for the batch size and the trace holds one of the answers: see what the other one was.
            checks += measure_parity(sessions[0], network, card, spec, rows=[limit + 1], seeds=SEEDS[:1])
        _hold_to_bound(checks, bound)
        stage("measuring batch invariance")
        probes = [draw_inputs(card, spec, max(BATCHES), seed) for seed in probe_seeds(spec)]
        invariant = all(is_batch_invariant(session, probe) for session in sessions for probe in probes)
    except ExportError as error:
        raise ExportError(f"{card.name}: network {name!r}: {error}") from error
    entry = GraphFile(
        file=file,
        sha256=hashlib.sha256(graph.data).hexdigest(),
        opset=OPSET,
        bound=bound,
        parity=checks,
        batch_invariant=invariant,
    )
    return ExportedNetwork(graph.data, entry, graph.nodes, graph.repeated, time.perf_counter() - started, threads)


def _hold_to_bound(checks: tuple[ParityCheck, ...], bound: float) -> None:
    worst = max(checks, key=lambda check: check.error)
    if worst.error > bound:
        raise ExportError(
            f"output {worst.output!r} with {worst.rows} rows (seed {worst.seed}) differs from torch by "
            f"{worst.error:.3g}, the bound is {bound:.3g}; nothing was written"
        )


def _largest_traced_batch(program: ExportedProgram) -> int | None:
    """The largest batch that the trace itself vouches for, or None where it holds for all."""
    uppers = [constraint.upper for constraint in program.range_constraints.values()]
    return min((int(upper) for upper in uppers if isinstance(upper, sympy.Integer)), default=None)
