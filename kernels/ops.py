"""The updates as torch operators, for `torch.compile` and `torch.export`: the fused kernels on a GPU, their twins
elsewhere.

`torch.ops.fewstep.gather`, `.normal_`, `.ensemble_step`, `.langevin_step` and `.metropolis_step` take what
`kernels.gather.gather`, `kernels.gather.normal_`, `kernels.ensemble.ensemble_step`, `kernels.langevin.langevin_step`
and `kernels.metropolis.metropolis_step` take, with the keys of
the noise as three tensors beside the noise itself, and the history as five.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import philox, philox_torch, reference
from .launch import STARTS, History, Noise

__all__ = ["ensemble_step", "gather", "langevin_step", "metropolis_step", "normal", "normal_"]


def normal(seeds: Tensor, samples: Tensor, draws: Tensor, elements: int) -> Tensor:
    """The noise of `kernels.philox` for several rows, float32 `(rows, elements)`, where the keys are.

    On the CPU by NumPy, which takes a tenth of torch's time at a few hundred values.
    """
    if seeds.is_cuda:
        return philox_torch.normal(seeds, samples, draws, elements)
    unsigned = seeds.numpy().view(np.uint64).tolist()
    noise = philox.normal(unsigned, samples.tolist(), draws.tolist(), elements)
    return torch.from_numpy(np.ascontiguousarray(noise))


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
    pools: dict[str, Any] = {"anchor": anchor, "modes": modes, "accumulator": accumulator}
    starts: dict[str, Any] = {"stds": stds, "images": images, "image_rows": image_rows}
    keys = Noise(seeds, samples, draws)
    given = pools | starts | keys._asdict()
    if state.is_cuda:
        from .gather import gather as fused  # Triton is there only where a GPU is

        fused(state, slots, network_input, **given)
    else:
        noise = _wanted_noise(keys, state.shape[1], ((modes & STARTS) != 0) & (stds != 0.0))
        reference.gather(state, slots, network_input, **given, noise=noise)


@torch.library.custom_op("fewstep::normal_", mutates_args=("out",))
def normal_(out: Tensor, seeds: Tensor, samples: Tensor, draws: Tensor) -> None:
    """See `kernels.gather.normal_`."""
    if out.is_cuda:
        from .gather import normal_ as fused

        fused(out, seeds, samples, draws)
    else:
        out.copy_(normal(seeds, samples, draws, out[0].numel()).view(out.shape))


@torch.library.custom_op(
    "fewstep::ensemble_step",
    mutates_args=("state", "accumulator", "history_pool", "prediction", "network_input"),
)
def ensemble_step(
    state: Tensor,
    slots: Tensor,
    output: Tensor,
    coefficients: Tensor,
    anchor: Tensor,
    null_rows: Tensor | None = None,
    accumulator: Tensor | None = None,
    history_pool: Tensor | None = None,
    history_slots: Tensor | None = None,
    history_weights: Tensor | None = None,
    history_counts: Tensor | None = None,
    history_keep: Tensor | None = None,
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
    history = _history(history_pool, history_slots, history_weights, history_counts, history_keep)
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
            noise=keys,
            prediction=prediction,
            prediction_rows=prediction_rows,
            network_input=network_input,
        )
    flat = output.flatten(1).float()
    new, p = reference.ensemble_step(
        state,
        slots,
        flat,
        coefficients,
        anchor=anchor,
        null_rows=null_rows,
        accumulator=accumulator,
        history=None if history is None else _weighted(history),
        noise=_noise(keys, flat.shape[1], coefficients[:, 9]),
    )
    if history is not None:
        reference.keep_prediction(history.pool, history.keep, p)
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
        state, slots, flat, coefficients, anchor=anchor, noise=_noise(keys, flat.shape[1], coefficients[:, 3])
    )
    return norms, _written(new, network_input)


@langevin_step.register_fake
def _(
    state: Tensor, slots: Tensor, *others: Tensor | bool | None, **named: Tensor | bool | None
) -> tuple[Tensor, Tensor]:
    rows = slots.shape[0]
    return state.new_empty(rows), state.new_empty(rows, dtype=torch.int32)


@torch.library.custom_op("fewstep::metropolis_step", mutates_args=("state", "place", "slope", "level"))
def metropolis_step(
    state: Tensor,
    slots: Tensor,
    energy: Tensor,
    gradient: Tensor,
    coefficients: Tensor,
    place: Tensor,
    slope: Tensor,
    level: Tensor,
    decision: Tensor | None = None,
    noise: Tensor | None = None,
    seeds: Tensor | None = None,
    samples: Tensor | None = None,
    draws: Tensor | None = None,
    decision_samples: Tensor | None = None,
    decision_draws: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.metropolis.metropolis_step`. seeds: of both the noise and the decisions.

    Returns the energies at the places, the norms of the gradients there, and the flags of places that are not finite.

    Raises:
        ValueError: neither decisions nor keys to make them from.
    """
    decides, keys = _keys(decision, seeds, decision_samples, decision_draws), _keys(noise, seeds, samples, draws)
    if decides is None:
        raise ValueError("decision: neither Gaussians nor the keys of some")
    if state.is_cuda:
        from .metropolis import metropolis_step as fused

        return fused(
            state,
            slots,
            energy,
            gradient,
            coefficients,
            place=place,
            slope=slope,
            level=level,
            decision=decides,
            noise=keys,
        )
    energies, norms = torch.zeros(len(slots)), torch.zeros(len(slots))
    nonfinite = torch.zeros(len(slots), dtype=torch.int32)
    chains = ((coefficients[:, 1] != 0.0) | (coefficients[:, 3] != 0.0)).nonzero()[:, 0]
    if len(chains):
        flat = gradient[: len(slots)].flatten(1).float()
        drawn = _noise(keys, flat.shape[1], coefficients[:, 3])
        gaussians = normal(*decides, 1)[:, 0] if isinstance(decides, Noise) else decides
        found = reference.metropolis_step(
            state,
            slots[chains],
            energy[chains].float(),
            flat[chains],
            coefficients[chains],
            place=place,
            slope=slope,
            level=level,
            decision=gaussians[chains],
            noise=None if drawn is None else drawn[chains],
        )
        energies[chains], norms[chains], nonfinite[chains] = *found[1:], (~torch.isfinite(found[0]).all(1)).int()
    return energies, norms, nonfinite


@metropolis_step.register_fake
def _(state: Tensor, slots: Tensor, *others: Tensor | None, **named: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    rows = slots.shape[0]
    return state.new_empty(rows), state.new_empty(rows), state.new_empty(rows, dtype=torch.int32)


def _keys(
    noise: Tensor | None, seeds: Tensor | None, samples: Tensor | None, draws: Tensor | None
) -> Tensor | Noise | None:
    if seeds is None or samples is None or draws is None:
        return noise
    return Noise(seeds, samples, draws)


def _history(
    pool: Tensor | None, slots: Tensor | None, weights: Tensor | None, counts: Tensor | None, keep: Tensor | None
) -> History | None:
    if pool is None or slots is None or weights is None or counts is None or keep is None:
        return None
    return History(pool, slots, weights, counts, keep)


def _weighted(history: History) -> Tensor | None:
    """On the CPU: None where no row has predictions before, and no longer a sum than the longest."""
    most = int(history.counts.max())
    if not most:
        return None
    return reference.weighted_history(
        history._replace(slots=history.slots[:, :most], weights=history.weights[:, :most])
    )


def _noise(noise: Tensor | Noise | None, elements: int, coefficients: Tensor) -> Tensor | None:
    """On the CPU: what was given, or is made for the rows whose coefficient is not 0; None where there are none."""
    if not isinstance(noise, Noise):
        return noise
    wanted = coefficients != 0.0
    return _wanted_noise(noise, elements, wanted) if bool(wanted.any()) else None


def _wanted_noise(keys: Noise, elements: int, wanted: Tensor) -> Tensor:
    """On the CPU: noise of the rows that want it, zeros for the others."""
    if bool(wanted.all()):
        return normal(*keys, elements)
    noise = torch.zeros(len(wanted), elements)
    if bool(wanted.any()):
        noise[wanted] = normal(keys.seeds[wanted], keys.samples[wanted], keys.draws[wanted], elements)
    return noise


def _written(new: Tensor, network_input: Tensor | None) -> Tensor:
    """Write the network's next input; returns the flags of the rows that are not finite."""
    if network_input is not None:
        network_input[: len(new)].copy_(new.view(len(new), *network_input.shape[1:]))
    return (~torch.isfinite(new).all(1)).int()
