"""The updates as torch operators, for `torch.compile` and `torch.export`: the fused kernels on a GPU, their twins
elsewhere.

`torch.ops.fewstep.gather`, `.normal_`, `.ensemble_step` and `.langevin_step` take what `kernels.gather.gather`,
`kernels.gather.normal_`, `kernels.ensemble.ensemble_step` and `kernels.langevin.langevin_step` take, with the keys of
the noise as three tensors beside the noise itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import philox_torch, reference
from .launch import Noise

__all__ = ["ensemble_step", "gather", "langevin_step", "normal_"]


@torch.library.custom_op("fewstep::gather", mutates_args=("state", "network_input", "anchor", "accumulator"))
def gather(
    state: Tensor,
    slots: Tensor,
    network_input: Tensor | None,
    anchor: Tensor,
    modes: Tensor,
    stds: Tensor,
    seeds: Tensor,
    samples: Tensor,
    draws: Tensor,
    accumulator: Tensor | None = None,
    images: Tensor | None = None,
    image_rows: Tensor | None = None,
) -> None:
    """See `kernels.gather.gather`."""
    if state.is_cuda:
        from .gather import gather as step  # Triton is there only where a GPU is
    else:
        step = reference.gather
    step(
        state,
        slots,
        network_input,
        anchor=anchor,
        modes=modes,
        accumulator=accumulator,
        stds=stds,
        images=images,
        image_rows=image_rows,
        seeds=seeds,
        samples=samples,
        draws=draws,
    )


@torch.library.custom_op("fewstep::normal_", mutates_args=("out",))
def normal_(out: Tensor, seeds: Tensor, samples: Tensor, draws: Tensor) -> None:
    """See `kernels.gather.normal_`."""
    if out.is_cuda:
        from .gather import normal_ as fill
    else:
        fill = reference.normal_
    fill(out, seeds, samples, draws)


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
    null_rows: Tensor | None = None,
    accumulator: Tensor | None = None,
    history: Tensor | None = None,
    weights: Tensor | None = None,
    lines: Tensor | None = None,
    noise: Tensor | None = None,
    seeds: Tensor | None = None,
    samples: Tensor | None = None,
    draws: Tensor | None = None,
    prediction: Tensor | None = None,
    prediction_rows: Tensor | None = None,
    network_input: Tensor | None = None,
) -> Tensor:
    """See `kernels.ensemble.ensemble_step`. Returns int32 `(rows,)`: 1 where a new state is not finite."""
    keys = _keys(noise, seeds, samples, draws)
    if state.is_cuda:
        from .ensemble import ensemble_step as fused

        return fused(
            state,
            slots,
            output,
            coefficients,
            anchor=anchor,
            null_rows=null_rows,
            accumulator=accumulator,
            history=history,
            weights=weights,
            lines=lines,
            noise=keys,
            prediction=prediction,
            prediction_rows=prediction_rows,
            network_input=network_input,
        )
    flat = output.flatten(1).float()
    weighted = None
    if history is not None and weights is not None and lines is not None:
        weighted = reference.weighted_history(history, slots, weights, lines)
    new, p = reference.ensemble_step(
        state,
        slots,
        flat,
        coefficients,
        anchor=anchor,
        null_rows=null_rows,
        accumulator=accumulator,
        history=weighted,
        noise=_noise(keys, flat.shape[1]),
    )
    if history is not None and lines is not None:
        reference.keep_history(history, slots, lines, p)
    if prediction is not None:
        reference.keep_prediction(prediction, prediction_rows, p)
    return _written(new, network_input)


@ensemble_step.register_fake
def _(state: Tensor, slots: Tensor, *others: Tensor | None, **named: Tensor | None) -> Tensor:
    return state.new_empty(slots.shape[0], dtype=torch.int32)


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
    flat = gradient[: len(slots)].flatten(1).float()
    new, norms = reference.langevin_step(
        state, slots, flat, coefficients, anchor=anchor, noise=_noise(keys, flat.shape[1])
    )
    return norms, _written(new, network_input)


@langevin_step.register_fake
def _(
    state: Tensor, slots: Tensor, *others: Tensor | bool | None, **named: Tensor | bool | None
) -> tuple[Tensor, Tensor]:
    rows = slots.shape[0]
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
        network_input[: len(new)].copy_(new.view(len(new), *network_input.shape[1:]))
    return (~torch.isfinite(new).all(1)).int()
