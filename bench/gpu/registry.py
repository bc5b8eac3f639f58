"""The parts of the command, and what each of them measures."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from ..end_to_end.cases import WORKLOADS
from ..end_to_end.result import FOUR_STEPS, UNET, EndToEnd, Goal
from ..kernels.result import OF_COPY, OVER_COMPILED, OVER_EAGER, KernelsResult
from .gpu_tests import FAILED, run_tests
from .parts import Findings, Part, Setting

LANGEVIN_STEPS = 48
"""Of a chain: enough for the engine to give its steps to the device several at a time."""

MARGIN = 15.0
"""Seconds of a part that its measurement is not told of: to load, to compile what it began, and to write."""

KERNELS = (
    Goal("kernels: share of the copy bandwidth from 16 MB, worst case", None, OF_COPY, at_most=False),
    Goal("kernels: updates, times as fast as eager torch, worst case", None, OVER_EAGER, at_most=False),
    Goal("kernels: updates, times as fast as torch.compile, worst case", None, OVER_COMPILED, at_most=False),
)
BUSY = Goal("GPU busy under load, 35.7M U-Net", None, 0.95, at_most=False)


def all_parts() -> tuple[Part, ...]:
    """In their order. What a part does not use of its time is for those after it."""
    return (
        Part("tests", "GPU tests", 2.5, (FAILED,), run_tests),
        Part("end-to-end", "End to end", 4.0, (FOUR_STEPS,), run_end_to_end),
        Part("busy", "GPU busy under load", 1.0, (BUSY,), run_busy),
        Part("kernels", "Kernels", 2.5, KERNELS, run_kernels),
    )


def run_end_to_end(setting: Setting) -> Findings:
    """Whole requests, see `bench.end_to_end`."""
    from ..end_to_end.command import write
    from ..end_to_end.measure import Options, measure_end_to_end
    from ..end_to_end.report import markdown

    presets = tuple(workload for workload in WORKLOADS if workload.preset)
    options = Options(engines=("torch",), workloads=presets, langevin=LANGEVIN_STEPS)

    def findings(result: EndToEnd) -> Findings:
        return Findings(_plain(asdict(result)), tuple(result.goals()), markdown(result))

    result = measure_end_to_end(
        *(setting.device, setting.seconds - MARGIN, options),
        report=_say,
        keep=lambda result: setting.keep(findings(result)),
    )
    if not any(cell.timings for cell in result.cells):
        raise RuntimeError(f"nothing could be measured: {result.left_out}")
    write(result, setting.output, picture=find_spec("matplotlib") is not None)
    return findings(result)


def run_kernels(setting: Setting) -> Findings:
    """The fused kernels, see `bench.kernels`."""
    import torch

    from ..kernels.measure import measure_kernels
    from ..kernels.report import markdown

    seconds = setting.seconds - MARGIN
    result = measure_kernels(torch.device(setting.device), True, seconds=seconds, report=_say)
    return Findings(_plain(asdict(result)), kernel_goals(result), markdown(result))


def kernel_goals(result: KernelsResult) -> tuple[Goal, ...]:
    """`KERNELS` with what was found."""
    # A kernel that failed has no number, and none of the others stands for it.
    found = {} if result.failed else {goal.bound: goal for goal in result.goals()}
    missing = {goal.bound: result.left_out for goal in KERNELS}
    missing[OVER_COMPILED] += result.not_compiled
    values: dict[float, float | None] = dict.fromkeys(missing)
    for bound, goal in found.items():
        # Of some cases alone it is known that the goal is missed, but not that it is met.
        values[bound] = goal.worst if goal.met < goal.cases or not missing[bound] else None
    return tuple(Goal(goal.name, values[goal.bound], goal.bound, at_most=False) for goal in KERNELS)


def run_busy(setting: Setting) -> Findings:
    """The engine under load, see `busy`."""
    import torch

    from ..end_to_end.bundles import checkpoint_of, untraced
    from .busy import measure_busy

    workload = next(workload for workload in WORKLOADS if workload.model == UNET)
    with TemporaryDirectory(prefix="fewstep-bench-") as scratch:
        bundle = untraced(checkpoint_of(workload, Path(scratch)), "bfloat16")
        found = measure_busy(bundle, torch.device(setting.device), max(1.0, setting.seconds - MARGIN))
    seen = "not seen by the profiler" if found.kernels is None else f"{100 * found.kernels:.1f} % by the profiler"
    text = (
        f"{found.model}, bfloat16, requests of 1, 2, 4 and 8 DDIM steps for {found.seconds:.1f} s: "
        f"{found.batches} batches of {found.rows:.1f} rows, {found.rate:.0f} samples/s. "
        f"The GPU worked at most {100 * found.share:.1f} % of the time, by events around the batches, "
        f"{seen} in a while of its own."
    )
    measured = found.share if found.kernels is None else found.kernels
    return Findings(asdict(found), (Goal(BUSY.name, measured, BUSY.bound, at_most=False),), text)


def _say(text: str) -> None:
    print(text, flush=True)  # the log of a part that fails ends with what it was at


def _plain(numbers: dict[str, Any]) -> Any:
    """As JSON has it: msgspec writes NaN and infinities as null."""
    return json.loads(msgspec.json.encode(numbers))
