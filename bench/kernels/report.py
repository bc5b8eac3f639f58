"""A measurement of the kernels as Markdown."""

from __future__ import annotations

from .result import LARGE, Goal, KernelsResult, KernelTime

NO_KERNEL = (
    "**No kernel was measured: there was no GPU.** Ours are the kernels' twins in plain torch, which the server does "
    "not run on the CPU either (there it is NumPy, `kernels/cpu.py`); the ratios tell nothing about the kernels."
)


def markdown(result: KernelsResult) -> str:
    """The report: where, the goals, then each case."""
    versions = ", ".join(f"{name} {number}" for name, number in result.environment.packages.items())
    lines = ["# The fused kernels", "", f"{result.device}. {result.environment.line()}. {versions}.", ""]
    if result.fused:
        lines += _goals(result)
    else:
        lines += [NO_KERNEL]
    if result.left_out:
        lines += ["", f"{result.left_out} cases are left out, as no time was left for them."]
    if result.not_compiled:
        lines += ["", f"{result.not_compiled} of the others had no time left for torch.compile."]
    lines += ["", *_table(result)]
    failed = [(time, name, error) for time in result.times for name, error in time.errors.items()]
    if failed:
        lines += ["", "Failed:", ""]
        lines += [f"- {_where(time)}, {name}: {error}" for time, name, error in failed]
    return "\n".join(lines) + "\n"


def _goals(result: KernelsResult) -> list[str]:
    copy = (result.copy_bandwidth or 0.0) / 1e9
    lines = [
        f"A copy of 1 GiB on the device, in the same run, reads and writes {copy:.0f} GB/s.",
        "Bytes are those of the formula in `bench/kernels/cases.py`: each input read once, each output written once.",
        "All contenders run in CUDA graphs, over sets of inputs that do not fit into the caches together.",
        "An equal copy is one of as many bytes as the launch, which is short of that bandwidth where it is small.",
        "Where a contender moves less than the goal's multiple of the least bytes, no kernel can be that much faster: "
        "a gather without start is one fused pass for torch.compile, and twice the bytes, not three times, for eager. "
        "Both ratios are therefore asked of the updates alone.",
        "",
        "| goal | bound | cases that meet it | worst | median |",
        "| --- | --- | --- | --- | --- |",
    ]
    return lines + [_goal(goal) for goal in result.goals()]


def _goal(goal: Goal) -> str:
    return f"| {goal.name} | {goal.bound:g} | {goal.met} of {goal.cases} | {goal.worst:.2f} | {goal.median:.2f} |"


def _table(result: KernelsResult) -> list[str]:
    head = "| kernel | rows | image | network | MB | us | GB/s | of copy | of equal copy | x eager | x compiled |"
    lines = [head, "| " + " | ".join(["---"] * 11) + " |"]
    for time in result.times:
        of_copy = result.of_copy(time)
        small = "" if time.bytes >= LARGE else " (small)"
        cells = [
            *(f"{time.kernel}, {time.variant}", str(time.rows), "x".join(map(str, time.shape)), time.type),
            f"{time.bytes / 1e6:.2f}",
            _number(time.seconds.get("ours"), 1e6, 1),
            _number(time.bandwidth, 1e-9, 0),
            _number(of_copy, 1.0, 2) + (small if of_copy is not None else ""),
            _number(time.over("copy"), 1.0, 2),
            _number(time.over("eager"), 1.0, 2),
            _number(time.over("compiled"), 1.0, 2),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _where(time: KernelTime) -> str:
    return f"{time.kernel}, {time.variant}, {time.rows} x {'x'.join(map(str, time.shape))}, {time.type}"


def _number(value: float | None, scale: float, digits: int) -> str:
    return "-" if value is None else f"{value * scale:.{digits}f}"
