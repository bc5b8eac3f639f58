"""What `export_checkpoint` leaves on disk: all of a bundle, or nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from export import ExportError
from export.bundle_writer import export_checkpoint
from models.bundle import Bundle, BundleError, ParityCheck, load_bundle

from . import tiny


def state(directory: Path) -> dict[str, int]:
    """Every file below a directory with the time it was written."""
    return {str(path.relative_to(directory)): path.stat().st_mtime_ns for path in sorted(directory.rglob("*"))}


def test_the_bundle_is_whole(bundle: Bundle):
    """A written bundle loads, with parity at two batch sizes and two inputs for each output within its bound."""
    loaded = load_bundle(bundle.directory)
    assert loaded.manifest == bundle.manifest
    assert bundle.directory.name == "1"
    for name, graph in loaded.manifest.graphs.items():
        outputs = [tensor.name for tensor in loaded.card.networks[name].outputs]
        cases = {(check.output, check.rows, check.seed) for check in graph.parity}
        assert cases >= {(output, rows, seed) for output in outputs for rows in (1, 7) for seed in (0, 1)}
        assert graph.worst <= graph.bound <= 2e-5
    exported = loaded.manifest.exported
    assert exported["versions"].keys() >= {"torch", "onnx", "onnxscript", "onnxruntime"}
    assert len(exported["checkpoint"]) == len(exported["exporter"]) == 64
    assert not list(bundle.directory.parent.parent.glob(".*"))


def test_a_second_export_changes_nothing(bundle: Bundle, checkpoint: Path):
    """An unchanged checkpoint is found up to date and no file is touched."""
    repository = bundle.directory.parent.parent
    before = state(repository)
    outcome = export_checkpoint(checkpoint, repository)
    assert not outcome.fresh
    assert outcome.bundle == bundle
    assert state(repository) == before


def test_versions(tmp_path: Path, scale_checkpoint: Path):
    """A changed checkpoint becomes the next version; another one overwrites a version only by force."""
    repository = tmp_path / "repository"
    first = export_checkpoint(scale_checkpoint, repository).bundle
    changed = tiny.save(tmp_path / "changed", {"scale": tiny.forward_spec("scale")}, seed=1, name="scale")
    before = state(first.directory)
    second = export_checkpoint(changed, repository).bundle
    assert (first.manifest.version, second.manifest.version) == (1, 2)
    with pytest.raises(ExportError, match="another checkpoint"):
        export_checkpoint(changed, repository, version=1)
    assert state(first.directory) == before
    assert export_checkpoint(changed, repository, version=1, force=True).fresh
    assert load_bundle(first.directory).manifest.exported["checkpoint"] == second.manifest.exported["checkpoint"]
    assert sorted(path.name for path in (repository / "scale").iterdir()) == ["1", "2"]


def test_a_damaged_bundle_is_written_again(tmp_path: Path, scale_checkpoint: Path):
    """Being up to date includes that the files are whole."""
    repository = tmp_path / "repository"
    bundle = export_checkpoint(scale_checkpoint, repository).bundle
    bundle.graph_path("scale").write_bytes(b"")
    with pytest.raises(BundleError):
        load_bundle(bundle.directory)
    assert export_checkpoint(scale_checkpoint, repository).fresh
    assert load_bundle(bundle.directory).manifest.version == 1


def test_a_missed_bound_writes_nothing(tmp_path: Path, scale_checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    """A graph beyond its bound is refused by network, output, rows, error and bound, and leaves nothing behind."""
    repository = tmp_path / "repository"
    far = ParityCheck(output="output", rows=1, seed=0, error=1e-3)
    monkeypatch.setattr("export.network.measure_parity", lambda *_, **__: (far,))
    with pytest.raises(ExportError) as refusal:
        export_checkpoint(scale_checkpoint, repository)
    message = str(refusal.value)
    assert all(
        part in message for part in ("network 'scale'", "output 'output'", "1 rows", "by 0.001", "bound is 2e-05")
    )
    assert not repository.exists()


def test_a_graph_as_near_to_double_precision_as_torch_is_accepted(
    tmp_path: Path, scale_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
):
    """Where the bound is missed, twice torch's own error takes its place in the manifest; beyond that it is refused."""
    errors = iter((1.9e-3, 2.1e-3))
    monkeypatch.setattr(
        "export.network.measure_parity",
        lambda *_, **__: (ParityCheck(output="output", rows=7, seed=1, error=next(errors)),),
    )
    asked = []
    monkeypatch.setattr("export.network.own_error", lambda *where: asked.append(where[-2:]) or 1e-3)
    graph = export_checkpoint(scale_checkpoint, tmp_path / "a").bundle.manifest.graphs["scale"]
    assert (graph.bound, graph.worst) == (2e-3, 1.9e-3)
    with pytest.raises(ExportError, match=r"by 0\.0021, the bound is 2e-05, and torch .* by 0\.001"):
        export_checkpoint(scale_checkpoint, tmp_path / "b")
    assert asked == [(7, 1), (7, 1)]


def test_a_branch_on_the_batch_size_is_refused(tmp_path: Path):
    """A trace follows one branch, so parity is measured beyond the batch size where the module takes another one."""
    checkpoint = tiny.save(tmp_path / "checkpoint", {"branch": tiny.forward_spec("batchbranch")})
    with pytest.raises(ExportError, match="21 rows"):
        export_checkpoint(checkpoint, tmp_path / "repository")


def test_batch_invariance_is_recorded(tmp_path: Path, bundle: Bundle):
    """A network whose rows see each other is recorded as such, and one that is row by row as invariant."""
    checkpoint = tiny.save(tmp_path / "checkpoint", {"company": tiny.forward_spec("company")})
    manifest = export_checkpoint(checkpoint, tmp_path / "repository").bundle.manifest
    assert not manifest.graphs["company"].batch_invariant
    assert bundle.manifest.graphs["denoiser"].batch_invariant


def test_a_crash_leaves_the_old_version(tmp_path: Path, scale_checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    """A write that fails half way leaves the repository as it was."""
    repository = tmp_path / "repository"
    bundle = export_checkpoint(scale_checkpoint, repository).bundle
    before = state(repository / "scale")

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space"):
        export_checkpoint(scale_checkpoint, repository, force=True)
    assert state(repository / "scale") == before
    assert [path.name for path in repository.iterdir()] == ["scale"]
    assert load_bundle(bundle.directory)


def test_wrong_weights_are_refused(tmp_path: Path, scale_checkpoint: Path):
    """A weight file that is not the one described is named, and nothing is written."""
    weights = scale_checkpoint / "scale.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(BundleError, match=r"scale\.safetensors.*SHA-256"):
        export_checkpoint(scale_checkpoint, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize("name", ["../outside", "a/b", "", "manifest.json\0"])
def test_a_network_name_cannot_leave_the_bundle(tmp_path: Path, scale_checkpoint: Path, name: str):
    """Network names become file names, so they are held to one."""
    path = scale_checkpoint / "checkpoint.json"
    card = json.loads(path.read_text())
    card["networks"] = {name: card["networks"]["scale"]}
    path.write_text(json.dumps(card))
    with pytest.raises(ExportError, match="cannot name a file"):
        export_checkpoint(scale_checkpoint, tmp_path / "repository")
