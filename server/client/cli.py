"""`python -m server.client [--address HOST:PORT] sample|score|models|status`.

Exit codes: 0 done, 1 the server refused or could not be reached, 2 wrong usage or bad input files.
With --json standard output carries one JSON document and nothing else; everything for people goes to standard error.
Credentials come from options or, where those are not given, from the environment: FEWSTEP_TLS_CA, FEWSTEP_CERTIFICATE,
FEWSTEP_KEY and FEWSTEP_TOKEN_FILE name files. A token itself is never an option: every user can read a command line.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import DEFAULT_ADDRESS, FewstepClient, FewstepError, Preview, Refined, RefineOptions, SampleOptions, Samples
from .channel import read_token
from .output import Output
from .types import ModelDescription

OK, FAILED, USAGE = 0, 1, 2
PASSED_ON = (
    *("count", "steps", "sampler", "m", "form", "eta", "guidance", "temperature"),
    *("step_size", "spacing", "labels", "seed", "encoding", "priority", "version"),
)
"""Command-line options that go into the request under their own names."""
REFINE_PASSED_ON = ("method", "steps", "step_size", "temperature", "seed", "priority", "version")
CREDENTIAL_FILES = {
    "tls_ca": "PEM CAs of the server; turns TLS on",
    "certificate": "PEM certificate of this client",
    "key": "PEM private key of that certificate",
    "token_file": "holds the bearer token",
}
"""Options that are taken from the environment where they are not given."""


class UsageError(ValueError):
    """Arguments or input files that cannot be used."""


def sample(client: FewstepClient, arguments: argparse.Namespace, output: Output) -> None:
    """Draw samples and write them as a PNG grid or as an array."""
    path: Path = arguments.output
    _check_output(path)
    described = None
    if _is_picture(path):
        described = client.describe(arguments.model, version=arguments.version or 0)
        _check_grid(arguments, arguments.count, described.image_shape)
    given = {name: getattr(arguments, name) for name in PASSED_ON}
    options: SampleOptions = {**given, "parameters": dict(arguments.parameter)}  # type: ignore[typeddict-item]
    draw = _streamed if arguments.stream else _drawn
    samples = draw(client, arguments.model, options, output)
    _write(client, samples, arguments, described)
    left_out = ("images", "png")
    facts = {name: getattr(samples, name) for name in Samples.__dataclass_fields__ if name not in left_out}
    output.document({"count": len(samples.images), "shape": samples.images.shape, **facts, "output": str(path)})
    timing = samples.timing
    times = (timing.queue_seconds, timing.compute_seconds, timing.total_seconds)
    columns = ("samples", "sampler", "steps", "NFE", "queue ms", "compute ms", "total ms", "batch rows")
    row = (len(samples.images), samples.sampler, samples.steps, samples.nfe, *(1e3 * time for time in times))
    title = f"{samples.model} version {samples.version}, seed {samples.seed}"
    output.table(title, columns, [(*row, timing.mean_batch_rows)])
    output.people.print(f"wrote {path}", soft_wrap=True)


def _write(
    client: FewstepClient,
    result: Samples | Refined,
    arguments: argparse.Namespace,
    described: ModelDescription | None,
) -> None:
    """Write images as a grid or as an array, as the file's name says. described: the model before the request."""
    path: Path = arguments.output
    if _is_picture(path):
        from .images import grid, to_pixels, write_png

        if described is None or described.summary.version != result.version:  # another has taken its place since
            described = client.describe(result.model, version=result.version)
        pixels = to_pixels(result.images, described.low, described.high)
        write_png(path, grid(pixels, arguments.columns, arguments.scale))
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, result.images)


def _check_output(path: Path) -> None:
    if path.suffix.lower() not in (".png", ".npy"):
        raise UsageError(f"--output: must end in .png or .npy, got {path}")


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() == ".png"


def _check_grid(arguments: argparse.Namespace, count: int, shape: tuple[int, int, int]) -> None:
    """Find out that a grid cannot be made before there are images that would be lost with it.

    Raises:
        ValueError: as `server.client.images.layout`.
    """
    from .images import layout

    if count >= 1:  # less is for the server to refuse, which knows the bounds of a count
        layout(count, shape, arguments.columns, arguments.scale)


def refine(client: FewstepClient, arguments: argparse.Namespace, output: Output) -> None:
    """Take image files some steps towards a model's data; prints their energies before and after."""
    _check_output(arguments.output)
    names, images, described = _read(client, arguments)
    if _is_picture(arguments.output):
        _check_grid(arguments, len(images), described.image_shape)
    given = {name: getattr(arguments, name) for name in REFINE_PASSED_ON}
    options: RefineOptions = {**given, "parameters": dict(arguments.parameter)}  # type: ignore[typeddict-item]
    refined = client.refine(arguments.model, images, **options)
    _write(client, refined, arguments, described)
    facts = {name: getattr(refined, name) for name in Refined.__dataclass_fields__ if name not in ("images", "png")}
    output.document({"images": names, "shape": refined.images.shape, **facts, "output": str(arguments.output)})
    title = f"{refined.model} version {refined.version}, {refined.steps} steps of {refined.method}, seed {refined.seed}"
    if len(refined.energy_before):
        cells = zip(names, refined.energy_before.tolist(), refined.energy_after.tolist(), strict=True)
        output.table(title, ("image", "energy before", "energy after"), cells)
    else:
        output.table(title, ("image",), [(name,) for name in names])
    output.people.print(f"wrote {arguments.output}", soft_wrap=True)


def _read(
    client: FewstepClient, arguments: argparse.Namespace
) -> tuple[list[str], NDArray[np.float32], ModelDescription]:
    """The images of the files that the command names, each with a name of its own, and the model they are for."""
    from .images import read_images

    described = client.describe(arguments.model, version=arguments.version)
    names: list[str] = []
    arrays: list[NDArray[np.float32]] = []
    for path in arguments.files:
        images = read_images(path, described.image_shape, described.low, described.high)
        arrays.append(images)
        names += [f"{path}[{index}]" for index in range(len(images))] if len(images) > 1 else [str(path)]
    return names, np.concatenate(arrays), described


def _drawn(client: FewstepClient, model: str, options: SampleOptions, output: Output) -> Samples:
    return client.sample(model, **options)


def _streamed(client: FewstepClient, model: str, options: SampleOptions, output: Output) -> Samples:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=output.people) as progress:
        task = progress.add_task(model, total=None)
        for event in client.sample_stream(model, **options):  # the last event is the result
            if isinstance(event, Preview):
                progress.update(task, completed=event.step, total=event.steps)
    return cast("Samples", event)


def score(client: FewstepClient, arguments: argparse.Namespace, output: Output) -> None:
    """Score image files and print energy, percentile, p-value and decision of each."""
    names, images, _ = _read(client, arguments)
    scores = client.score(
        arguments.model,
        images,
        scales=arguments.scales,
        false_alarm_rate=arguments.false_alarm_rate,
        seed=arguments.seed,
        version=arguments.version,
    )
    output.document({"images": names, **dataclasses.asdict(scores)})
    for scale in scores.scales.values():
        calibrated = scale.threshold is not None
        columns = ("image", "energy", *(("percentile", "p-value", "verdict") if calibrated else ()))
        cells: list[Iterable[object]] = [names, scale.energy.tolist()]
        if calibrated:
            verdicts = ["out of distribution" if out else "in distribution" for out in scale.out_of_distribution]
            cells += [scale.percentile.tolist(), scale.p_value.tolist(), verdicts]
        title = f"{scores.model} version {scores.version}, scale {scale.scale}"
        if calibrated:
            title += f", threshold {scale.threshold:.4g} at false-alarm rate {scores.false_alarm_rate:g}"
        output.table(title, columns, zip(*cells, strict=True))


def models(client: FewstepClient, arguments: argparse.Namespace, output: Output) -> None:
    """List the models, or describe one."""
    if arguments.model is None:
        listed = client.models()
        output.document([dataclasses.asdict(model) for model in listed])
        rows = [(m.name, m.version, ", ".join(m.samplers), "yes" if m.scores else "no", m.description) for m in listed]
        output.table("models", ("name", "version", "samplers", "scores", "description"), rows)
        return
    described = dataclasses.asdict(client.describe(arguments.model, version=arguments.version))
    described["manifest"] = msgspec.json.decode(described.pop("manifest_json") or "null")
    output.document(described)
    facts = {**described.pop("summary"), **described}
    facts.pop("manifest")  # pages of it: --json shows them
    output.table(facts["name"], ("field", "value"), [(name, _brief(value)) for name, value in facts.items()])


def _brief(value: Any) -> str:
    if not isinstance(value, tuple):
        return str(value)
    if len(value) > 12 and value == tuple(range(value[0], value[-1] + 1)):
        return f"{value[0]} to {value[-1]}"
    return ", ".join(map(str, value)) or "none"


def status(client: FewstepClient, arguments: argparse.Namespace, output: Output) -> None:
    """Show how the server is doing."""
    facts = dataclasses.asdict(client.status())
    output.document(facts)
    rows = [
        (name.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value))
        for name, value in facts.items()
    ]
    output.table(client.address, ("server", "value"), rows)


COMMANDS: dict[str, Callable[[FewstepClient, argparse.Namespace, Output], None]] = {
    "sample": sample,
    "refine": refine,
    "score": score,
    "models": models,
    "status": status,
}


def _numbers(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    def parse(text: str) -> list[Any]:
        return [kind(part) for part in text.split(",")]

    parse.__name__ = f"comma-separated {kind.__name__}"  # argparse puts it into its error message
    return parse


def _parameter(text: str) -> tuple[str, list[float]]:
    name, equals, values = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"must be NAME=NUMBER or NAME=NUMBER,NUMBER,..., got {text!r}")
    try:
        return name, [float(value) for value in values.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{name}: {error}") from None


def _add_image_options(command: argparse.ArgumentParser, default: Path) -> None:
    command.add_argument("--output", type=Path, default=default, help=".png for a grid, .npy for the array")
    command.add_argument("--columns", type=int, help="of the grid")
    command.add_argument("--scale", type=int, help="of the grid: pixels a pixel; 89 million pixels in all at most")
    command.add_argument(
        *("--parameter", "-p"), type=_parameter, action="append", default=[], metavar="NAME=NUMBER[,NUMBER...]",
        help="an option that one method alone knows; may be given several times",
    )  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)  # accepted before and after the command
    common.add_argument("--address", metavar="HOST:PORT", default=argparse.SUPPRESS, help=f"default {DEFAULT_ADDRESS}")
    common.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=float,
        default=argparse.SUPPRESS,
        help="for each call, default 60; inf waits for ever",
    )
    common.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON on standard output")
    for name, text in CREDENTIAL_FILES.items():
        option = f"--{name.replace('_', '-')}"
        common.add_argument(
            option, metavar="FILE", default=argparse.SUPPRESS, help=f"{text}, default ${_variable(name)}"
        )
    common.add_argument(
        "--tls", action="store_true", default=argparse.SUPPRESS, help="use TLS, and trust the CAs that gRPC ships"
    )
    common.add_argument(
        "--insecure", action="store_true", default=argparse.SUPPRESS, help="send a token to another machine without TLS"
    )
    parser = argparse.ArgumentParser(
        prog="python -m server.client",
        description="Ask a fewstep server.",
        parents=[common],
        allow_abbrev=False,  # --token must not stand for --token-file: the token would be printed as a file's name
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str) -> argparse.ArgumentParser:
        summary = COMMANDS[name].__doc__
        return commands.add_parser(name, help=summary, description=summary, parents=[common], allow_abbrev=False)

    command = add("sample")
    command.add_argument("model")
    command.add_argument("--count", type=int, default=16)
    command.add_argument("--steps", type=int)
    command.add_argument("--sampler")
    command.add_argument(
        "--m", type=_numbers(float), help="iDDIM's ensemble weight: one, or one a step, separated by commas"
    )
    command.add_argument("--form", help="iDDIM's form: iterate or accumulator")
    command.add_argument("--eta", type=float, help="amount of noise in [0, 1]")
    command.add_argument("--guidance", type=float, metavar="W", help="classifier-free guidance")
    command.add_argument("--temperature", type=float)
    command.add_argument("--step-size", type=float, help="of langevin")
    command.add_argument("--spacing", help="of the time grid: quadratic or linear")
    command.add_argument(
        "--labels", type=_numbers(int), help="one for all samples, or one a sample, separated by commas"
    )
    command.add_argument("--seed", type=int)
    command.add_argument("--encoding", choices=("raw", "png"), help="how the images travel")
    command.add_argument("--priority", type=int)
    command.add_argument("--version", type=int, help="the model's; default the newest")
    command.add_argument("--stream", action="store_true", help="show progress step by step")
    _add_image_options(command, Path("samples.png"))
    command = add("refine")
    command.add_argument("model")
    command.add_argument("files", nargs="+", type=Path, help="pictures, or .npy arrays of images")
    command.add_argument("--method", help="transition or langevin, where the model has it")
    command.add_argument("--steps", type=int)
    command.add_argument("--step-size", type=float, help="of langevin")
    command.add_argument("--temperature", type=float, help="of langevin")
    command.add_argument("--seed", type=int)
    command.add_argument("--priority", type=int)
    command.add_argument("--version", type=int, default=0)
    _add_image_options(command, Path("refined.png"))
    command = add("score")
    command.add_argument("model")
    command.add_argument("files", nargs="+", type=Path, help="pictures, or .npy arrays of images")
    command.add_argument("--scales", type=_numbers(str), default=(), help="names separated by commas, or all")
    command.add_argument("--false-alarm-rate", type=float)
    command.add_argument("--seed", type=int)
    command.add_argument("--version", type=int, default=0)
    command = add("models")
    command.add_argument("model", nargs="?", help="describe this one")
    command.add_argument("--version", type=int, default=0)
    add("status")
    return parser


def _variable(name: str) -> str:
    return f"FEWSTEP_{name.upper()}"


def _connect(options: argparse.Namespace) -> FewstepClient:
    return FewstepClient(
        options.address,
        timeout=options.timeout,
        tls=options.tls,
        tls_ca=options.tls_ca,
        certificate=options.certificate,
        key=options.key,
        token=None if options.token_file is None else read_token(options.token_file),
        insecure=options.insecure,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    files = {name: os.environ.get(_variable(name)) or None for name in CREDENTIAL_FILES}
    options = argparse.Namespace(address=DEFAULT_ADDRESS, timeout=60.0, json=False, tls=False, insecure=False, **files)
    _parser().parse_args(arguments, options)
    output = Output(options.json)
    try:
        with _connect(options) as client:
            COMMANDS[options.command](client, options, output)
    except FewstepError as error:
        output.error(error.code.name, error.message, error.request_id)
        return FAILED
    except (ValueError, OSError) as error:
        output.error("BAD_INPUT", str(error))
        return USAGE
    except KeyboardInterrupt:
        return 130
    return OK
