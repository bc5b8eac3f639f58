"""What a caller may ask of a sampler, and the two ways in which that can be wrong."""

from __future__ import annotations

from dataclasses import dataclass


class OptionError(ValueError):
    """An option out of range or malformed. `field` is its name in the API."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class UnsupportedError(ValueError):
    """An option that is fine by itself but that this model or sampler does not have."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


@dataclass(frozen=True, slots=True)
class SampleOptions:
    """Options of one sample request; None stands for the model's or the sampler's default.

    sampler: name in `models.samplers.SAMPLERS`. steps: number of network steps.
    spacing: `quadratic` or `linear` time grid. m: ensemble weights in [0, 1], one for all steps or
    one per step (iDDIM eq. 11). form: `iterate` (eq. 11) or `accumulator` (eq. 33).
    weights: for `custom`, row i holds the i+1 weights of the predictions of steps 0..i (eq. 4).
    eta: amount of noise in [0, 1] (eq. 28). guidance: w of classifier-free guidance.
    temperature: std of the prior noise, for Langevin the temperature of the chain.
    step_size: Langevin step size s (SPEC 7).
    """

    sampler: str | None = None
    steps: int | None = None
    spacing: str | None = None
    m: tuple[float, ...] = ()
    form: str | None = None
    weights: tuple[tuple[float, ...], ...] = ()
    eta: float | None = None
    guidance: float | None = None
    temperature: float | None = None
    step_size: float | None = None

    def given(self) -> tuple[str, ...]:
        """Names of the options that the caller set."""
        return tuple(name for name in self.__slots__ if getattr(self, name) not in (None, ()))
