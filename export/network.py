"""Exports one network of a card: trace, translate, compare with torch, measure."""

from __future__ import annotations

import gc
import hashlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import sympy
from torch import nn
from torch.export import ExportedProgram

from models.bundle import GraphFile, ParityCheck, Precision, sha256_of
from models.card import ModelCard
from models.run import networks_of

from . import ExportError, graph_file, weights_file
from .parity import (
    SEEDS,
    bounds_of,
    draw_inputs,
    is_batch_invariant,
    measure_parity,
    own_error,
    probe_rows,
    probe_seeds,
    reference_outputs,
)
from .precision import emulated
from .runtime.onnxruntime import OnnxSession
from .to_onnx import opset_of, to_onnx
from .trace import trace

TRACED_ROWS = 3
Stage = Callable[[str], None]
"""Called with what is being done, for a progress display."""


@dataclass(frozen=True)
class ExportedNetwork:
    """A graph's entry in the manifest, and numbers that the manifest keeps beside it.

    bytes: of its files. threads, rows: the engine settings, and the most rows, that batch invariance was measured with.
    """

    file: GraphFile
    bytes: int
    nodes: int
    repeated: int
    seconds: float
    threads: tuple[int, ...]
    rows: int


def thread_counts() -> tuple[int, ...]:
    """Thread settings that batch invariance is measured with: one, and all cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return tuple(sorted({1, cores}))


def export_network(
    name: str,
    card: ModelCard,
    modules: Mapping[str, nn.Module],
    directory: Path,
    stage: Stage,
    bounds: Mapping[str, float] | None = None,
    precision: Precision = "float32",
) -> ExportedNetwork:
    """Export one network of a card to a directory, which holds nothing of it when that fails but perhaps its weights.

    modules: the card's modules by name, eval mode, weights loaded. bounds: largest error by function, instead of
    `parity.bounds_of`. precision: see `export.precision`. ONNX Runtime's CPU provider has no kernels for bfloat16:
    parity is that of the graph with every value rounded to it, and batch invariance is not known.

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
        file, beside = directory / graph_file(name), directory / weights_file(name)
        with _rare_collections():
            program = trace(modules[spec.module], spec, example)
            stage("translating to ONNX")
            graph = to_onnx(program, spec, beside, precision)
        stage("comparing with torch")
        threads = thread_counts()
        weights = {beside.name: beside.read_bytes()} if graph.large else None
        runnable = emulated(graph.data) if precision == "bfloat16" else graph.data
        sessions = [OnnxSession(name, spec, runnable, count, file, weights) for count in threads]
        checks = measure_parity(sessions[0], network, card, spec)
        limit = _largest_traced_batch(program)
        if limit is not None:
            # The module asked for the batch size and the trace holds one of the answers: see what the other one was.
            checks += measure_parity(sessions[0], network, card, spec, rows=[limit + 1], seeds=SEEDS[:1])
        wanted = (bounds or bounds_of(precision))[spec.function]
        bound = _held_bound(checks, wanted, partial(own_error, card, name, modules))
        stage("measuring batch invariance")
        rows = probe_rows(sessions[0], example)
        probes = [draw_inputs(card, spec, rows, seed) for seed in probe_seeds(spec)]
        invariant = precision != "bfloat16" and all(
            is_batch_invariant(session, probe) for session in sessions for probe in probes
        )
    except ExportError as error:
        raise ExportError(f"{card.name}: network {name!r}: {error}") from error
    file.write_bytes(graph.data)
    entry = GraphFile(
        file=file.name,
        sha256=hashlib.sha256(graph.data).hexdigest(),
        weights=beside.name if graph.large else None,
        weights_sha256=sha256_of(beside) if graph.large else None,
        precision=precision,
        opset=opset_of(precision),
        bound=bound,
        parity=checks,
        batch_invariant=invariant,
    )
    size = len(graph.data) + (beside.stat().st_size if graph.large else 0)
    return ExportedNetwork(entry, size, graph.nodes, graph.repeated, time.perf_counter() - started, threads, rows)


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Tracing makes millions of objects that stay until it ends; to look for garbage among them takes a sixth of it."""
    thresholds = gc.get_threshold()
    gc.set_threshold(50_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)


def _held_bound(checks: tuple[ParityCheck, ...], bound: float, own_error: Callable[[int, int], float]) -> float:
    """The bound that all checks are within: the given one, or twice torch's own error where that is more.

    Two computations in float32, neither of them further from double precision than torch is, differ by up to twice as
    much. own_error: torch's own error by rows and seed; asked for only where the given bound is missed.

    Raises:
        ExportError: the graph is further from torch than either.
    """
    worst = max(checks, key=lambda check: check.error)
    if worst.error <= bound:
        return bound
    own = own_error(worst.rows, worst.seed)
    if math.isfinite(own) and worst.error <= 2.0 * own:
        return 2.0 * own
    raise ExportError(
        f"output {worst.output!r} with {worst.rows} rows (seed {worst.seed}) differs from torch by {worst.error:.3g}, "
        f"the bound is {bound:.3g}, and torch differs from double precision by {own:.3g}; nothing was written"
    )


def _largest_traced_batch(program: ExportedProgram) -> int | None:
    """The largest batch that the trace itself vouches for, or None where it holds for all."""
    uppers = [constraint.upper for constraint in program.range_constraints.values()]
    return min((int(upper) for upper in uppers if isinstance(upper, sympy.Integer)), default=None)
