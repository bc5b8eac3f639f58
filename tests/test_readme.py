"""The README's commands and its Python work as written, against a real server."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys

import pytest

from .conftest import ROOT
from .running import RunningServer

TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", TEXT, flags=re.DOTALL)
COMMANDS = [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines() if line]


def run(command: list[str], cwd) -> str:
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, f"{shlex.join(command)}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def test_make_targets_exist():
    """Every `make` command of the README is a target of the Makefile."""
    makefile = (ROOT / "Makefile").read_text()
    targets = {line.split()[1] for line in COMMANDS if line.startswith("make ")} | set(
        re.findall(r"`make (\w+)`", TEXT)
    )
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_commands_run(server: RunningServer, tmp_path):
    """Each client command prints and writes what it says, in the README's order; pictures and arrays appear."""
    (tmp_path / "out").mkdir()
    for name in ("server", "protos", "models", "export", "kernels"):
        (tmp_path / name).symlink_to(ROOT / name)
    commands = [line for line in COMMANDS if line.startswith(".venv/bin/python -m ") and " bench " not in line]
    assert len(commands) >= 5
    for line in commands:
        words = shlex.split(line.replace(".venv/bin/python -m ", ""))
        if words[0] == "server.client":
            words[1:1] = ["--address", server.address]
        assert run([sys.executable, "-m", *words], tmp_path).strip()
    assert (tmp_path / "out" / "digits.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "vdrme.npy").exists()


@pytest.mark.parametrize("line", [line for line in COMMANDS if " bench " in line])
def test_measurements_are_as_documented(line: str):
    """Each measurement of the README takes minutes: its command and its options exist."""
    _, _, words = line.partition(" -m bench ")
    command, *options = shlex.split(words, comments=True)
    said = run([sys.executable, "-m", "bench", command, "--help"], ROOT)
    for option in options:
        if option.startswith("--") and " " not in option:  # else an option's value, for a server
            assert re.search(rf"{option}\b", said), option


def test_python_example_runs(server: RunningServer):
    """The Python example runs and prints shapes, energies and decisions."""
    (code,) = [block for kind, block in BLOCKS if kind == "python"]
    output = run([sys.executable, "-c", code.replace("127.0.0.1:8001", server.address)], ROOT)
    assert "(16, 1, 8, 8)" in output


def test_sampler_table_is_the_committed_result():
    """Latencies and FD-digits of the README's table are those of bench/results/demo.json, rounded."""
    methods = json.loads((ROOT / "bench" / "results" / "demo.json").read_text())["samples"]["methods"]
    for name in ("DDIM", "iDDIM", "VDRME"):
        rows = [method for method in methods if method["sampler"] == name]
        (line,) = [line for line in TEXT.splitlines() if re.match(rf"\| digits-\w+ \| {name}\b", line)]
        cells = [cell.strip() for cell in line.split("|")]
        for cell, field, scale in ((4, "latency_p50", 1e3), (5, "latency_p95", 1e3), (6, "frechet", 1.0)):
            assert cells[cell] == " / ".join(f"{method[field] * scale:.1f}" for method in rows), (name, field)


def test_claims_on_the_latent_hierarchy_are_the_committed_result():
    """FD, labels and AUROC by layer of the README are those of bench/results/zoo/quality.json, rounded."""
    found = json.loads((ROOT / "bench" / "results" / "zoo" / "quality.json").read_text())
    (prior,), (steer,), (layers,) = (
        [line for line in TEXT.splitlines() if line.startswith(f"| {claim}")]
        for claim in ("an EBM prior fills", "labels steer", "detection improves")
    )
    for model, steps in (("digits-latent", 3), ("digits-latent-6", 6)):
        rows = [row for row in found["rows"] if row["row"]["model"] == model]
        (default,) = [row["frechet"] for row in rows if row["setting"] == "latent langevin_steps=30"]
        assert f"{default['mean']:.1f} ± {default['deviation']:.1f} with T = {steps}" in prior
        (labelled,) = [row["label_accuracy"] for row in rows if row["row"]["labelled"]]
        assert f"{labelled:.3f}".removeprefix("0") + f" (T = {steps})" in steer
        means = {
            entry["detector"].removeprefix(f"{model} "): sum(r["metrics"]["auroc"] for r in entry["results"])
            / len(entry["results"])
            for entry in found["detectors"] + found["layers"]
        }
        above = [f"{means[f'diffusion-{k}']:.3f}".removeprefix("0") for k in range(3)]
        assert f"{', '.join(above)} (T = {steps})" in layers
        for name in ("inference-0", "inference-1", "inference-2", "layer-1", "layer-2"):
            assert f"{means[name]:.2f}".removeprefix("0") in layers, (model, name)
        assert f"{means['layer-3']:.3f}".removeprefix("0") in layers


COMPARED = json.loads((ROOT / "bench" / "results" / "compare" / "compare.json").read_text())
ROWS = {
    "one 1-step request": [
        *(f"idle {how}: fewstep adds, ms at p50" for how in ("paced", "busy")),
        *(f"idle {how}: fewstep / {peer}" for peer in ("triton", "litserve", "grpc") for how in ("paced", "busy")),
    ],
    "samples/s of 4 steps": [
        f"small: fewstep / {peer}" for peer in ("bare", "triton", "litserve", "bentoml", "ray", "grpc")
    ],
    "samples/s of the 35.7M": ["large: fewstep / bare"],
    "p99 of 1-step requests": ["interactive: p99 fewstep / best request-level batcher"],
    "goodput at 3x overload": [
        f"overload: {peer}, goodput of its peak" for peer in ("fewstep", "bentoml", "grpc", "triton", "litserve", "ray")
    ],
}


@pytest.mark.parametrize("row", ROWS)
def test_comparison_table_is_the_committed_result(row: str):
    """The README's ratios are those of bench/results/compare/compare.json, each rounded as it is written."""
    (line,) = [line for line in TEXT.splitlines() if line.startswith(f"| {row}")]
    numbers = re.findall(r"\d+(?:\.\d+)?", line)
    for name in ROWS[row]:
        value = COMPARED["ratios"][name]
        assert any(f"{value:.{len(text.partition('.')[2])}f}" == text for text in numbers), (name, value, numbers)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+)\)", TEXT))))
def test_links_lead_somewhere(target):
    """Every relative link of the README is a file of the project."""
    assert (ROOT / target).exists()
