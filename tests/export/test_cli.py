"""`python -m export` as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

import export.__main__
import export.network
from export.__main__ import main
from export.runtime import gpu
from models.bundle import ParityCheck, load_bundle, sha256_of

from . import fake_tensorrt, tiny

ROOT = Path(__file__).parents[2]


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def edit(checkpoint: Path, change) -> None:
    path = checkpoint / "checkpoint.json"
    card = json.loads(path.read_text())
    change(card)
    path.write_text(json.dumps(card))


def missing(checkpoint: Path) -> str:
    (checkpoint / "checkpoint.json").unlink()
    return "checkpoint.json: no such file"


def broken(checkpoint: Path) -> str:
    (checkpoint / "checkpoint.json").write_text('{"format": 1,')
    return "checkpoint.json"


def unknown_field(checkpoint: Path) -> str:
    edit(checkpoint, lambda card: card.update(colour="red"))
    return "colour"


def other_hash(checkpoint: Path) -> str:
    edit(checkpoint, lambda card: card["modules"]["scale"].update(sha256="0" * 64))
    return "scale.safetensors: SHA-256"


def truncated(checkpoint: Path) -> str:
    weights = checkpoint / "scale.safetensors"
    weights.write_bytes(weights.read_bytes()[:20])
    edit(checkpoint, lambda card: card["modules"]["scale"].update(sha256=sha256_of(weights)))
    return "scale.safetensors: is no safetensors file that can be read: "


def unknown_architecture(checkpoint: Path) -> str:
    edit(checkpoint, lambda card: card["modules"]["scale"].update(architecture="resnet"))
    return "'resnet' is unknown; known: "


def unknown_config(checkpoint: Path) -> str:
    edit(checkpoint, lambda card: card["modules"]["scale"].update(config={"depth": 3}))
    return "depth"


def wrong_shape(checkpoint: Path) -> str:
    edit(checkpoint, lambda card: card["networks"]["scale"]["outputs"][0].update(shape=[2, 8, 8]))
    return "network 'scale': the module returns float32[3, 1, 8, 8] for 3 rows, the card says float32[3, 2, 8, 8]"


def unknown_input(checkpoint: Path) -> str:
    edit(checkpoint, lambda card: card["networks"]["scale"]["inputs"].append({"name": "volume"}))
    return "network 'scale': the module does not run on the inputs that the card describes"


@pytest.mark.parametrize(
    "damage",
    [
        *(missing, broken, unknown_field, other_hash, truncated),
        *(unknown_architecture, unknown_config, wrong_shape, unknown_input),
    ],
)
def test_a_bad_checkpoint_is_an_error_of_one_line(capsys, tmp_path, scale_checkpoint, damage):
    """Exit code 2, a message that names the file or network, no stack trace, nothing written."""
    expected = damage(scale_checkpoint)
    code, out, err = run(capsys, scale_checkpoint, "--repository", tmp_path / "repository")
    assert code == 2
    assert expected in err
    assert "Traceback" not in err
    assert out == ""
    assert not (tmp_path / "repository").exists()


def test_a_missing_directory_is_named(capsys, tmp_path):
    """A path that is no directory is an error that names it."""
    code, _, err = run(capsys, tmp_path / "nowhere", "--repository", tmp_path / "repository")
    assert code == 2
    assert f"{tmp_path / 'nowhere'}: no such directory" in err


def test_a_repository_that_cannot_be_is_named(capsys, tmp_path, scale_checkpoint):
    """A file where the repository should be is found before anything is exported."""
    (tmp_path / "file").write_text("")
    code, _, err = run(capsys, scale_checkpoint, "--repository", tmp_path / "file" / "repository")
    assert code == 2
    assert f"{tmp_path / 'file'}: is no directory" in err


def test_a_missed_bound_is_an_error(capsys, tmp_path, monkeypatch):
    """A network beyond its bound is named with output, rows, error and bound."""
    checkpoint = tiny.save(tmp_path / "checkpoint", {"denoised": tiny.forward_spec("scale")})
    far = ParityCheck(output="output", rows=1, seed=0, error=1e-3)
    monkeypatch.setattr(export.network, "measure_parity", lambda *_, **__: (far,))
    code, _, err = run(capsys, checkpoint, "--repository", tmp_path / "repository")
    assert code == 2
    assert "network 'denoised': output 'output' with 1 rows" in err
    assert "bound is 2e-05" in err


@pytest.mark.parametrize("version", ["0", "-1", "two"])
def test_a_bad_version_is_refused(version, tmp_path, capsys):
    """Versions are whole numbers from 1."""
    with pytest.raises(SystemExit) as stop:
        main(["somewhere", "--repository", str(tmp_path), f"--version={version}"])
    assert stop.value.code == 2
    assert version in capsys.readouterr().err


def test_the_table_shows_each_network(capsys, checkpoint, bundle):
    """The command ends with one line a network: size, nodes, error, bound and batch invariance."""
    code, out, _ = run(capsys, checkpoint, "--repository", bundle.directory.parent.parent)
    assert code == 0
    assert "up to date" in out
    for name, graph in bundle.manifest.graphs.items():
        (line,) = [line for line in out.splitlines() if line.startswith(f"tiny/{name} ")]
        assert f"{graph.worst:.1e}" in line
        assert ("yes" if graph.batch_invariant else "no") in line.split()


def test_finding_a_bundle_up_to_date_imports_no_torch(repository: Path):
    """The second run of a command takes a moment because it loads no framework."""
    code = (
        "import sys; from export.__main__ import main; "
        f"code = main([{str(ROOT / 'models/zoo/digits-ddpm')!r}, '--repository', {str(repository)!r}]); "
        "heavy = {'torch', 'onnx', 'onnxruntime', 'diffusers', 'numpy'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "up to date" in done.stdout


def test_several_checkpoints_at_a_time_are_the_same_bundles(capsys, repository: Path):
    """With --jobs the table and the bundles are those of one after the other."""
    zoo = ROOT / "models" / "zoo"
    both = (zoo / "digits-ddpm", zoo / "checkerboard-vdrme", "--repository", repository)
    alone, together = run(capsys, *both), run(capsys, *both, "--jobs", 2)
    assert together[:2] == alone[:2]
    assert together[0] == 0
    assert together[1].count("up to date") == 2


def test_an_error_in_another_process_is_one_line_too(capsys, tmp_path, repository: Path):
    """What fails in a process of its own is named as if it had failed here."""
    good = ROOT / "models" / "zoo" / "digits-ddpm"
    code, _, err = run(capsys, good, tmp_path / "nowhere", "--repository", repository, "--jobs", 2)
    assert code == 2
    assert f"{tmp_path / 'nowhere'}: no such directory" in err
    assert "Traceback" not in err


def test_the_precision_is_shown_and_is_one_of_three(capsys, tmp_path, scale_checkpoint):
    """The table and the manifest say what a graph computes in; another word is refused with the choices."""
    repository = tmp_path / "repository"
    code, out, _ = run(capsys, scale_checkpoint, "--repository", repository, "--precision", "float16")
    assert code == 0
    (line,) = [line for line in out.splitlines() if line.startswith("scale/scale ")]
    assert "float16" in line.split()
    assert load_bundle(repository / "scale" / "1").manifest.graphs["scale"].precision == "float16"
    with pytest.raises(SystemExit) as stop:
        main([str(scale_checkpoint), "--repository", str(repository), "--precision", "float8"])
    assert stop.value.code == 2
    assert "bfloat16" in capsys.readouterr().err


def test_tensorrt_that_is_not_there_is_found_before_the_export(capsys, tmp_path, scale_checkpoint, monkeypatch):
    """Neither the package nor a GPU: exit code 2, one line, nothing written."""
    arguments = (scale_checkpoint, "--repository", tmp_path / "repository", "--tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    code, _, err = run(capsys, *arguments)
    assert (code, "--tensorrt needs a package that is not installed" in err) == (2, True)
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, _, err = run(capsys, *arguments)
    assert (code, "--tensorrt needs a CUDA device" in err) == (2, True)
    assert not (tmp_path / "repository").exists()


def test_tensorrt_engines_are_built_ahead(capsys, tmp_path, scale_checkpoint, monkeypatch):
    """With --tensorrt each network has an engine for this GPU beside its graph, which a server then finds."""
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt)
    monkeypatch.delitem(sys.modules, "export.to_tensorrt", raising=False)
    monkeypatch.setattr(export.__main__, "_gpu", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(gpu, "describe", lambda device: gpu.Gpu("Fake", "9.0"))
    monkeypatch.setattr(gpu, "selected", lambda device: nullcontext())
    repository = tmp_path / "repository"
    code, _, err = run(capsys, scale_checkpoint, "--repository", repository, "--tensorrt", "--largest-batch", 4)
    assert code == 0, err
    header = (repository / "scale" / "1" / "scale.fake.engine").read_bytes().partition(b"\n")[0]
    assert json.loads(header)["key"]["batches"] == "1,2,4"
    assert run(capsys, scale_checkpoint, "--repository", repository)[1].count("up to date") == 1
    sys.modules.pop("export.to_tensorrt")
