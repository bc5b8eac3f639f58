"""Those that do one launch's work: this project's operators, and the same as a user of torch would write it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kernels import ops
from kernels.launch import STARTS

from .cases import Case

Operands = dict[str, Tensor]
Step = Callable[[Operands], object]

# Columns of models.program.EnsembleUpdate and LangevinUpdate; the states stay within bounds, however often it runs.
_PLAIN = (0.0, 0.5, 0.5, -1.0, 1.0, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0)
_GUIDED = (1.5, *_PLAIN[1:])
_ACCUMULATOR = (*_PLAIN[:8], 0.1, 0.0, 0.9, 0.1)
_NOISE = (*_PLAIN[:9], 0.1, 0.0, 0.0)
_ENSEMBLE = {"plain": _PLAIN, "guided": _GUIDED, "accumulator": _ACCUMULATOR, "noise": _NOISE}
_LANGEVIN = {
    "no clip": (0.9, 0.0, -0.1, 0.1, float("inf"), -9.0, 9.0),
    "clip": (0.9, 0.0, -0.1, 0.1, 0.5, -9.0, 9.0),
}


def operands(case: Case, device: torch.device, seed: int) -> Operands:
    """Tensors of one launch: pools, keys and the network's tensor, with values of their own."""
    generator = torch.Generator(device).manual_seed(seed)

    def gaussian(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    rows = case.rows
    numbers = torch.arange(rows, device=device)
    made = {"slots": torch.randperm(rows + 1, generator=generator, device=device)[:rows]}
    made |= {"seeds": numbers + seed, "samples": numbers, "draws": numbers + 7}
    made["state"] = gaussian(rows + 1, case.elements)
    guided = (case.kernel, case.variant) == ("ensemble", "guided")
    network = gaussian(2 * rows if guided else rows, *case.shape).to(case.dtype)
    made["network"] = network.contiguous(memory_format=torch.channels_last) if case.channels_last else network
    if case.kernel == "gather":
        made |= {"anchor": torch.zeros_like(made["state"]), "stds": torch.ones(rows, device=device)}
        made["modes"] = torch.full((rows,), STARTS if case.variant == "start" else 0, device=device)
        return made
    column = (_ENSEMBLE if case.kernel == "ensemble" else _LANGEVIN)[case.variant]
    made["coefficients"] = torch.tensor(column, device=device).repeat(rows, 1)
    if guided:
        made["null_rows"] = numbers + rows
    if case.variant == "accumulator":
        made["accumulator"] = gaussian(rows + 1, case.elements)
    return made


def ours(case: Case) -> Step:
    """The operator: the fused kernel on a GPU, its twin in torch elsewhere."""
    if case.kernel == "gather":
        return _gather
    if case.kernel == "langevin":
        clips = case.variant == "clip"
        return lambda t: ops.langevin_step(
            t["state"],
            t["slots"],
            t["network"],
            t["coefficients"],
            seeds=t["seeds"],
            samples=t["samples"],
            draws=t["draws"],
            clips=clips,
        )
    noise = ("seeds", "samples", "draws") if case.variant == "noise" else ()
    return lambda t: ops.ensemble_step(
        t["state"],
        t["slots"],
        t["network"],
        t["coefficients"],
        t["state"],  # no row has a coefficient for its anchor: it is not read
        null_rows=t.get("null_rows"),
        accumulator=t.get("accumulator"),
        **{name: t[name] for name in noise},
    )


def _gather(t: Operands) -> None:
    ops.gather(
        t["state"],
        t["slots"],
        t["network"],
        anchor=t["anchor"],
        modes=t["modes"],
        stds=t["stds"],
        seeds=t["seeds"],
        samples=t["samples"],
        draws=t["draws"],
    )


def eager(case: Case) -> Step:
    """Plain torch, that does no more than the case asks for."""
    if case.kernel == "gather":
        return _start if case.variant == "start" else _fill
    if case.kernel == "langevin":
        return _clipped if case.variant == "clip" else _unclipped
    return {"plain": _plain, "guided": _guided, "accumulator": _accumulator, "noise": _noise}[case.variant]


# One function for each, without a branch: so the compiler has one program to work on.


def _columns(t: Operands) -> tuple[Tensor, ...]:
    return t["coefficients"][:, :, None].unbind(1)


def _flat(tensor: Tensor) -> Tensor:
    return tensor.flatten(1).float()


def _put(t: Operands, new: Tensor) -> Tensor:
    t["state"][t["slots"]] = new
    return ~torch.isfinite(new).all(1)


def _plain(t: Operands) -> Tensor:
    _, p_state, p_output, low, high, a, b, *_ = _columns(t)
    x = t["state"][t["slots"]]
    p = torch.clamp(p_state * x + p_output * _flat(t["network"]), low, high)
    return _put(t, a * x + b * p)


def _guided(t: Operands) -> Tensor:
    guidance, p_state, p_output, low, high, a, b, *_ = _columns(t)
    x = t["state"][t["slots"]]
    out, null = _flat(t["network"]).chunk(2)
    out = out + guidance * (out - null)
    p = torch.clamp(p_state * x + p_output * out, low, high)
    return _put(t, a * x + b * p)


def _accumulator(t: Operands) -> Tensor:
    _, p_state, p_output, low, high, a, b, _, d, _, f, g = _columns(t)
    x = t["state"][t["slots"]]
    p = torch.clamp(p_state * x + p_output * _flat(t["network"]), low, high)
    y = f * t["accumulator"][t["slots"]] + g * p
    t["accumulator"][t["slots"]] = y
    return _put(t, a * x + b * p + d * y)


def _noise(t: Operands) -> Tensor:
    _, p_state, p_output, low, high, a, b, _, _, e, *_ = _columns(t)
    x = t["state"][t["slots"]]
    p = torch.clamp(p_state * x + p_output * _flat(t["network"]), low, high)
    return _put(t, a * x + b * p + e * torch.randn_like(x))


def _unclipped(t: Operands) -> tuple[Tensor, Tensor]:
    a, _, s, e, _, low, high = _columns(t)
    x, g = t["state"][t["slots"]], _flat(t["network"])
    norm = torch.linalg.vector_norm(g, dim=1)
    return norm, _put(t, torch.clamp(a * x + s * g + e * torch.randn_like(x), low, high))


def _clipped(t: Operands) -> tuple[Tensor, Tensor]:
    a, _, s, e, limit, low, high = _columns(t)
    x, g = t["state"][t["slots"]], _flat(t["network"])
    norm = torch.linalg.vector_norm(g, dim=1)
    step = s * torch.clamp(limit / (s.abs() * norm[:, None]), max=1.0)
    return norm, _put(t, torch.clamp(a * x + step * g + e * torch.randn_like(x), low, high))


def _fill(t: Operands) -> None:
    t["network"].copy_(t["state"][t["slots"]].view(t["network"].shape))


def _start(t: Operands) -> None:
    x = t["stds"][:, None] * torch.randn(len(t["slots"]), t["state"].shape[1], device=t["state"].device)
    t["state"][t["slots"]] = x
    t["anchor"][t["slots"]] = x
    t["network"].copy_(x.view(t["network"].shape))
