"""`python -m bench kernels` on the CPU, its result and its report."""

from __future__ import annotations

import argparse
import json

import pytest
import torch
from rich.console import Console
from triton.runtime.errors import OutOfResources

from bench.environment import describe_environment
from bench.kernels import command, contenders, measure, measure_kernels
from bench.kernels.cases import VARIANTS
from bench.kernels.report import markdown
from bench.kernels.result import LARGE, KernelsResult, KernelTime

CPU = torch.device("cpu")
TINY = ((2, 4),)


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr("bench.kernels.timing.CPU_SECONDS", 0.0)


def on_gpu(*times: KernelTime) -> KernelsResult:
    return KernelsResult(describe_environment(), "a GPU", True, 1e12, times, 0, 0)


def taking(seconds: dict[str, float], size: int = 2 * LARGE, kernel: str = "ensemble", **errors: str) -> KernelTime:
    return KernelTime(kernel, "plain", 64, (3, 256, 256), "float32", size, seconds, errors)


def test_on_the_cpu_the_twins_are_measured_and_it_says_so():
    """All cases, no bandwidth, no goal, and a report that no kernel was measured."""
    result = measure_kernels(CPU, True, compiles=False, sizes=TINY)
    assert len(result.times) == 2 * sum(map(len, VARIANTS.values()))
    assert not result.fused
    assert result.copy_bandwidth is None
    assert result.goals() == ()
    for time in result.times:
        assert time.errors == {}
        assert time.seconds.keys() == {"ours", "eager"}
        assert time.over("eager") > 0
        assert time.over("compiled") is None
        assert result.of_copy(time) is None
    assert "No kernel was measured" in markdown(result)


def test_no_case_is_begun_when_time_is_up():
    """Those that are left out are counted, and the report tells."""
    result = measure_kernels(CPU, True, seconds=-1.0, sizes=TINY)
    assert (len(result.times), result.left_out) == (0, 16)
    assert "16 cases are left out" in markdown(result)


def test_torch_compile_comes_after_all_others(monkeypatch):
    """It takes longest: where it does not come to its end, the others are known of every case, and the report tells."""
    seconds = iter([0.0, *[1.0] * 16, 1.0, 1.0, *[3.0] * 14])
    monkeypatch.setattr(measure, "monotonic", lambda: next(seconds))
    monkeypatch.setattr(measure.torch, "compile", lambda step, **_: step)
    result = measure_kernels(CPU, True, seconds=2.0, sizes=TINY)
    assert (len(result.times), result.left_out, result.not_compiled) == (16, 0, 14)
    assert ["compiled" in time.seconds for time in result.times] == [True] * 2 + [False] * 14
    assert all(time.over("eager") > 0 for time in result.times)
    assert "14 of the others had no time left for torch.compile" in markdown(result)


def test_a_contender_that_fails_is_named_and_the_others_are_measured(monkeypatch):
    """A compiler that is not there costs its own column alone."""

    def refuse(*_, **__):
        def step(_):
            raise OutOfResources(2**18, 2**17, "shared memory")

        return step

    monkeypatch.setattr(measure.torch, "compile", refuse)
    result = measure_kernels(CPU, True, sizes=TINY)
    assert all("OutOfResources: out of resource" in time.errors["compiled"] for time in result.times)
    assert all(time.seconds.keys() == {"ours", "eager"} for time in result.times)
    assert not result.failed
    assert "gather, start, 2 x 3x4x4, bfloat16, channels last, compiled: OutOfResources: out of resource" in markdown(
        result
    )


def test_compiled_torch_takes_part(monkeypatch):
    """torch.compile of what a user would write is one of the contenders, and compiled at the case's own shapes."""
    seen = []

    def compile_without_a_compiler(step, **options):
        seen.append(options)
        return step

    monkeypatch.setattr(measure.torch, "compile", compile_without_a_compiler)
    result = measure_kernels(CPU, True, sizes=TINY)
    assert seen == [{"dynamic": False}] * len(result.times)
    assert all(time.over("compiled") > 0 for time in result.times)


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="device: meta"):
        measure_kernels(torch.device("meta"), True)


def test_goals_count_the_cases_that_meet_them():
    """The share of the copy is asked of large launches alone, both ratios of updates of any size."""
    result = on_gpu(
        taking({"ours": 2 * LARGE / 0.95e12, "eager": 1.0, "compiled": 2e-4}),
        taking({"ours": 2 * LARGE / 0.5e12, "eager": 1e-4}),
        taking({"ours": 1e-5, "eager": 2e-5, "compiled": 1.1e-5}, size=LARGE // 10),
        taking({"ours": 1e-5, "eager": 1.9e-5, "compiled": 1e-5}, size=LARGE // 10, kernel="gather"),
        taking({}, ours="RuntimeError: x"),
    )
    copy, over_eager, over_compiled = result.goals()
    assert (copy.cases, copy.met, copy.worst) == (2, 1, pytest.approx(0.5))
    assert (over_eager.cases, over_eager.met) == (3, 1)
    assert over_eager.worst == pytest.approx(1e-4 * 0.5e12 / (2 * LARGE))
    assert (over_compiled.cases, over_compiled.met, over_compiled.worst) == (2, 1, pytest.approx(1.1))
    assert result.failed
    assert "| share of the copy bandwidth, from 16 MB | 0.9 | 1 of 2 | 0.50 |" in markdown(result)


def test_the_command_writes_both_files(tmp_path, monkeypatch):
    """kernels.json and kernels.md, with the machine, the versions and each case; exit code 0."""
    monkeypatch.setattr("bench.kernels.measure.CPU_SIZES", TINY)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    options = parser.parse_args(["--device", "cpu", "--quick", "--no-compile", "--output", str(tmp_path)])
    assert command.main(options, Console(quiet=True)) == 0
    found = json.loads((tmp_path / "kernels.json").read_text())
    assert found["fused"] is False
    assert found["environment"]["commit"]
    assert found["environment"]["packages"]["torch"] == torch.__version__
    assert len(found["times"]) == 16
    assert found["goals"] == []
    assert "ensemble, guided" in (tmp_path / "kernels.md").read_text()


def test_ours_failing_is_an_error(tmp_path, monkeypatch):
    """Exit code 1, and the files are written all the same."""
    monkeypatch.setattr("bench.kernels.measure.CPU_SIZES", TINY)

    def broken(*_, **__):
        raise RuntimeError("no launch")

    monkeypatch.setattr(contenders.ops, "gather", broken)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    options = parser.parse_args(["--device", "cpu", "--quick", "--no-compile", "--output", str(tmp_path)])
    assert command.main(options, Console(quiet=True)) == 1
    assert "RuntimeError: no launch" in (tmp_path / "kernels.md").read_text()
