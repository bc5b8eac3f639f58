"""The updates as torch operators, for `torch.compile` and `torch.export`: the fused kernels on a GPU, their twins
elsewhere.

`torch.ops.fewstep.ensemble_step` and `torch.ops.fewstep.langevin_step` take what `kernels.ensemble.ensemble_step` and
`kernels.langevin.langevin_step` take, with the keys of the noise as three tensors beside the noise itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import philox_torch, reference
from .launch import Noise

__all__ = ["ensemble_step", "langevin_step"]


@torch.library.custom_op(
    "fewstep::ensemble_step",
    mutates_args=("state", "accumulator", "history", "prediction", "network_input"),
)
def ensemble_step(
    state: Tensor,
    slots: Tensor,
    output: Tensor,
    coefficients: Tensor,
    anchor: Tensor,
    null_output: Tensor | None = None,
    accumulator: Tensor | None = None,
    history: Tensor | None = None,
    weights: Tensor | None = None,
    lines: Tensor | None = None,
    noise: Tensor | None = None,
    seeds: Tensor | None = None,
    samples: Tensor | None = None,
    draws: Tensor | None = None,
    prediction: Tensor | None = None,
    network_input: Tensor | None = None,
) -> Tensor:
    """See `kernels.ensemble.ensemble_step`. Returns int32 `(rows,)`: 1 where a new state is not finite."""
    keys = _keys(noise, seeds, samples, draws)
    if state.is_cuda:
        from .ensemble import ensemble_step as fused  # Triton is there only where a GPU is

        return fused(
            state,
            slots,
            output,
            coefficients,
            anchor=anchor,
            null_output=null_output,
            accumulator=accumulator,
            history=history,
            weights=weights,
            lines=lines,
            noise=keys,
            prediction=prediction,
            network_input=network_input,
        )
    flat = output.flatten(1).float()
    weighted = None
    if history is not None and weights is not None and lines is not None:
        before = torch.arange(history.shape[1]) < lines[:, None]
        # Selected, not multiplied by 0: what another request left in the pool may be NaN.
        kept = torch.where(before[:, :, None], history[slots], 0.0)
        weighted = (torch.where(before, weights[:, : history.shape[1]], 0.0)[:, :, None] * kept).sum(1)
    new, p = reference.ensemble_step(
        state,
        slots,
        flat,
        coefficients,
        anchor=anchor,
        null_output=None if null_output is None else null_output.flatten(1).float(),
        accumulator=accumulator,
        history=weighted,
        noise=_noise(keys, flat.shape[1]),
    )
    if history is not None and lines is not None:
        keeps = lines >= 0
        history[slots[keeps], lines[keeps]] = p[keeps]
    if prediction is not None:
        prediction.copy_(p)
    return _written(new, network_input)


@ensemble_step.register_fake
def _(state: Tensor, slots: Tensor, output: Tensor, *others: Tensor | None, **named: Tensor | None) -> Tensor:
    return state.new_empty(output.shape[0], dtype=torch.int32)


@torch.library.custom_op("fewstep::langevin_step", mutates_args=("state", "network_input"))
def langevin_step(
    state: Tensor,
    slots: Tensor,
    gradient: Tensor,
    coefficients: Tensor,
    anchor: Tensor | None = None,
    noise: Tensor | None = None,
    seeds: Tensor | None = None,
    samples: Tensor | None = None,
    draws: Tensor | None = None,
    clips: bool = True,
    network_input: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `kernels.langevin.langevin_step`. Returns the gradients' norms and the flags of non-finite rows."""
    keys = _keys(noise, seeds, samples, draws)
    if state.is_cuda:
        from .langevin import langevin_step as fused

        return fused(
            state,
            slots,
            gradient,
            coefficients,
            anchor=anchor,
            noise=keys,
            clips=clips,
            network_input=network_input,
        )
    flat = gradient.flatten(1).float()
    new, norms = reference.langevin_step(
        state, slots, flat, coefficients, anchor=anchor, noise=_noise(keys, flat.shape[1])
    )
    return norms, _written(new, network_input)


@langevin_step.register_fake
def _(
    state: Tensor, slots: Tensor, gradient: Tensor, *others: Tensor | bool | None, **named: Tensor | bool | None
) -> tuple[Tensor, Tensor]:
    rows = gradient.shape[0]
    return state.new_empty(rows), state.new_empty(rows, dtype=torch.int32)


def _keys(
    noise: Tensor | None, seeds: Tensor | None, samples: Tensor | None, draws: Tensor | None
) -> Tensor | Noise | None:
    if seeds is None or samples is None or draws is None:
        return noise
    return Noise(seeds, samples, draws)


def _noise(noise: Tensor | Noise | None, elements: int) -> Tensor | None:
    return philox_torch.normal(*noise, elements) if isinstance(noise, Noise) else noise


def _written(new: Tensor, network_input: Tensor | None) -> Tensor:
    """Write the network's next input; returns the flags of the rows that are not finite."""
    if network_input is not None:
        network_input.copy_(new.view(network_input.shape))
    return (~torch.isfinite(new).all(1)).int()
