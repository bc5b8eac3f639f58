"""Every parametrisation becomes one prediction of the clean image, at the border (SPEC 0)."""

from __future__ import annotations

from math import sqrt


def clean_prediction(prediction: str, abar: float) -> tuple[float, float]:
    """Coefficients (of the state, of the output) of the clean image `p` at signal variance `abar`.

    eps: `p = (x - sqrt(1-abar) eps) / sqrt(abar)`. x0: `p = output`.
    v: `p = sqrt(abar) x - sqrt(1-abar) v` (Salimans and Ho, progressive distillation).

    Raises:
        ValueError: unknown parametrisation.
    """
    signal, noise = sqrt(abar), sqrt(1.0 - abar)
    if prediction == "eps":
        return 1.0 / signal, -noise / signal
    if prediction == "x0":
        return 0.0, 1.0
    if prediction == "v":
        return signal, -noise
    raise ValueError(f"prediction must be 'eps', 'x0' or 'v', got {prediction!r}")
