"""Measurements on an exported network: how far it is from torch, and whether a row depends on its batch."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from models.bundle import ParityCheck
from models.card import ModelCard, NetworkSpec, TensorSpec
from models.run import Network, network_of

from . import ExportError
from .runtime import Session

ROWS = (1, 7)
SEEDS = (0, 1)
BOUNDS: Mapping[str, float] = {"forward": 2e-5, "energy_gradient": 1e-5}
"""Largest accepted error by the function of a network; float32 loses 1e-7 to 3e-6 in the networks shipped here."""
HALF_BOUNDS: Mapping[str, float] = {"float16": 8 * 2.0**-11, "bfloat16": 8 * 2.0**-8}
"""The same for graphs in half precision, against float32 torch: eight roundings of the largest value (3.9e-3, 3.1e-2).
The shipped networks lose 0.02 to 2.1 of them in float16 and 0.07 to 5.9 in bfloat16, the most in the checkerboard's
gradient and the hierarchy's energy of layers; a network that multiplies errors is refused."""
BATCHES = (2, 3, 8, 32)
"""Batch sizes in which a row is compared with itself alone."""
SLOW_SECONDS, SLOW_ROWS = 0.2, 8
"""A network that takes longer than this for a row is tried in batches of at most so many: with all of `BATCHES` each of
the papers' own networks would take half an hour."""
VECTOR = 16
"""float32 values in the widest vector register."""
DEFAULT_TIMES = 1000


def bounds_of(precision: str) -> Mapping[str, float]:
    """Largest accepted error by the function of a network."""
    return dict.fromkeys(BOUNDS, HALF_BOUNDS[precision]) if precision in HALF_BOUNDS else BOUNDS


def draw_inputs(card: ModelCard, spec: NetworkSpec, rows: int, seed: int) -> dict[str, Tensor]:
    """Inputs as a server sees them: Gaussian states and latents, labels with the null one, times 0..999.

    Returns: each input by name, `(rows, *shape)`. Scalars are uniform over their range, or the
    schedule's network times.
    """
    generator = torch.Generator().manual_seed(seed)
    times = card.sampling.schedule.steps if card.sampling is not None else DEFAULT_TIMES
    return {tensor.name: _draw(card, tensor, rows, times, generator) for tensor in spec.inputs}


def _draw(card: ModelCard, tensor: TensorSpec, rows: int, times: int, generator: torch.Generator) -> Tensor:
    shape = tensor.shape
    if tensor.name == "label":
        labels = list(range(card.labels.count)) if card.labels is not None else [0]
        if card.labels is not None and card.labels.null is not None:
            labels.append(card.labels.null)
        return torch.tensor(labels)[torch.randint(len(labels), (rows, *shape), generator=generator)]
    if shape:
        return torch.randn(rows, *shape, generator=generator)
    if tensor.range is not None:
        low, high = tensor.range
        return low + (high - low) * torch.rand(rows, generator=generator)
    return torch.randint(times, (rows,), generator=generator).float()


def reference_outputs(network: Network, spec: NetworkSpec, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """The torch network's outputs, held against what the card says of them.

    Raises:
        ExportError: it does not run on these inputs, or its outputs differ in number, shape or type.
    """
    rows = inputs[spec.inputs[0].name].shape[0]
    try:
        with torch.no_grad():
            outputs = network(**inputs)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise ExportError(f"the module does not run on the inputs that the card describes: {error}") from error
    found = [_described(output) for output in outputs]
    wanted = [_described(torch.empty(rows, *tensor.shape)) for tensor in spec.outputs]
    if found != wanted:
        raise ExportError(f"the module returns {', '.join(found)} for {rows} rows, the card says {', '.join(wanted)}")
    return outputs


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def measure_parity(
    session: Session,
    network: Network,
    card: ModelCard,
    spec: NetworkSpec,
    rows: Sequence[int] = ROWS,
    seeds: Sequence[int] = SEEDS,
) -> tuple[ParityCheck, ...]:
    """Compare an exported network with torch for each output, batch size and seed.

    The error is max|graph - torch| / max(1, max|torch|), and infinite where either is not finite.
    """
    checks = []
    for count in rows:
        for seed in seeds:
            inputs = draw_inputs(card, spec, count, seed)
            expected = reference_outputs(network, spec, inputs)
            for tensor, graph, torch_output in zip(spec.outputs, call_session(session, inputs), expected, strict=True):
                checks.append(ParityCheck(output=tensor.name, rows=count, seed=seed, error=_error(graph, torch_output)))
    return tuple(checks)


def own_error(card: ModelCard, name: str, modules: Mapping[str, nn.Module], rows: int, seed: int) -> float:
    """How far torch itself is from the same network in double precision, in the measure of `measure_parity`.

    The largest over the outputs, at the inputs of that many rows and that seed. Takes a copy of the modules, of twice
    their size, for as long as it lasts.
    """
    spec = card.networks[name]
    inputs = draw_inputs(card, spec, rows, seed)
    single = reference_outputs(network_of(card, name, modules), spec, inputs)
    doubled = copy.deepcopy(dict(modules))  # in one copy, as modules share parts
    for module in doubled.values():
        module.double()
    wide = {key: tensor.double() if tensor.is_floating_point() else tensor for key, tensor in inputs.items()}
    with _AllDouble(), torch.no_grad():
        double = network_of(card, name, doubled)(**wide)
    return max(_error(mine, exact) for mine, exact in zip(single, double, strict=True))


class _AllDouble(TorchFunctionMode):
    """Where a module asks for float32 by name, as embeddings of time do, it gets float64."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function is Tensor.float:
            function = Tensor.double
        widened = {key: _widened(value) for key, value in (kwargs or {}).items()}
        return function(*map(_widened, args), **widened)


def _widened(argument: Any) -> Any:
    return torch.float64 if argument is torch.float32 else argument


def _error(graph: Tensor, expected: Tensor) -> float:
    if graph.shape != expected.shape:
        return math.inf
    error = float((graph - expected).abs().max() / expected.abs().max().clamp_min(1.0))
    return error if math.isfinite(error) else math.inf


def probe_seeds(spec: NetworkSpec) -> range:
    """Seeds of the inputs that batch invariance is measured with.

    A row that does not fill whole vectors shares them with its neighbours, and the last ones of a batch are worked on
    by other instructions. That shows in one row of a hundred, where an exponential is rounded the other way; so such
    networks, which are small ones, are tried with many rows.
    """
    whole = all(tensor.elements % VECTOR == 0 for tensor in (*spec.inputs, *spec.outputs) if tensor.shape)
    return range(1 if whole else 16)


def probe_rows(session: Session, inputs: Mapping[str, Tensor]) -> int:
    """How many rows batch invariance is measured with; by the time that the first row of the inputs takes."""
    first = {name: tensor[:1] for name, tensor in inputs.items()}
    call_session(session, first)  # warms up
    started = time.perf_counter()
    call_session(session, first)
    return SLOW_ROWS if time.perf_counter() - started > SLOW_SECONDS else max(BATCHES)


def is_batch_invariant(session: Session, inputs: Mapping[str, Tensor]) -> bool:
    """Whether each row gives the same bytes alone and in batches, wherever it stands.

    Each row is run alone, then two batches of each size of `BATCHES` that there are rows for, in order, then all rows
    turned around.
    """
    total = len(next(iter(inputs.values())))
    alone = _run(session, inputs, [[row] for row in range(total)])
    sizes = [size for size in BATCHES if size <= total]
    pairs = [[list(range(first, first + size)) for first in range(0, min(2 * size, total), size)] for size in sizes]
    arrangements = [*pairs, [list(range(total))[::-1]]]
    return all(
        _same([tensor[: sum(map(len, batches))] for tensor in alone], _run(session, inputs, batches))
        for batches in arrangements
    )


def _run(session: Session, inputs: Mapping[str, Tensor], batches: Sequence[Sequence[int]]) -> list[Tensor]:
    """Run batches of row numbers; returns each output with its rows back in their original order."""
    parts = [call_session(session, {name: tensor[list(rows)] for name, tensor in inputs.items()}) for rows in batches]
    order = torch.tensor([row for rows in batches for row in rows]).argsort()
    return [torch.cat(list(pieces))[order] for pieces in zip(*parts, strict=True)]


def call_session(session: Session, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """`Session.run` on torch tensors."""
    outputs = session.run({name: tensor.contiguous().numpy() for name, tensor in inputs.items()})
    return tuple(torch.from_numpy(output) for output in outputs)


def _same(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    """Equal bytes: NaN equals itself here and -0.0 differs from 0.0."""
    return all(torch.equal(_bits(a), _bits(b)) for a, b in zip(left, right, strict=True))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.int32)
