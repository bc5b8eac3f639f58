"""The generated modules are those of the .proto files, and import under every supported runtime."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT

FILES = ("fewstep", "inference")


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make protos` makes."""
    target = tmp_path_factory.mktemp("protos")
    outputs = [f"--{kind}_out={target}" for kind in ("python", "pyi", "grpc_python")]
    files = [f"protos/{name}.proto" for name in FILES]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", "-I", ".", *outputs, *files], cwd=ROOT, check=True)
    module = target / "protos" / "inference_pb2.py"
    own_pool = module.read_text().replace("_descriptor_pool.Default()", "_descriptor_pool.DescriptorPool()")
    module.write_text(own_pool)
    return target / "protos"


@pytest.mark.parametrize("name", FILES)
def test_generated_modules_are_up_to_date(generated: Path, name: str):
    """Regenerating with the pinned grpcio-tools gives the committed files, byte for byte."""
    for file in (f"{name}_pb2.py", f"{name}_pb2.pyi", f"{name}_pb2_grpc.py"):
        assert (generated / file).read_text() == (ROOT / "protos" / file).read_text(), f"{file}: run make protos"


@pytest.mark.parametrize("name", FILES)
def test_generated_code_asks_for_no_newer_runtime_than_declared(name: str):
    """The gencode is of the protobuf 6 generation and takes grpcio from 1.74 on, as pyproject says."""
    text = (ROOT / "protos" / f"{name}_pb2.py").read_text()
    assert re.search(r"Protobuf Python Version: 6\.\d+\.\d+", text)
    assert "GRPC_GENERATED_VERSION = '1.74.0'" in (ROOT / "protos" / f"{name}_pb2_grpc.py").read_text()


@pytest.mark.parametrize("first", ["tritonclient.grpc", "server.api.oip"])
def test_triton_client_and_server_fit_in_one_process(first: str):
    """Both register the names of the Open Inference Protocol; whichever comes second imports all the same."""
    code = f"import {first}, tritonclient.grpc, server.api.oip"
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, check=True, timeout=60)
