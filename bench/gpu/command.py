"""`python -m bench gpu`: tests, kernels, whole requests and load on a GPU, in one command and a bounded time."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any

import msgspec
from rich.console import Console

from ..end_to_end.report import number
from ..environment import Environment, describe_environment
from .parts import Part
from .registry import all_parts
from .report import goals_of, markdown, succeeded
from .schedule import Launch, Outcome, launch_process, run_parts

BUDGET = 470.0
"""Seconds: 8 minutes, less what it takes to start and to write."""

LEAST = 60.0
NEEDED = (
    *("torch", "triton", "onnxruntime", "safetensors", "sortedcontainers", "pytest", "hypothesis"),
    *("grpc", "grpc_health", "grpc_reflection", "grpc_status"),
)
COMPILERS = ("cc", "gcc", "clang")
"""Triton and torch.compile build what launches their kernels with one, or with the one that CC names."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench gpu`."""
    parser.add_argument("--device", default="cuda:0", help="default %(default)s")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all of it, default %(default)g")
    names = [part.name for part in all_parts()]
    parser.add_argument("--parts", default=",".join(names), help="by commas, default %(default)s")
    parser.add_argument("--output", type=Path, default=Path("bench/results/gpu"), help="default %(default)s")


def main(options: argparse.Namespace, console: Console) -> int:
    """Run the parts: 0 all goals met, 1 a part failed or a goal is not met, 2 nothing could be run."""
    parts = {part.name: part for part in all_parts()}
    wanted = options.parts.split(",")
    for name in wanted:
        if name not in parts:
            raise ValueError(f"--parts: must be among {', '.join(parts)}, got {name!r}")
    if not options.budget >= LEAST:
        raise ValueError(f"--budget: must be at least {LEAST:g} s, got {options.budget:g}")
    lacking = missing(options.device)
    if lacking is not None:
        console.print(f"python -m bench gpu: {lacking}")
        return 2
    if find_spec("diffusers") is None:
        console.print("diffusers is not installed: models made of its blocks are left out, the U-Net among them")
    return run([parts[name] for name in wanted], options.device, options.budget, options.output, console)


def missing(device: str) -> str | None:
    """What this machine lacks, in one line; None where there is a GPU and what it takes to use it."""
    packages = [name for name in NEEDED if find_spec(name) is None]
    if packages:
        return f"needs packages that are not installed: {', '.join(packages)}"
    if not os.environ.get("CC") and not any(map(which, COMPILERS)):
        return f"needs a C compiler, as CC or on the path: {', '.join(COMPILERS)}"
    import torch

    if not torch.cuda.is_available():
        return "needs an NVIDIA GPU: torch finds no CUDA device here"
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"--device: {error}") from error
    if place.type != "cuda" or (place.index or 0) >= torch.cuda.device_count():
        return f"--device: must be cuda:0 to cuda:{torch.cuda.device_count() - 1}, got {device}"
    return None


def run(
    parts: Sequence[Part],
    device: str,
    budget: float,
    output: Path,
    console: Console,
    launch: Launch = launch_process,
) -> int:
    """Run the parts and write `gpu.json` and `gpu.md`; returns the exit code."""
    output.mkdir(parents=True, exist_ok=True)
    environment = describe_environment()
    outcomes = run_parts(parts, device, budget, output, launch, report=lambda text: console.print(text))
    (output / "gpu.md").write_text(markdown(environment, outcomes, budget))
    numbers = _numbers(environment, outcomes, budget)
    (output / "gpu.json").write_bytes(msgspec.json.format(msgspec.json.encode(numbers), indent=1) + b"\n")
    for outcome in outcomes:
        if outcome.error is not None:
            console.print(f"{outcome.part.title} failed: {outcome.error}", style="red")
    for goal in goals_of(outcomes):
        style = {True: "green", False: "bold red", None: "yellow"}[goal.met]
        console.print(f"{goal.name}: {number(goal.value)} ({goal.target}): {goal.verdict}", style=style)
    console.print(f"wrote gpu.json and gpu.md to {output}")
    return 0 if succeeded(outcomes) else 1


def _numbers(environment: Environment, outcomes: Sequence[Outcome], budget: float) -> dict[str, Any]:
    return {
        "environment": environment,
        "budget_seconds": budget,
        "goals": [asdict(goal) | {"met": goal.met} for goal in goals_of(outcomes)],
        "parts": {
            outcome.part.name: {
                "seconds": outcome.seconds,
                "given": outcome.given,
                "error": outcome.error,
                "numbers": None if outcome.findings is None else outcome.findings.numbers,
            }
            for outcome in outcomes
        },
    }
