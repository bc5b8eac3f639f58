"""The generated modules are those of the .proto file, and import under every supported runtime."""

from __future__ import annotations

import re
import subprocess
import sys

from .conftest import ROOT


def test_generated_modules_are_up_to_date(tmp_path):
    """Regenerating with the pinned grpcio-tools gives the committed files, byte for byte."""
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", ".", *outputs, "protos/fewstep.proto"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    for name in ("fewstep_pb2.py", "fewstep_pb2.pyi", "fewstep_pb2_grpc.py"):
        assert (tmp_path / "protos" / name).read_text() == (ROOT / "protos" / name).read_text(), f"{name}: run make protos"


def test_generated_code_asks_for_no_newer_runtime_than_declared():
    """The gencode is of the protobuf 6 generation and takes grpcio from 1.74 on, as pyproject says."""
    text = (ROOT / "protos" / "fewstep_pb2.py").read_text()
    assert re.search(r"Protobuf Python Version: 6\.\d+\.\d+", text)
    assert "GRPC_GENERATED_VERSION = '1.74.0'" in (ROOT / "protos" / "fewstep_pb2_grpc.py").read_text()
