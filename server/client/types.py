"""What the client hands to its callers: plain frozen values, NumPy arrays, no protobuf messages."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time of a request went on the server, in seconds.

    queue_seconds: from admission to the first step. compute_seconds: in steps that the request took part in.
    total_seconds: from the request's arrival to the response's departure.
    steps: batches that the request took part in. mean_batch_rows: network rows in those batches, on average.
    network_seconds: of compute_seconds, in the network itself. encode_seconds: making the images or energies.
    """

    queue_seconds: float
    compute_seconds: float
    total_seconds: float
    steps: int
    mean_batch_rows: float
    network_seconds: float
    encode_seconds: float


@dataclass(frozen=True, slots=True)
class Samples:
    """The answer to a sample request.

    images: `(count, channels, height, width)` float32 in the model's value range.
    png: the files as they came, one an image, where PNG was asked for; else empty.
    seed: repeats the request. nfe: forward passes of the network per sample, gradient passes beside it.
    """

    model: str
    version: int
    images: NDArray[np.float32]
    png: tuple[bytes, ...]
    seed: int
    sampler: str
    steps: int
    nfe: int
    gradient_passes: int
    timing: Timing


@dataclass(frozen=True, slots=True)
class Preview:
    """Sample 0 after a step: its prediction of the clean image, `(channels, height, width)` float32.

    image: None where the step left the image alone, and worked on what it will be made of.
    energy, gradient_norm: what the step saw, where it took a gradient of the energy.
    """

    step: int
    steps: int
    image: NDArray[np.float32] | None
    energy: float | None = None
    gradient_norm: float | None = None


@dataclass(frozen=True, slots=True)
class Refined:
    """The answer to a refinement.

    images: `(count, channels, height, width)` float32 in the model's value range; png: the files, where asked for.
    energy_before, energy_after: `(count,)`, empty where the model cannot score an image as it is.
    nfe: forward passes for each image, gradient passes beside it.
    """

    model: str
    version: int
    images: NDArray[np.float32]
    png: tuple[bytes, ...]
    energy_before: NDArray[np.float64]
    energy_after: NDArray[np.float64]
    seed: int
    method: str
    steps: int
    nfe: int
    gradient_passes: int
    timing: Timing


@dataclass(frozen=True, slots=True)
class ScaleScores:
    """The energies of all images at one noise scale; arrays `(count,)`.

    percentile: percentage of calibration energies at or below the image's. p_value: conformal,
    (1 + #{calibration >= energy}) / (n + 1). out_of_distribution: p_value <= the false-alarm rate.
    threshold: the energy from which on an image is called out-of-distribution.
    Without calibration the last three arrays are empty and the threshold is None.
    """

    scale: str
    energy: NDArray[np.float64]
    percentile: NDArray[np.float64]
    p_value: NDArray[np.float64]
    out_of_distribution: NDArray[np.bool_]
    threshold: float | None


@dataclass(frozen=True, slots=True)
class Scores:
    """The answer to a score request: `scores["clean"].energy`, or `scores.default` for the first scale.

    nfe: forward passes for each image over all scales, gradient passes beside it.
    """

    model: str
    version: int
    scales: dict[str, ScaleScores]
    false_alarm_rate: float
    seed: int
    nfe: int
    gradient_passes: int
    timing: Timing

    def __getitem__(self, scale: str) -> ScaleScores:
        return self.scales[scale]

    @property
    def default(self) -> ScaleScores:
        """The first scale of the answer; the model's default one unless scales were asked for."""
        return next(iter(self.scales.values()))


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """One line of the list of models; the first sampler and the first refiner are the defaults.

    scores: it has an energy.
    """

    name: str
    version: int
    family: str
    description: str
    samplers: tuple[str, ...]
    scores: bool
    refiners: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What a model takes and gives.

    image_shape: (channels, height, width). low, high: the value range of its images.
    labels: how many classes, 0 for none. guidance: classifier-free guidance is possible.
    scales: noise scales of its energy, the default first. calibrated: scores carry p-values.
    manifest_json: networks, parity report and training provenance, as JSON.
    """

    summary: ModelSummary
    image_shape: tuple[int, int, int]
    low: float
    high: float
    labels: int
    label_names: tuple[str, ...]
    guidance: bool
    default_steps: int
    accepted_steps: tuple[int, ...]
    scales: tuple[str, ...]
    calibrated: bool
    manifest_json: str


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """How the server is doing; times in seconds, counts since its start."""

    version: str
    engine: str
    ready: bool
    uptime_seconds: float
    rows_in_flight: int
    requests_open: int
    requests_total: int
    batches_total: int
    mean_batch_rows: float
