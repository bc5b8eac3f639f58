"""Bundles from elsewhere: nothing in one can leave its folder or run."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import onnx
import pytest

from export.runtime import EngineError
from export.runtime.onnxruntime import OnnxRuntime
from models.bundle import BundleError, load_bundle, sha256_of

from ..conftest import ROOT


@pytest.fixture
def bundle(repository: Path, tmp_path: Path) -> Path:
    """A copy of a real bundle."""
    source = next((repository / "digits-ddpm").iterdir())
    target = tmp_path / "models" / "digits-ddpm" / source.name
    shutil.copytree(source, target)
    return target


def test_names_in_a_manifest_cannot_leave_the_bundle(bundle: Path):
    """Every way to write another directory into a file name is refused by the schema, before any file is opened."""
    good = (bundle / "manifest.json").read_text()
    names = [
        "../secret",
        "/etc/passwd",
        "a/b",
        "..",
        ".",
        "",
        ".hidden",
        "a\\b",
        "a\x00b",
        "a\n",
        "~/x",
        "C:x",
        "a" * 200,
    ]
    for name in names:
        for kind in ("denoiser.onnx", "denoiser.safetensors"):
            assert good.count(f'"{kind}"') == 1
            (bundle / "manifest.json").write_text(good.replace(f'"{kind}"', json.dumps(name)))
            with pytest.raises(BundleError, match="regex"):
                load_bundle(bundle)


def test_links_cannot_leave_the_bundle(bundle: Path, tmp_path: Path):
    """A file of a bundle may be a link within it, not out of it, even to a file with the right hash."""
    outside = tmp_path / "outside.onnx"
    file = bundle / "denoiser.onnx"
    file.rename(outside)
    file.symlink_to(outside)
    with pytest.raises(BundleError, match=r"denoiser\.onnx: is a link that leaves the bundle"):
        load_bundle(bundle)
    file.unlink()
    outside.rename(bundle / "blob")
    file.symlink_to("blob")
    load_bundle(bundle)
    (tmp_path / "current").symlink_to(bundle)
    load_bundle(tmp_path / "current")
    (bundle / "manifest.json").rename(tmp_path / "manifest.json")
    (bundle / "manifest.json").symlink_to(tmp_path / "manifest.json")
    with pytest.raises(BundleError, match=r"manifest\.json: is a link"):
        load_bundle(bundle)
    file.unlink()
    file.symlink_to(file)
    (bundle / "manifest.json").unlink()
    (tmp_path / "manifest.json").rename(bundle / "manifest.json")
    with pytest.raises(BundleError, match="no such file"):
        load_bundle(bundle)


@pytest.mark.parametrize("location", ["/etc/hostname", "../../secret", "manifest.json"])
def test_a_bundle_whose_graph_reads_another_file_is_refused(bundle: Path, location: str):
    """External data is refused even where every hash of the bundle is right, and the other file lies within it."""
    path = bundle / "denoiser.onnx"
    before = sha256_of(path)
    model = onnx.load(path)
    tensor = next(tensor for tensor in model.graph.initializer if len(tensor.raw_data) > 64)
    size = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="length", value=str(size))
    path.write_bytes(model.SerializeToString())
    manifest = bundle / "manifest.json"
    manifest.write_text(manifest.read_text().replace(before, sha256_of(path)))
    loaded = load_bundle(bundle)
    with pytest.raises(EngineError, match="External data"):
        OnnxRuntime(1).load(loaded, "denoiser")


UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "copyreg"}


def test_nothing_is_ever_unpickled():
    """No source of this project imports an unpickler, calls torch.load, or lets numpy unpickle."""
    checked = 0
    for package in ("server", "kernels", "export", "models", "bench", "protos"):
        for path in sorted((ROOT / package).rglob("*.py")):
            checked += 1
            for node in ast.walk(ast.parse(path.read_text(), str(path))):
                where = f"{path}:{getattr(node, 'lineno', 0)}"
                if isinstance(node, ast.Import):
                    assert not {name.name.partition(".")[0] for name in node.names} & UNPICKLERS, where
                elif isinstance(node, ast.ImportFrom):
                    assert (node.module or "").partition(".")[0] not in UNPICKLERS, where
                elif isinstance(node, ast.Call):
                    for keyword in node.keywords:
                        harmless = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                        assert keyword.arg != "allow_pickle" or harmless, where
                    assert ast.unparse(node.func) not in ("torch.load", "yaml.load", "eval", "exec"), where
    assert checked > 50
