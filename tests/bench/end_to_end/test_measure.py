"""Whole measurements of small models, and what the contenders do."""

from __future__ import annotations

import json
import queue
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.cli import main
from bench.end_to_end import measure
from bench.end_to_end.bundles import checkpoint_of, find_bundle, untraced
from bench.end_to_end.cases import WORKLOADS, Case, EndToEndError, Workload, program_of
from bench.end_to_end.contenders import images_of
from bench.end_to_end.loaded import LoadedOnDevice, LoadedOnHost
from bench.end_to_end.loops import Loops
from bench.end_to_end.measure import Options, measure_end_to_end
from bench.end_to_end.served import Served, Taken
from export.runtime.onnxruntime import OnnxRuntime
from models.checkpoint import load_modules
from models.run import networks_of, run
from server.backend import HostBackend
from server.errors import ServerError, StepFailed

BY_NAME = {workload.model: workload for workload in WORKLOADS}
CPU = torch.device("cpu")


def bundle_of(repository: Path, model: str):
    bundle = find_bundle(repository, model)
    assert bundle is not None
    return bundle


def small(repository: Path, *models: str, **changes) -> Options:
    workloads = tuple(BY_NAME[model] for model in models)
    options = {"workloads": workloads, "repository": repository, "rows": (1, 3), "nfe": (2,), "langevin": 3}
    return Options(**(options | {"threads": 1, "compiled": False} | changes))


def test_everybody_runs_every_case(repository: Path, monkeypatch: pytest.MonkeyPatch):
    """Both engines on the CPU: samples, scores and chains, each served and bare and by a plain loop."""
    monkeypatch.setattr(measure, "MAX_ROUNDS", 1)
    models = ("digits-ddpm", "digits-hat", "digits-latent")
    result = measure_end_to_end("cpu", 60.0, small(repository, *models, rows=(1,)))
    assert not result.left_out
    assert [cell.case.model for cell in result.cells] == ["digits-ddpm", "digits-hat", "digits-hat", "digits-latent"]
    for cell in result.cells:
        everybody = {(timing.engine, timing.contender) for timing in cell.timings}
        ours = {(engine, name) for engine in ("onnxruntime", "torch") for name in ("served", "bare")}
        assert everybody == ours | {("torch", "eager")}, cell.case
        for timing in cell.timings:
            assert timing.calls >= 1
            assert 0 < timing.best <= timing.p50 <= timing.p99
            assert (timing.over_bare is None) == (timing.contender == "bare")
        served = cell.timing("served", "onnxruntime")
        assert served is not None
        assert served.update_share is not None
        assert 0 < served.update_share < 1


def test_the_time_is_kept(repository: Path):
    """No more rounds are begun than the budget has room for, and what does not fit is said."""
    now = [0.0]

    def clock() -> float:
        now[0] += 0.5  # each look at the clock takes half a second
        return now[0]

    result = measure_end_to_end("cpu", 5.0, small(repository, "digits-ddpm", "digits-hat"), clock=clock)
    assert result.seconds < 30.0
    assert result.left_out.get("digits-hat") == "no time was left" or result.cells_of("digits-hat")


def test_a_model_that_fails_is_left_out(repository: Path, monkeypatch: pytest.MonkeyPatch):
    """With its error, and the others are measured; what there is is kept after each."""
    kept = []

    def ask(self, program, rows, images=None, seed=0):
        if self.key.name == "digits-ddpm":
            raise StepFailed("out of memory")
        return Taken(0.001)

    monkeypatch.setattr(Served, "ask", ask)
    options = small(repository, "digits-ddpm", "digits-hat", rows=(1,), engines=("onnxruntime",))
    result = measure_end_to_end("cpu", 10.0, options, keep=kept.append)
    assert "out of memory" in result.left_out["digits-ddpm"]
    assert result.cells_of("digits-hat")
    assert [cell.case.model for cell in kept[-1].cells] == ["digits-hat", "digits-hat"]


def test_a_model_that_cannot_be_had_is_left_out(repository: Path, monkeypatch: pytest.MonkeyPatch):
    """The others are measured, and the reason is kept."""
    missing = Workload("no-such-model", False, ("sample",), ("denoiser",), 1.0)
    monkeypatch.setattr(measure, "VISIT_SECONDS", 0.0)
    options = small(repository, "digits-hat", rows=(1,), engines=("onnxruntime",))
    workloads = (missing, *options.workloads)
    options = small(repository, rows=(1,), engines=("onnxruntime", "no-such-engine"), workloads=workloads)
    result = measure_end_to_end("cpu", 10.0, options)
    assert "no such model" in result.left_out["no-such-model"]
    assert "no-such-engine" in result.left_out["digits-hat, no-such-engine"]
    assert result.cells_of("digits-hat")


@pytest.mark.parametrize("engine", ["onnxruntime", "torch"])
def test_the_bare_loop_runs_the_networks_of_the_program_and_nothing_else(repository: Path, engine: str):
    """Each line's network once, on as many rows as the case has, with the sessions that the server has."""
    bundle = bundle_of(repository, "digits-latent")
    loaded = LoadedOnHost(bundle, 1) if engine == "onnxruntime" else LoadedOnDevice(bundle, engine, CPU, 1)
    case = Case("digits-latent", "langevin", 3, 2)
    program = program_of(bundle.card, case)
    calls: list[tuple[str, int]] = []
    with loaded:
        for name, session in loaded._sessions.items():
            whole = session.run

            def counted(inputs, name=name, whole=whole):
                calls.append((name, len(next(iter(inputs.values())))))
                return whole(inputs)

            session.run = counted
        bare = loaded.make("bare", case, program)
        calls.clear()
        taken = bare()
        assert calls == [(line.network, 2) for line in program.lines]
        assert taken.seconds > 0
        calls.clear()
        loaded.make("served", case, program)()
        assert calls == [(line.network, 2) for line in program.lines]


def test_the_plain_loop_scores_as_the_oracle(repository: Path):
    """Energies of given images: the same as `models.run`'s."""
    bundle = bundle_of(repository, "digits-hat")
    program = program_of(bundle.card, Case("digits-hat", "score", 1, 5))
    images = torch.from_numpy(images_of(bundle.card, program, 5)).reshape(5, *bundle.card.image.shape)
    found = Loops(bundle, CPU, torch.float32, compiled=False)._run(program, 5, images)
    networks = networks_of(bundle.card, load_modules(bundle.directory, bundle.card.modules))
    expected = run(program, bundle.card, networks, seed=0, count=5, images=images)
    torch.testing.assert_close(found, expected.energy)


def test_the_plain_loops_chain_is_the_oracles_without_noise(repository: Path, monkeypatch: pytest.MonkeyPatch):
    """With the noise put to zero in both, all that a Langevin step does besides is compared, the clip included."""
    bundle = bundle_of(repository, "digits-hat")
    program = program_of(bundle.card, Case("digits-hat", "langevin", 6, 4))
    start = torch.linspace(-1, 1, 4 * 64).reshape(4, 1, 8, 8)
    monkeypatch.setattr(torch, "randn", lambda *shape, **_: start.clone() / program.noise_scale)
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    found = Loops(bundle, CPU, torch.float32, compiled=False)._run(program, 4, None)
    networks = networks_of(bundle.card, load_modules(bundle.directory, bundle.card.modules))

    def noise(seeds, samples, draws, size):
        drawn = start.reshape(4, -1).numpy() / program.noise_scale if draws[0] == 0 else np.zeros((4, size), np.float32)
        return drawn.astype(np.float32)

    monkeypatch.setattr("models.run.normal", noise)
    expected = run(program, bundle.card, networks, seed=0, count=4)
    torch.testing.assert_close(found, expected.state)


def test_the_ddim_loop_evaluates_the_network_once_a_step(repository: Path):
    """As often as the served request does, with all rows at once."""
    bundle = bundle_of(repository, "digits-ddpm")
    case = Case("digits-ddpm", "sample", 4, 3)
    loops = Loops(bundle, CPU, torch.float32, compiled=False)
    whole, calls = loops._networks["denoiser"], []
    loops._networks["denoiser"] = lambda **inputs: calls.append(len(inputs["sample"])) or whole(**inputs)
    assert loops.loop(case, program_of(bundle.card, case))().seconds > 0
    assert calls == [3] * 4


def test_a_bundle_without_graphs_is_served_by_torch(tmp_path: Path):
    """A machine without an exporter measures the checkpoint itself, in the precision asked for."""
    workload = BY_NAME["digits-hat"]
    bundle = untraced(checkpoint_of(workload, tmp_path), "bfloat16")
    assert {graph.precision for graph in bundle.manifest.graphs.values()} == {"bfloat16"}
    case = Case("digits-hat", "langevin", 3, 2)
    program = program_of(bundle.card, case)
    with LoadedOnDevice(bundle, "torch", CPU, 1) as loaded:
        for contender in ("served", "bare", "eager"):
            assert loaded.make(contender, case, program)().seconds > 0


def test_a_graph_that_takes_long_to_write_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Such a model is measured with torch, and what ONNX Runtime lacks is said."""
    monkeypatch.setattr(measure, "MAX_ROUNDS", 1)
    workload = replace(BY_NAME["digits-hat"], slow_export=True)
    options = small(tmp_path, rows=(1,), workloads=(workload,))
    result = measure_end_to_end("cpu", 20.0, options)
    assert "export it first" in result.left_out["digits-hat, onnxruntime"]
    assert {timing.engine for cell in result.cells for timing in cell.timings} == {"torch"}


def test_a_refused_request_is_an_error(repository: Path):
    """A request that the engine does not take ends the measurement, and not quietly."""
    bundle = bundle_of(repository, "digits-ddpm")
    program = program_of(bundle.card, Case("digits-ddpm", "sample", 1, 1))
    served = Served(bundle, HostBackend(OnnxRuntime(1)))
    with served:
        served.ask(program, 2)
        served.engine.close_admission()
        with pytest.raises(ServerError):
            served.ask(program, 1)
    with pytest.raises(ServerError):
        served.engine.submit(served.job(program, 1, None, 0, queue.SimpleQueue()))


def test_torch_compile_takes_no_more_than_its_share(repository: Path, monkeypatch: pytest.MonkeyPatch):
    """It is one of the contenders; once its time is spent, further numbers of rows are left out and said."""
    modes = []
    monkeypatch.setattr(torch, "compile", lambda module, mode, dynamic: modes.append((mode, dynamic)) or module)
    monkeypatch.setattr(measure, "MAX_ROUNDS", 1)
    options = small(repository, "digits-hat", engines=("torch",), compiled=True)
    assert "digits-hat" not in measure_end_to_end("cpu", 20.0, options).compile_seconds  # too little time to try
    assert not modes
    monkeypatch.setattr(measure, "COMPILE_LEAST", {"cpu": 0.0})
    monkeypatch.setattr(measure, "COMPILE_SHARE", 1e-6)
    result = measure_end_to_end("cpu", 20.0, options)
    assert set(modes) == {(None, False)}
    assert result.compile_seconds["digits-hat"] > 0
    cells = {(cell.case.task, cell.case.rows): cell for cell in result.cells}
    first = [rows for (_, rows), cell in cells.items() if cell.timing("compiled")]
    assert set(first) == {1}
    assert "compiling for fewer rows took" in cells["score", 3].left_out["torch compiled"]
    for case, cell in cells.items():
        assert {timing.contender for timing in cell.timings} >= {"served", "bare", "eager"}, case


def test_the_command_writes_numbers_report_and_picture(repository: Path, tmp_path: Path, capsys):
    """And shows the tables."""
    options = ["--repository", str(repository), "--models", "digits-hat", "--rows", "1,2", "--langevin", "3"]
    options += ["--budget", "8", "--threads", "1", "--engines", "onnxruntime", "--output", str(tmp_path)]
    assert main(["end-to-end", *options]) == 0
    numbers = json.loads((tmp_path / "end_to_end.json").read_text())
    assert {cell["case"]["task"] for cell in numbers["cells"]} == {"score", "langevin"}
    assert [goal["met"] for goal in numbers["goals"]] == [None, None]
    assert numbers["environment"]["commit"]
    assert "## digits-hat" in (tmp_path / "end_to_end.md").read_text()
    assert (tmp_path / "end_to_end.png").read_bytes().startswith(b"\x89PNG")
    assert "Langevin 3, 2 rows" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--models", "digits-ddpm,none"),
        ("--rows", "0"),
        ("--rows", "1,x"),
        ("--steps", ""),
        ("--budget", "0"),
        ("--langevin", "4"),
        ("--precision", "int8"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, capsys, option: str, value: str):
    """Before anything is measured."""
    assert main(["end-to-end", "--output", str(tmp_path), option, value]) == 2
    assert option in capsys.readouterr().err


def test_a_model_of_another_kind_is_refused(tmp_path: Path):
    """The zoo holds no such model: an error that names it."""
    with pytest.raises(EndToEndError, match="digits-none"):
        checkpoint_of(Workload("digits-none", False, (), (), 1.0), tmp_path)
