"""`python -m bench end-to-end`: whole samples, scores and chains in this process, beside bare and plain loops."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from .cases import LANGEVIN_STEPS, NFE, ROWS, WORKLOADS, EndToEndError

if TYPE_CHECKING:
    from .measure import Options
    from .result import EndToEnd


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench end-to-end`."""
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N, default %(default)s")
    parser.add_argument("--engines", help="by commas; default onnxruntime,torch on the CPU and torch on a GPU")
    parser.add_argument(
        "--models",
        default=",".join(workload.model for workload in WORKLOADS),
        help="by commas, default %(default)s",
    )
    parser.add_argument("--repository", type=Path, help="ready bundles; what is not there is made for the measurement")
    parser.add_argument("--rows", default=",".join(map(str, ROWS)), help="default %(default)s")
    parser.add_argument("--steps", default=",".join(map(str, NFE)), help="network evaluations, default %(default)s")
    parser.add_argument(
        "--langevin", type=int, default=LANGEVIN_STEPS, help="steps of a chain, a multiple of 3, default %(default)s"
    )
    parser.add_argument("--threads", type=int, help="of a network on the CPU, default: those of a server")
    parser.add_argument(
        "--precision", default="bfloat16", help="on a GPU, of models that are made, default %(default)s"
    )
    parser.add_argument("--no-compile", action="store_true", help="do without torch.compile")
    parser.add_argument("--budget", type=float, default=900.0, help="seconds, exports aside, default %(default)g")
    parser.add_argument("--output", type=Path, default=Path("out/end-to-end"), help="default %(default)s")


def main(options: argparse.Namespace, console: Console) -> int:
    """Measure, show the tables and write everything down."""
    from .measure import measure_end_to_end  # torch takes seconds to import, and other commands do without

    settings = _settings(options)
    options.output.mkdir(parents=True, exist_ok=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=None)
        result = measure_end_to_end(
            options.device,
            options.budget,
            settings,
            report=lambda text: progress.update(task, description=text),
        )
    write(result, options.output)
    from .report import show

    show(result, console)
    for name, why in result.left_out.items():
        console.print(f"left out: {name}: {why}")
    console.print(f"wrote end_to_end.json, end_to_end.md and end_to_end.png to {options.output}")
    return 0 if any(cell.timings for cell in result.cells) else 1


def write(result: EndToEnd, output: Path, *, picture: bool = True) -> None:
    """The numbers, the report and, which takes matplotlib, the picture."""
    from .report import markdown

    output.mkdir(parents=True, exist_ok=True)
    numbers = asdict(result) | {"goals": [asdict(goal) | {"met": goal.met} for goal in result.goals()]}
    (output / "end_to_end.json").write_bytes(msgspec.json.format(msgspec.json.encode(numbers), indent=1) + b"\n")
    (output / "end_to_end.md").write_text(markdown(result))
    if picture:
        from .pictures import draw  # matplotlib takes a second to import

        draw(output / "end_to_end.png", result)


def _settings(options: argparse.Namespace) -> Options:
    """Check the options.

    Raises:
        EndToEndError: one is wrong; names it.
    """
    from .loaded import DTYPES
    from .measure import Options

    known = {workload.model: workload for workload in WORKLOADS}
    models = options.models.split(",")
    for model in models:
        if model not in known:
            raise EndToEndError(f"--models: must be among {', '.join(known)}, got {model!r}")
    if options.budget <= 0:
        raise EndToEndError(f"--budget: must be positive, got {options.budget:g}")
    if options.langevin < 1 or options.langevin % 3:
        raise EndToEndError(f"--langevin: must be a positive multiple of 3, got {options.langevin}")
    if options.precision not in DTYPES:
        raise EndToEndError(f"--precision: must be one of {', '.join(DTYPES)}, got {options.precision!r}")
    cpu = options.device == "cpu"
    engines = options.engines.split(",") if options.engines else ["onnxruntime", "torch"] if cpu else ["torch"]
    settings = Options(
        engines=tuple(engines),
        workloads=tuple(known[model] for model in models),
        rows=_numbers("--rows", options.rows, 64),
        nfe=_numbers("--steps", options.steps, 1000),
        langevin=options.langevin,
        repository=options.repository,
        precision=options.precision,
        compiled=not options.no_compile,
    )
    return settings if options.threads is None else replace(settings, threads=options.threads)


def _numbers(name: str, text: str, largest: int) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(1 <= value <= largest for value in found):
        raise EndToEndError(f"{name}: must be whole numbers from 1 to {largest} by commas, got {text!r}")
    return found
