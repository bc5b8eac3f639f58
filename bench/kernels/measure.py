"""Measures every case: ours, eager torch and torch.compile, in one run on one device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from time import monotonic

import torch
from triton.errors import TritonError

from ..end_to_end.bandwidth import copy_bandwidth
from ..environment import describe_environment
from .cases import CPU_SIZES, Case, all_cases
from .contenders import Step, eager, operands, ours
from .result import KernelsResult, KernelTime
from .timing import seconds_a_call, sets_of_inputs


def measure_kernels(
    device: torch.device,
    quick: bool,
    *,
    seconds: float | None = None,
    compiles: bool = True,
    sizes: tuple[tuple[int, int], ...] | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> KernelsResult:
    """Measure the kernels on a GPU, or on the CPU the torch twins of them.

    quick: two sizes and two types in place of five and three, on the CPU one size in place of two.
    seconds: after which no further case is begun. compiles: whether torch.compile takes part, which takes seconds a
    case to compile, and therefore comes last, after all others at all cases. sizes: rows and side of the images,
    `(3, side, side)`, in place of the usual ones.
    report: is told each case as it begins.

    Raises:
        ValueError: the device is neither the CPU nor a GPU that is there.
    """
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"device: {device} is not there, expected cpu or cuda:N")
    fused = device.type == "cuda"
    began, environment = monotonic(), describe_environment()
    bandwidth = copy_bandwidth(device) if fused else None
    if sizes is None and not fused:
        sizes = CPU_SIZES[-1:] if quick else CPU_SIZES
    cases = all_cases(quick=quick, sizes=sizes)
    times: list[KernelTime] = []
    for case in cases:
        if seconds is not None and monotonic() - began > seconds:
            break
        report(case.name)
        times.append(_measure(case, device, {"ours": ours(case), "eager": eager(case)}))
    for index, case in enumerate(cases[: len(times)] if compiles else ()):
        if seconds is not None and monotonic() - began > seconds:
            break
        report(f"{case.name}: compiling")
        # Anew for each case, at its own shapes; after eight for one function torch would go on uncompiled.
        torch.compiler.reset()
        found = _measure(case, device, {"compiled": torch.compile(eager(case), dynamic=False)}, copies=False)
        times[index] = _both(times[index], found)
    return KernelsResult(
        environment=environment,
        device=torch.cuda.get_device_name(device) if fused else environment.cpu,
        fused=fused,
        copy_bandwidth=bandwidth,
        times=tuple(times),
        left_out=len(cases) - len(times),
        not_compiled=sum("compiled" not in time.seconds | time.errors for time in times) if compiles else 0,
    )


def _measure(case: Case, device: torch.device, steps: dict[str, Step], *, copies: bool = True) -> KernelTime:
    """copies: whether a plain copy takes part, on a GPU."""
    count = sets_of_inputs(device, case.bytes)
    sets = [operands(case, device, seed) for seed in range(count)]
    calls = {name: [_call(step, each) for each in sets] for name, step in steps.items()}
    if copies and device.type == "cuda":
        calls["copy"] = [_copy(case.bytes // 2, device) for _ in range(count)]
    times, errors = {}, {}
    for name, in_turn in calls.items():
        try:
            times[name] = seconds_a_call(in_turn, device, case.bytes)
        except (RuntimeError, TritonError) as error:  # the others are measured all the same
            errors[name] = f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]
    return KernelTime(
        kernel=case.kernel,
        variant=case.variant,
        rows=case.rows,
        shape=case.shape,
        type=case.type_name,
        bytes=case.bytes,
        seconds=times,
        errors=errors,
    )


def _both(time: KernelTime, other: KernelTime) -> KernelTime:
    """Of one case."""
    return replace(time, seconds=time.seconds | other.seconds, errors=time.errors | other.errors)


def _call(step: Step, operands: dict[str, torch.Tensor]) -> Callable[[], object]:
    return lambda: step(operands)


def _copy(size: int, device: torch.device) -> Callable[[], object]:
    """A plain copy that reads and writes `size` bytes each: what a launch of as many bytes takes at best."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)
