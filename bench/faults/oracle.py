"""What each content must come out as: `models.run` on the checkpoints, computed once and compared to 1e-4.

Nothing here is shared with the server: messages are read by the campaign's own code, and networks are torch modules
from the checkpoint instead of the bundle's graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.bundle import Bundle
from models.calibrate import Calibration
from models.card import ModelCard
from models.checkpoint import CHECKPOINT, load_checkpoint, load_modules
from models.program import EnsembleUpdate, Program
from models.run import Network, networks_of, run
from models.samplers import compile_sample, compile_score, find_scale
from protos import fewstep_pb2 as pb
from server.client.images import decode_png, from_pixels

from .contents import Content, Native, options_of

Floats = NDArray[np.float32]

TOLERANCE = 1e-4
"""Absolute, for values up to 1; relative above, as float32 is."""
NETWORK_ERROR = 2e-6
"""What a float32 network's output may be off by; it counts where an update multiplies it by more than 50."""


class OracleError(ValueError):
    """A repository whose models cannot be checked; the message says why."""


@dataclass(frozen=True)
class Expected:
    """The offline result of one native request.

    images: (count, channels, height, width), of samples. previews: (steps, channels, height, width), of sample 0:
    its prediction of the clean image after each step, or for langevin its state. energies: (images,) by scale.
    tolerance, preview_tolerance: of images and previews.
    """

    nfe: int
    images: Floats | None = None
    previews: Floats | None = None
    tolerance: float = TOLERANCE
    preview_tolerance: float = TOLERANCE
    energies: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    @property
    def finite(self) -> bool:
        """Whether every value is; a request whose values are not fails on the server too."""
        energies = all(bool(np.isfinite(energy).all()) for energy in self.energies.values())
        return energies and (self.images is None or bool(np.isfinite(self.images).all()))


class Oracle:
    """The checkpoints of a repository's models, and the results of the requests that were asked about."""

    def __init__(self, cards: Mapping[str, ModelCard], networks: Mapping[str, Mapping[str, Network]]) -> None:
        self.cards = cards
        self._networks = networks
        self._known: dict[bytes, Expected] = {}
        self.calibrations = {
            (card.name, scale.name): Calibration(np.array(scale.calibration))
            for card in cards.values()
            for scale in (card.energy.scales if card.energy is not None else ())
            if scale.calibration
        }

    @classmethod
    def load(cls, bundles: Sequence[Bundle], zoo: Path) -> Oracle:
        """The checkpoints of `zoo` that the bundles were exported from.

        Raises:
            OracleError: a bundle has no checkpoint there, or was exported from other weights.
        """
        cards, networks = {}, {}
        for bundle in bundles:
            name = bundle.card.name
            if not (zoo / name / CHECKPOINT).is_file():
                raise OracleError(f"{name}: there is no checkpoint {zoo / name} to check its pictures against")
            card = load_checkpoint(zoo / name)
            for module, spec in card.modules.items():
                served = bundle.card.modules.get(module)
                if served is None or served.sha256 != spec.sha256:
                    raise OracleError(f"{name}: the bundle was not exported from {zoo / name}; export it again")
            cards[name] = card
            networks[name] = networks_of(card, load_modules(zoo / name, card.modules))
        return cls(cards, networks)

    def prepare(self, contents: Sequence[Content], progress: Callable[[], None] = lambda: None) -> None:
        """Compute the results of contents ahead; `progress` is called after each."""
        for content in contents:
            for request in content.same:
                self.expected(request)
            progress()

    def expected(self, request: Native) -> Expected:
        """The result of a native request with a seed, computed where it is not known yet.

        Raises:
            OptionError, UnsupportedError, KeyError: no server should have answered it.
        """
        key = _key(request)
        if key not in self._known:
            # Options that float32 cannot hold are among what is asked.
            with _one_thread(), np.errstate(over="ignore"):
                known = self._sampled(request) if isinstance(request, pb.SampleRequest) else self._scored(request)
            self._known[key] = known
        return self._known[key]

    def _sampled(self, request: pb.SampleRequest) -> Expected:
        card = self.cards[request.model]
        program = compile_sample(card, options_of(request))
        count = request.count if request.HasField("count") else max(1, len(request.labels))
        labels = list(request.labels) * (count if len(request.labels) == 1 else 1) or None
        networks = self._networks[card.name]
        result = run(program, card, networks, seed=request.seed, count=count, labels=labels, keep_trace=True)
        previews = torch.stack([preview[0] for preview in result.previews if preview is not None])
        return Expected(program.nfe, result.state.numpy(), previews.numpy(), *_tolerances(program))

    def _scored(self, request: pb.ScoreRequest) -> Expected:
        card = self.cards[request.model]
        images = torch.tensor(decode(request.images, card))
        energy = card.energy
        if energy is None:
            raise OracleError(f"{card.name} has no energy")
        names: Sequence[str | None] = list(request.scales) or [None]
        scales = energy.scales if names == ["all"] else [find_scale(card, name) for name in names]
        energies = {}
        for scale in scales:
            program = compile_score(card, scale)
            networks = self._networks[card.name]
            result = run(program, card, networks, seed=request.seed, count=len(images), images=images)
            if result.energy is None:
                raise OracleError(f"{card.name}: the program of scale {scale.name} gives no energy")
            energies[scale.name] = result.energy.numpy().astype(np.float64) * energy.sign * energy.scale
        return Expected(len(energies), energies=energies)


def _key(request: Native) -> bytes:
    """What a request asks for, whatever the form of its answer."""
    plain: Any = type(request).FromString(request.SerializeToString())
    for name in {"encoding", "priority", "version", "false_alarm_rate"} & set(plain.DESCRIPTOR.fields_by_name):
        plain.ClearField(name)
    return bytes(plain.DESCRIPTOR.name.encode() + plain.SerializeToString(deterministic=True))


def _tolerances(program: Program) -> tuple[float, float]:
    """Of the images and of the previews of a program.

    A prediction from pure noise divides the network's output by `sqrt(abar)`, which is 1/157 at the start of a
    linear schedule of 1000 steps, and guidance by w takes it 1 + 2 w times: a single step shows its rounding.
    """
    image = preview = 0.0
    for line in program.lines:
        for rule in (update.rule for update in line.updates):
            if isinstance(rule, EnsembleUpdate):
                gain = abs(rule.p_output) * (1.0 + 2.0 * rule.guidance)
                preview = max(preview, gain)
                image = max(image, gain * abs(rule.prediction))
    return max(TOLERANCE, NETWORK_ERROR * image), max(TOLERANCE, NETWORK_ERROR * preview)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run torch on one thread: on small networks more of them only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# -- comparison -------------------------------------------------------------------------------------


def decode(images: pb.Images, card: ModelCard) -> Floats:
    """The images of a message, `(count, channels, height, width)`.

    Raises:
        ValueError: it does not hold images of the model's shape.
    """
    spec = card.image
    if images.encoding == pb.PNG:
        values = np.stack([from_pixels(decode_png(file), spec.low, spec.high) for file in images.png])
    else:
        values = np.frombuffer(images.raw, "<f4").reshape(tuple(images.shape))
    if values.shape[1:] != spec.shape:
        raise ValueError(f"images of shape {values.shape[1:]}, the model's have {spec.shape}")
    return values


def differs(got: NDArray[Any], wanted: NDArray[Any], tolerance: float = TOLERANCE) -> str:
    """What is wrong with an array, in words; empty where it is the one wanted."""
    if got.shape != wanted.shape:
        return f"shape {got.shape}, wanted {wanted.shape}"
    if got.size == 0:
        return ""
    bound = tolerance * max(1.0, float(np.abs(wanted).max()))
    error = float(np.abs(got.astype(np.float64) - wanted).max())
    return "" if error <= bound else f"off by {error:.3g}, at most {bound:.3g} is allowed"  # NaN is off too


def images_differ(got: pb.Images, wanted: Floats, card: ModelCard, tolerance: float = TOLERANCE) -> str:
    """As `differs`, for images of a message; PNG clips and rounds to 8 bits."""
    try:
        values = decode(got, card)
    except (ValueError, OSError) as error:
        return f"unreadable: {error}"
    if got.encoding != pb.PNG:
        return differs(values, wanted, tolerance)
    spec = card.image
    half_a_pixel = (spec.high - spec.low) / 255.0 / 2.0
    return differs(values, np.clip(wanted, spec.low, spec.high), tolerance + half_a_pixel)
