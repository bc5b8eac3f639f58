"""From an energy to something a user can act on: percentile, conformal p-value, decision (SPEC 8).

Calibration energies come from held-out in-distribution data, on which nothing was trained. If the scored image is
exchangeable with them, its p-value is super-uniform, `P(p <= a) <= a` for every a, whatever the model and whatever
its energy (Vovk et al. 2005; Bates et al. 2023, arXiv 2104.08279). So the false-alarm rate is guaranteed on average
over calibration sets; for one set of n energies it scatters with a standard deviation of `sqrt(a(1-a)/(n+2))`,
1.1 points at a = 5% and n = 400. Nothing is promised about how many outliers are caught: that depends on the model.

NumPy only: the server imports this module.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

MOST_ENERGIES = 1e9
"""Calibration energies beyond which their number is not worth telling."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Sorted calibration energies of one scale; U is low for in-distribution.

    Methods take one energy or an array of any shape and return an array of that shape.
    An energy of +inf is an ordinary outlier; NaN is refused.
    """

    energies: Array
    """(n,) float64, increasing, read-only."""

    def __post_init__(self) -> None:
        """Sort, copy and check.

        Raises:
            ValueError: not one-dimensional, empty, or not finite.
        """
        energies = np.sort(np.array(self.energies, dtype=np.float64), axis=None)
        if np.ndim(self.energies) != 1 or len(energies) == 0:
            raise ValueError(f"calibration energies must be (n,) with n >= 1, got shape {np.shape(self.energies)}")
        if not np.isfinite(energies).all():
            raise ValueError(
                f"calibration energies must be finite, got {int((~np.isfinite(energies)).sum())} that are not"
            )
        energies.setflags(write=False)
        object.__setattr__(self, "energies", energies)

    def __len__(self) -> int:
        return len(self.energies)

    def percentile(self, energy: npt.ArrayLike) -> Array:
        """Percentage of calibration energies at or below each energy, 0..100; high = out-of-distribution."""
        below = np.searchsorted(self.energies, _scored(energy), side="right")
        return np.asarray(100.0 * below / len(self), dtype=np.float64)

    def p_value(self, energy: npt.ArrayLike) -> Array:
        """Conformal p-value `(1 + #{calibration >= U})/(n + 1)`, from 1/(n + 1) to 1; low = out-of-distribution."""
        not_below = len(self) - np.searchsorted(self.energies, _scored(energy), side="left")
        return np.asarray((1 + not_below) / (len(self) + 1), dtype=np.float64)

    def threshold(self, false_alarm_rate: float) -> float:
        """The largest energy that still passes: `U > threshold` exactly when `p_value(U) <= false_alarm_rate`.

        Raises:
            ValueError: the rate is not within (0, 1), or below 1/(n + 1), the smallest p-value there is:
                then no energy at all could be called out-of-distribution.
        """
        if not 0.0 < false_alarm_rate < 1.0:
            raise ValueError(f"false_alarm_rate must be within (0, 1), got {false_alarm_rate}")
        ranks = len(self) + 1
        # The largest j with j/(n+1) <= rate, by the same division as in p_value: the product alone is off by one
        # where it rounds, e.g. 0.29 * 100 = 28.999999999999996.
        accepted = math.floor(false_alarm_rate * ranks)
        while (accepted + 1) / ranks <= false_alarm_rate:
            accepted += 1
        while accepted / ranks > false_alarm_rate:
            accepted -= 1
        if accepted < 1:
            # Written out only where somebody might have as many: a rate of 1e-300 would take 300 digits.
            possible = false_alarm_rate >= 1.0 / MOST_ENERGIES
            needed = f"at least {math.ceil(1.0 / false_alarm_rate) - 1}" if possible else f"over {MOST_ENERGIES:.0e}"
            raise ValueError(f"a rate of {false_alarm_rate} needs {needed} calibration energies, got {len(self)}")
        return float(self.energies[len(self) - accepted])

    def decision(self, energy: npt.ArrayLike, false_alarm_rate: float) -> npt.NDArray[np.bool_]:
        """True where the image is called out-of-distribution, wrongly so for at most this fraction of the data.

        Raises:
            ValueError: as `threshold`.
        """
        return np.asarray(_scored(energy) > self.threshold(false_alarm_rate))


def calibrate(energies: Mapping[str, npt.ArrayLike]) -> dict[str, Calibration]:
    """Calibrate each scale of an energy by itself; scale name -> (n,) energies of the same n held-out images.

    Raises:
        ValueError: a scale's energies are unusable, or scales differ in number; names the scale.
    """
    calibrations = {}
    for scale, values in energies.items():
        try:
            calibrations[scale] = Calibration(np.asarray(values))
        except ValueError as error:
            raise ValueError(f"scale {scale!r}: {error}") from error
    counts = {scale: len(calibration) for scale, calibration in calibrations.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"all scales must score the same images, got {counts} energies")
    return calibrations


def combined_p_value(p_values: npt.ArrayLike) -> Array:
    """One valid p-value out of one per scale: Bonferroni's `min(1, scales * min p)`.

    Calling an image out-of-distribution when any of several scales does raises false alarms up to as many times;
    this pays for it. It holds however the scales depend on each other, and they do.

    p_values: (scales, ...). Returns: (...).
    """
    values = np.asarray(p_values, dtype=np.float64)
    if values.ndim == 0 or len(values) == 0:
        raise ValueError(f"p_values must be (scales, ...) with scales >= 1, got shape {values.shape}")
    return np.asarray(np.minimum(1.0, len(values) * values.min(axis=0)), dtype=np.float64)


def _scored(energy: npt.ArrayLike) -> Array:
    values = np.asarray(energy, dtype=np.float64)
    if np.isnan(values).any():
        raise ValueError("energy must not be NaN")
    return values
