"""TLS from outside: who is served, new certificates, and options and files that a server does not start with."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from server.cli import main, parse
from server.client import FewstepClient, FewstepError
from server.config import Security

from ..certificates import Authority, Pair
from ..conftest import ROOT
from ..running import RunningServer, running_server
from .secured import ALICE, bearer, refusal, sample


def test_tls_serves_those_who_trust_its_ca_and_nobody_in_the_clear(
    guarded: RunningServer, tmp_path_factory: pytest.TempPathFactory
):
    """With the CA a call is answered; without TLS, or with another CA, there is no connection."""
    assert guarded.sample(sample(), metadata=bearer(ALICE)).nfe == 1
    stranger = Authority(tmp_path_factory.mktemp("stranger"))
    for credentials in (None, grpc.ssl_channel_credentials(stranger.pem)):
        with guarded.open_channel(credentials) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            error = refusal(check, health_pb2.HealthCheckRequest(), timeout=10)
            assert error.code() == grpc.StatusCode.UNAVAILABLE


def test_old_tls_is_refused(guarded: RunningServer, authority: Authority):
    """The handshake takes TLS 1.2 and newer."""

    def handshake(version: ssl.TLSVersion) -> str | None:
        context = ssl.create_default_context(cafile=authority.path)
        context.set_alpn_protocols(["h2"])
        context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            context.minimum_version = context.maximum_version = version
        host, port = guarded.address.split(":")
        with (
            socket.create_connection((host, int(port)), 10) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secured,
        ):
            return secured.version()

    assert handshake(ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
    assert handshake(ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
    # The server's doing, with or without an alert: a client that cannot speak it says "no protocols available".
    with pytest.raises((ssl.SSLError, ConnectionError), match=r"(?i)alert protocol version|EOF|reset"):
        handshake(ssl.TLSVersion.TLSv1_1)


def test_mutual_tls_asks_for_the_clients_certificate(one_model: Path, authority: Authority, pair: Pair, tmp_path: Path):
    """A certificate of the client CA is let in; none, and one of another CA, are not."""
    security = Security(pair.certificate, pair.key, authority.path)
    own, foreign = authority.issue("own"), Authority(tmp_path, "foreign").issue("foreign-client")
    with running_server(
        one_model, security=security, credentials=grpc.ssl_channel_credentials(authority.pem, *own.read())
    ) as server:
        assert server.sample(sample()).nfe == 1
        with FewstepClient(server.address, tls_ca=authority.path, certificate=own.certificate, key=own.key) as client:
            assert client.sample("digits-ddpm", steps=1).nfe == 1
        for credentials in ((authority.pem,), (authority.pem, *foreign.read())):
            with server.open_channel(grpc.ssl_channel_credentials(*credentials)) as channel:
                check = health_pb2_grpc.HealthStub(channel).Check
                assert refusal(check, health_pb2.HealthCheckRequest(), timeout=10).code() == grpc.StatusCode.UNAVAILABLE


def test_a_new_certificate_is_served_without_a_restart(one_model: Path, tmp_path: Path):
    """New connections get the pair that is on disk now; those that are open go on with theirs."""
    old, new = Authority(tmp_path, "old"), Authority(tmp_path, "new")
    pair = old.issue("server")
    security = Security(pair.certificate, pair.key)
    with running_server(one_model, security=security, credentials=grpc.ssl_channel_credentials(old.pem)) as server:
        assert server.sample(sample()).nfe == 1
        pair.replace(new.issue("renewed"))
        deadline = time.monotonic() + 10
        while True:
            with server.open_channel(grpc.ssl_channel_credentials(new.pem)) as channel:
                try:
                    health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
                    break
                except grpc.RpcError:
                    assert time.monotonic() < deadline
                    threading.Event().wait(0.2)  # the files are looked at once a second
        assert server.sample(sample()).nfe == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "{everywhere}"], "tls_certificate"),
        (["--tls-certificate", "{good}"], "tls_key"),
        (["--tls-key", "{good}"], "tls_certificate"),
        (["--tls-client-ca", "{good}"], "tls_client_ca"),
        (["--client-rows", "0"], "client_rows"),
        (["--client-requests-per-second", "-1"], "client_requests_per_second"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Exit code 2 before anything is loaded, with the option's name."""
    names = {"everywhere": "0.0.0.0", "good": tmp_path / "x.pem"}  # noqa: S104 - refused
    with pytest.raises(SystemExit) as caught:
        parse(["--repository", str(tmp_path), *(option.format(**names) for option in options)])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tls-certificate", "{missing}", "--tls-key", "{key}"], "tls_certificate: {missing}: No such file"),
        (["--tls-certificate", "{certificate}", "--tls-key", "{missing}"], "tls_key: {missing}: No such file"),
        (["--tls-certificate", "{certificate}", "--tls-key", "{other}"], "tls_key: {other} is not the key"),
        (["--tokens", "{missing}"], "tokens: {missing}: No such file"),
        (["--tokens", "{malformed}"], "tokens: {malformed}: "),
    ],
)
def test_bad_security_files_are_refused_at_the_start(
    options: list[str],
    message: str,
    pair: Pair,
    authority: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """Exit code 2 before a model is loaded, with the option and the file."""
    malformed = tmp_path / "malformed"
    malformed.touch(mode=0o600)
    malformed.write_text("[clients.alice")
    names = {
        "missing": tmp_path / "missing", "malformed": malformed, "certificate": pair.certificate, "key": pair.key,
        "other": authority.issue("other").key,
    }  # fmt: skip
    arguments = ["--repository", "/nonexistent", "--port", "0", "--metrics-port", "0", *options]
    monkeypatch.setattr(sys, "argv", ["server", *(argument.format(**names) for argument in arguments)])
    assert main() == 2
    assert message.format(**names) in capsys.readouterr().err


def test_the_process_serves_what_its_flags_say(one_model: Path, authority: Authority, pair: Pair, tokens: Path):
    """One real process with TLS and tokens answers its client, and says nothing of tokens on its output."""
    command = [
        sys.executable, "-m", "server", "--repository", str(one_model), "--port", "0", "--metrics-port", "0",
        "--tls-certificate", str(pair.certificate), "--tls-key", str(pair.key), "--tokens", str(tokens),
        "--log-level", "debug",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("ready "), process.communicate(timeout=30)
        address = line.split()[1].removeprefix("grpc=")
        with FewstepClient(address, tls_ca=authority.path, token=ALICE) as client:
            assert client.status().ready
        with FewstepClient(address, tls_ca=authority.path, token="wrong" * 8) as client, pytest.raises(FewstepError):
            client.status()
        process.terminate()
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0
        assert ALICE not in out + err
        assert "wrong" * 8 not in out + err
    finally:
        process.kill()
        process.communicate()
