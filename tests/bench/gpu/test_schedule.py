"""How the parts of `python -m bench gpu` share the time, and what becomes of those that fail."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from rich.console import Console

from bench.cli import main
from bench.end_to_end.result import Goal
from bench.environment import describe_environment
from bench.gpu import child, command
from bench.gpu.parts import Findings, Part, Setting
from bench.gpu.registry import all_parts
from bench.gpu.report import markdown, succeeded
from bench.gpu.schedule import GRACE, Outcome, PartFailed, launch_process, run_parts

MET, MISSED = Goal("speed", 0.96, 0.95, at_most=False), Goal("speed", 0.5, 0.95, at_most=False)


def never(setting: Setting) -> Findings:
    raise AssertionError("a part is not run in this process")


def part(name: str, share: float = 1.0) -> Part:
    return Part(name, name.title(), share, (Goal("speed", None, 0.95, at_most=False),), never)


class Launcher:
    """Launches parts on a clock of its own: each takes the seconds that it is said to; some fail."""

    def __init__(self, seconds: dict[str, float], failing: tuple[str, ...] = (), goal: Goal = MET) -> None:
        self.now, self.seconds, self.failing, self.goal = 100.0, seconds, failing, goal
        self.given: dict[str, float] = {}

    def __call__(self, part: Part, setting: Setting) -> Findings:
        self.given[part.name] = setting.seconds
        self.now += self.seconds[part.name]
        if part.name in self.failing:
            raise PartFailed("ended with code 1\nCUDA error: an illegal memory access was encountered")
        return Findings({"part": part.name}, (self.goal,), f"# {part.title}\n\nIt went well.\n\n## Details\n\nMany.")

    def run(self, parts: list[Part], budget: float, output: Path) -> list[Outcome]:
        return run_parts(parts, "cuda:0", budget, output, self, clock=lambda: self.now)


def test_parts_share_what_is_left(tmp_path: Path):
    """By their shares; what one does not use is the others', and a grace is kept for each that has to be ended."""
    launcher = Launcher({"a": 20.0, "b": 100.0})
    outcomes = launcher.run([part("a", 1.0), part("b", 3.0)], 400.0, tmp_path)
    assert launcher.given == {"a": 100.0 - GRACE, "b": 380.0 - GRACE}
    assert [outcome.seconds for outcome in outcomes] == [20.0, 100.0]
    assert succeeded(outcomes)


def test_a_part_that_overruns_takes_from_those_behind_it(tmp_path: Path):
    """So that all end within the time; one for which none is left is not begun."""
    launcher = Launcher({"a": 150.0, "b": 45.0, "c": 1.0})
    outcomes = launcher.run([part("a"), part("b"), part("c")], 200.0, tmp_path)
    assert launcher.given["b"] == 25.0 - GRACE
    assert "c" not in launcher.given
    assert outcomes[2].error == "no time was left"
    assert not succeeded(outcomes)


def test_a_part_that_fails_leaves_the_others_alone(tmp_path: Path):
    """They run and count, and its goals are not measured."""
    launcher = Launcher({"a": 1.0, "b": 1.0}, failing=("a",))
    outcomes = launcher.run([part("a"), part("b")], 100.0, tmp_path)
    assert outcomes[0].error is not None
    assert outcomes[1].findings is not None
    page = markdown(describe_environment(), outcomes, 100.0)
    assert "| speed | >= 0.95 | - | not measured |" in page
    assert "| speed | >= 0.95 | 0.96 | met |" in page
    assert "failed: ended with code 1 |" in page
    assert "illegal memory access" in page
    assert "\n## B\n\nIt went well.\n\n### Details" in page


@pytest.mark.parametrize(
    ("failing", "goal", "code"), [((), MET, 0), ((), MISSED, 1), (("b",), MET, 1)], ids=["met", "missed", "failed"]
)
def test_the_exit_code_tells(tmp_path: Path, failing: tuple[str, ...], goal: Goal, code: int):
    """0 where all went well and every goal is met; numbers and page are written in any case."""
    launcher = Launcher({"a": 0.0, "b": 0.0}, failing, goal)
    console = Console(stderr=True, quiet=True)
    assert command.run([part("a"), part("b")], "cuda:0", 100.0, tmp_path / "out", console, launcher) == code
    numbers = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert numbers["parts"]["a"]["numbers"] == {"part": "a"}
    assert (numbers["parts"]["b"]["error"] is None) == (not failing)
    assert [each["met"] for each in numbers["goals"]] == [goal.met, None if failing else goal.met]
    assert numbers["environment"]["commit"]
    assert "torch" in numbers["environment"]["packages"]
    assert (tmp_path / "out" / "gpu.md").read_text().startswith("# On a GPU")


def test_every_goal_of_a_part_is_known_before_it_runs():
    """So that one that fails shows what it owes; names and goals are one of a kind."""
    parts = all_parts()
    goals = [goal.name for each in parts for goal in each.goals]
    assert len(set(goals)) == len(goals) == 6
    assert all(goal.met is None for each in parts for goal in each.goals)
    assert [each.name for each in parts] == ["tests", "end-to-end", "busy", "kernels"]


def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    """Have parts be run by a program of the test's."""
    (tmp_path / "bench" / "gpu").mkdir(parents=True)
    for package in ("bench", "bench/gpu"):
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "bench" / "gpu" / "child.py").write_text(f"import sys, time\nfrom pathlib import Path\n{text}\n")
    monkeypatch.setattr("bench.gpu.schedule.ROOT", tmp_path)


def test_a_parts_process_leaves_its_findings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """They come back whole, and its files go."""
    goal = '{"name":"speed","value":0.5,"bound":0.95,"at_most":false}'
    findings = f'{{"numbers":{{"a":1}},"goals":[{goal}],"markdown":"well"}}'
    script(
        monkeypatch, tmp_path, f"Path(sys.argv[5]).write_text({findings!r})\nassert sys.argv[1:3] == ['a', 'cuda:0']"
    )
    output = tmp_path / "out"
    output.mkdir()
    assert launch_process(part("a"), Setting("cuda:0", 30.0, output)) == Findings({"a": 1}, (MISSED,), "well")
    assert not list(output.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("print('out of memory'); sys.exit(3)", r"code 3\nout of memory"),
        ("print('nothing')", "left no findings"),
        ("Path(sys.argv[5]).write_text('{}')", "cannot be read"),
        ("import os; os.abort()", "code -6"),
    ],
)
def test_a_process_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, message: str):
    """With the end of what it printed, which is kept beside the report."""
    script(monkeypatch, tmp_path, text)
    with pytest.raises(PartFailed, match=message):
        launch_process(part("a"), Setting("cuda:0", 30.0, tmp_path))
    assert (tmp_path / "a.log").exists()


def test_what_was_found_before_a_failure_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The part has failed, and shows what it had."""
    findings = '{"numbers":1,"goals":[{"name":"speed","value":0.96,"bound":0.95,"at_most":false}],"markdown":"half"}'
    script(monkeypatch, tmp_path, f"Path(sys.argv[5]).write_text({findings!r})\nsys.exit(7)")
    (outcome,) = run_parts([part("a")], "cuda:0", 60.0, tmp_path, launch_process)
    assert outcome.error == "ended with code 7"
    assert outcome.findings == Findings(1, (MET,), "half")
    assert not succeeded([outcome])
    page = markdown(describe_environment(), [outcome], 60.0)
    assert "| speed | >= 0.95 | 0.96 | met |" in page
    assert "It failed:\n\n```\nended with code 7\n```\n\nhalf" in page


def test_a_process_that_hangs_is_ended_with_all_that_it_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """After its time and the grace."""
    text = (
        "import subprocess\nsleeper = subprocess.Popen(['sleep', '60'])\nprint(sleeper.pid, flush=True)\ntime.sleep(60)"
    )
    script(monkeypatch, tmp_path, text)
    monkeypatch.setattr("bench.gpu.schedule.GRACE", 0.0)
    began = time.perf_counter()
    with pytest.raises(PartFailed, match="was ended after 2 s"):
        launch_process(part("a"), Setting("cuda:0", 2.0, tmp_path))
    sleeper = Path("/proc") / (tmp_path / "a.log").read_text().strip() / "status"
    while sleeper.exists() and "zombie" not in sleeper.read_text():  # it may take a moment to go
        assert time.perf_counter() - began < 30


def test_the_child_runs_the_part_that_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """With what is left of the time until the deadline."""
    told = []

    def measure(setting: Setting) -> Findings:
        told.append(setting)
        return Findings({"x": float("nan")}, (MET,), "text")

    parts = (part("other"), Part("mine", "Mine", 1.0, (MET,), measure))
    monkeypatch.setattr(child, "all_parts", lambda: parts)
    child.main("mine", "cuda:1", str(time.perf_counter() + 50.0), str(tmp_path), str(tmp_path / "found.json"))
    (setting,) = told
    assert (setting.device, setting.output) == ("cuda:1", tmp_path)
    assert 40.0 < setting.seconds <= 50.0
    assert json.loads((tmp_path / "found.json").read_text())["numbers"] == {"x": None}


def test_without_a_gpu_one_line_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path):
    """And nothing is run or written."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["gpu", "--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "python -m bench gpu: needs an NVIDIA GPU: torch finds no CUDA device here\n"
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    """Before torch is asked for a GPU."""
    monkeypatch.setattr(command, "NEEDED", ("torch", "no_such_package"))
    assert command.missing("cuda:0") == "needs packages that are not installed: no_such_package"


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_a_device_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, device: str):
    """With those that are."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert command.missing(device) == f"--device: must be cuda:0 to cuda:0, got {device}"
    assert command.missing("cuda:0") is None


@pytest.mark.parametrize(("option", "value"), [("--parts", "tests,none"), ("--budget", "5"), ("--budget", "nan")])
def test_wrong_options_are_named(capsys, option: str, value: str):
    """Code 2, before anything is looked for."""
    assert main(["gpu", option, value]) == 2
    assert option in capsys.readouterr().err
