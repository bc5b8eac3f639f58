"""What a caller may ask of a sampler, and the two ways in which that can be wrong."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite


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
    parameters: options that one sampler alone knows, (name, numbers) in the order of the names; see `parameter`.
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
    parameters: tuple[tuple[str, tuple[float, ...]], ...] = ()

    def given(self) -> tuple[str, ...]:
        """Names of the options that the caller set, a sampler's own ones by their names."""
        names = (name for name in self.__slots__ if name != "parameters" and getattr(self, name) not in (None, ()))
        return (*names, *(name for name, _ in self.parameters))

    def numbers(self, name: str) -> tuple[float, ...] | None:
        """A sampler's own option as it was given, or None.

        Raises:
            OptionError: a value is not finite, or there is none.
        """
        values = dict(self.parameters).get(name)
        if values is not None and (not values or not all(map(isfinite, values))):
            raise OptionError(name, f"must hold finite numbers, at least one, got {list(values)}")
        return values

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """A sampler's own option that is one number within [low, high].

        Raises:
            OptionError: it is not.
        """
        values = self.numbers(name)
        if values is None:
            return default
        if len(values) != 1 or not low <= values[0] <= high:
            raise OptionError(name, f"must be one number within [{low:g}, {high:g}], got {_listed(values)}")
        return values[0]

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        """As `number`, of whole numbers."""
        value = self.number(name, default, low, high)
        if value != int(value):
            raise OptionError(name, f"must be a whole number, got {value:g}")
        return int(value)


def _listed(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
