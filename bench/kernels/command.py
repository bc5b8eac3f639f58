"""`python -m bench kernels`: the fused kernels beside copy bandwidth, eager torch and torch.compile."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from .result import KernelsResult


_SHORT = {"float32": "f32", "bfloat16": "bf16", "bfloat16, channels last": "bf16 last"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench kernels`."""
    parser.add_argument("--device", default="auto", help="cuda:N, cpu, or auto: the first GPU, else the CPU (default)")
    parser.add_argument("--output", type=Path, default=Path("out/kernels"), help="default %(default)s")
    parser.add_argument("--quick", action="store_true", help="two sizes and two types in place of five and three")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile")


def main(options: argparse.Namespace, console: Console) -> int:
    """Measure, print the table and write everything down; 1 where a kernel failed."""
    import torch  # `python -m bench --help` needs none

    from .measure import measure_kernels
    from .report import markdown

    name = options.device
    if name == "auto":
        name = "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device: expected cpu, auto or cuda:N, got {name}") from error
    with console.status("measuring") as status:
        result = measure_kernels(device, options.quick, compiles=not options.no_compile, report=status.update)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "kernels.json").write_bytes(encode(result))
    (options.output / "kernels.md").write_text(markdown(result))
    _show(result, console)
    console.print(f"wrote kernels.json and kernels.md to {options.output}")
    return 1 if result.failed else 0


def encode(result: KernelsResult) -> bytes:
    """A result as JSON, with its goals beside it."""
    whole = asdict(result) | {"goals": [asdict(goal) for goal in result.goals()]}
    return msgspec.json.format(msgspec.json.encode(whole), indent=1) + b"\n"


def _show(result: KernelsResult, console: Console) -> None:
    if not result.fused:
        console.print("no kernel was measured: there is no GPU; ours are the twins in torch")
    table = Table(box=SIMPLE_HEAD, pad_edge=False, caption="eager, compiled: their time over ours")
    table.add_column("kernel", no_wrap=True)
    table.add_column("rows", no_wrap=True)
    for column in ("us", "of copy", "eager", "compiled"):
        table.add_column(column, justify="right", no_wrap=True)
    for time in result.times:
        ours, of_copy = time.seconds.get("ours"), result.of_copy(time)
        numbers = (of_copy, time.over("eager"), time.over("compiled"))
        table.add_row(
            f"{time.kernel}, {time.variant}",
            f"{time.rows} x {time.shape[1]}², {_SHORT[time.type]}",
            "failed" if ours is None else f"{1e6 * ours:.1f}",
            *("-" if number is None else f"{number:.2f}" for number in numbers),
        )
    console.print(table)
    for goal in result.goals():
        console.print(f"{goal.name}: {goal.met} of {goal.cases} reach {goal.bound:g}; worst {goal.worst:.2f}")
