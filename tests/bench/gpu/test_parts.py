"""What the parts of `python -m bench gpu` measure, on the CPU where that is the same work."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench.end_to_end import measure
from bench.end_to_end.bundles import checkpoint_of, untraced
from bench.end_to_end.cases import WORKLOADS
from bench.end_to_end.result import FOUR_STEPS, UNET
from bench.environment import describe_environment
from bench.gpu import registry
from bench.gpu.busy import CALLERS, ROWS, Meter, covered, kernel_share, measure_busy
from bench.gpu.gpu_tests import gpu_test_files, run_tests
from bench.gpu.parts import Findings, Setting
from bench.kernels.result import LARGE, KernelsResult, KernelTime
from tests.bench.end_to_end.test_measure import small

CPU = torch.device("cpu")

SUITE = """
import pytest
def test_of_the_cpu(): assert False
@pytest.mark.gpu
def test_marked(): pass
@pytest.mark.gpu
def test_broken(): assert {holds}
@pytest.mark.gpu
def test_skipped(): pytest.skip("no such GPU")
"""


HANGS = """
import pytest, time
@pytest.mark.gpu
def test_a(): pass
@pytest.mark.gpu
def test_b(): time.sleep(60)
"""


def suite(tmp_path: Path, holds: bool = True) -> list[Path]:
    path = tmp_path / "test_suite.py"
    path.write_text(SUITE.format(holds=holds))
    return [path]


def test_gpu_tests_are_those_marked(tmp_path: Path):
    """The others in their files are not run."""
    found = run_tests(Setting("cuda:0", 120.0, tmp_path), suite(tmp_path))
    assert found.numbers == {"passed": 2, "skipped": 1, "failures": ()}
    assert found.goals[0].met


def test_a_gpu_test_that_fails_is_named(tmp_path: Path):
    """And the goal is missed by as many."""
    found = run_tests(Setting("cuda:0", 120.0, tmp_path), suite(tmp_path, holds=False))
    (goal,) = found.goals
    assert (goal.value, goal.met) == (1.0, False)
    assert "test_suite.test_broken`" in found.markdown


def test_no_gpu_test_is_no_success(tmp_path: Path):
    """Nor are tests that pytest could not collect."""
    path = tmp_path / "test_nothing.py"
    path.write_text("import pytest\n@pytest.mark.gpu\ndef test_a(): pytest.skip('no')\n")
    with pytest.raises(RuntimeError, match="no test was run"):
        run_tests(Setting("cuda:0", 120.0, tmp_path), [path])
    path.write_text("import no_such_module\n")
    with pytest.raises(RuntimeError, match="code 2"):
        run_tests(Setting("cuda:0", 120.0, tmp_path), [path])


def test_gpu_tests_end_in_time(tmp_path: Path):
    """A test that hangs does not keep the others' time, and what was found before it is told: no more than that."""
    path = tmp_path / "test_hangs.py"
    path.write_text(HANGS)
    kept: list[Findings] = []
    with pytest.raises(subprocess.TimeoutExpired):
        run_tests(Setting("cuda:0", 12.0, tmp_path, kept.append), [path])
    assert kept[0].numbers == {"passed": 1, "skipped": 0, "failures": ()}
    assert kept[0].goals[0].met is None
    assert "The others were not run" in kept[0].markdown


def test_the_files_with_gpu_tests_are_found():
    """The kernels' and the device's, and not those that know nothing of a GPU."""
    names = {f"{path.parent.name}/{path.name}" for path in gpu_test_files()}
    assert {"kernels/test_ensemble.py", "kernels/test_langevin.py", "server/test_device.py"} <= names
    assert not {"server/test_batcher.py", "server/test_overload.py"} & names, "they know of simulated devices alone"


def test_the_union_of_intervals():
    """Overlaps count once, and gaps not at all."""
    assert covered([(3.0, 4.0), (0.0, 1.0), (0.5, 2.0), (0.6, 0.7)]) == 3.0
    assert covered([]) == 0.0


def test_where_no_gpu_works_the_profiler_sees_nothing():
    """No number, rather than 0 %."""
    assert kernel_share(lambda: None) is None


def test_callers_keep_the_engine_busy(tmp_path: Path):
    """Batches are of many callers' rows, and the share is of the time that was measured."""
    workload = next(workload for workload in WORKLOADS if workload.model == "digits-ddpm")
    bundle = untraced(checkpoint_of(workload, tmp_path), "float32")
    found = measure_busy(bundle, CPU, 6.0)
    assert 0.2 < found.share <= 1.0
    assert found.kernels is None
    assert found.batches > 0
    assert ROWS < found.rows <= min(64, ROWS * CALLERS)
    assert found.rate > 0


def test_a_batch_that_ran_before_the_window_does_not_count():
    """The share is of the time from the end of one batch to the end of another, and of those that ended in it."""
    ends = iter([100.0, 101.0, 103.0])
    meter = Meter(
        SimpleNamespace(device="cpu", depth=1, turn=1, at_once_seconds=0.0, invariance_known=False), lambda: next(ends)
    )
    meter.count(50.0, 64)
    assert (meter.batches, meter.elapsed) == (0, 0.0)
    for seconds in (0.9, 1.5):
        meter.count(seconds, 32)
    assert (meter.batches, meter.rows, meter.seconds, meter.elapsed) == (2, 64, 2.4, 3.0)
    meter.reset()
    assert meter.elapsed == 0.0


def test_the_end_to_end_part_gives_its_goal_and_its_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A measurement's numbers, goal, page and picture, whatever was measured."""
    real = measure.measure_end_to_end
    told = []

    def measured(device: str, seconds: float, options: measure.Options, report, keep) -> measure.EndToEnd:
        told.append((device, seconds, options.engines, options.workloads[0].model))
        options = small(tmp_path, "digits-hat", rows=(1,), engines=("torch",))
        return real("cpu", 10.0, options, report=report, keep=keep)

    monkeypatch.setattr(measure, "measure_end_to_end", measured)
    kept: list[Findings] = []
    found = registry.run_end_to_end(Setting("cuda:0", 100.0 + registry.MARGIN, tmp_path, kept.append))
    assert told == [("cuda:0", 100.0, ("torch",), UNET)]
    assert kept[-1].numbers["cells"] == found.numbers["cells"]
    assert {cell["case"]["model"] for cell in found.numbers["cells"]} == {"digits-hat"}
    assert found.markdown.startswith("# End to end")
    assert (tmp_path / "end_to_end.png").exists()


def test_an_end_to_end_part_that_measured_nothing_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The reasons are in the error."""
    real = measure.measure_end_to_end
    options = small(tmp_path, "digits-hat", engines=("no-such-engine",))
    monkeypatch.setattr(measure, "measure_end_to_end", lambda *_, report, keep: real("cpu", 10.0, options))
    with pytest.raises(RuntimeError, match="no-such-engine"):
        registry.run_end_to_end(Setting("cuda:0", 100.0, tmp_path))


@pytest.mark.parametrize(
    ("left_out", "not_compiled", "values"),
    [
        (0, 0, [0.95, 2.5, 1.3]),
        (0, 5, [0.95, 2.5, None]),
        (5, 0, [None, 2.5, None]),
    ],
)
def test_some_of_the_cases_do_not_meet_a_goal_for_all(left_out: int, not_compiled: int, values: list[float | None]):
    """But one of them that misses it does."""
    bytes_ = 2 * LARGE
    seconds = {"ours": bytes_ / 0.95e12, "eager": 2.5 * bytes_ / 0.95e12, "compiled": 1.3 * bytes_ / 0.95e12}
    time = KernelTime("ensemble", "plain", 64, (3, 256, 256), "float32", bytes_, seconds, {})
    result = KernelsResult(describe_environment(), "a GPU", True, 1e12, (time,), left_out, not_compiled)
    assert [goal.value for goal in registry.kernel_goals(result)] == [
        None if value is None else pytest.approx(value) for value in values
    ]


def test_the_kernels_part_gives_its_goals(tmp_path: Path):
    """On the CPU, where no kernel is measured, they stay open."""
    found = registry.run_kernels(Setting("cpu", registry.MARGIN, tmp_path))
    assert [(goal.name, goal.bound, goal.met) for goal in found.goals] == [
        (goal.name, goal.bound, None) for goal in registry.KERNELS
    ]
    assert "No kernel was measured" in found.markdown


def test_the_goal_of_end_to_end_is_the_measurements_own():
    """One name, so that a part that fails owes what one that runs would give."""
    part = next(part for part in registry.all_parts() if part.name == "end-to-end")
    assert part.goals == (FOUR_STEPS,)
