"""Fixtures of the tests from outside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import tritonclient.grpc as triton

from server.config import Security

from ..certificates import Authority, Pair
from ..running import RunningServer, running_server
from .secured import ALICE, BOB


@pytest.fixture
def client(server: RunningServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.address) as client:
        yield client


@pytest.fixture(scope="module")
def one_model(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a link to one of the models: servers start faster."""
    target = tmp_path_factory.mktemp("repository")
    (target / "digits-ddpm").symlink_to(repository / "digits-ddpm")
    return target


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    return authority.issue("server")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    path.touch(mode=0o600)
    path.write_text(
        f'[clients.alice]\ntokens = ["{ALICE}"]\nadministrator = true\n\n'
        f'[clients.bob]\ntokens = ["{BOB}"]\nrequests_per_second = 0.01\nburst = 2\nrows = 8\n'
    )
    return path


@pytest.fixture(scope="module")
def guarded(one_model: Path, authority: Authority, pair: Pair, tokens: Path) -> Iterator[RunningServer]:
    """A server with TLS and tokens."""
    security = Security(pair.certificate, pair.key, tokens=tokens)
    credentials = grpc.ssl_channel_credentials(authority.pem)
    with running_server(one_model, security=security, credentials=credentials) as running:
        yield running
