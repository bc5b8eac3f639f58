"""Starts a peer as a process of its own on a free loopback port, and holds it still while another one is measured."""

from __future__ import annotations

import os
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

import grpc

from protos import inference_pb2 as oip

from ..process import ServerFailed, ServingProcess
from ..server_process import ServerProcess
from .environments import library_path, python_of
from .registry import Peer
from .serving import HOST, free_port

START_TIMEOUT = 180.0
"""Seconds: Ray starts half a dozen processes, on two cores that others may use too."""
STOP_TIMEOUT = 30.0
_ASK_TIMEOUT = 2.0
_SERVICE = "/inference.GRPCInferenceService/"


class PeerProcess(ServingProcess):
    """A peer that is not fewstep. address: HOST:PORT, once started."""

    clean_codes = (0, -signal.SIGTERM, 128 + signal.SIGTERM)

    def __init__(
        self, peer: Peer, repository: Path, log: Path, arguments: Sequence[str] = (), *, models: Sequence[str]
    ) -> None:
        """models: names of the models that must be there before it is ready, as its protocol has them.

        Raises:
            PeerEnvironmentError: its environment is not installed.
        """
        python = Path(sys.executable) if peer.environment is None else python_of(peer.environment)
        port = free_port()
        self.peer = peer
        self.address = f"{HOST}:{port}"
        self._models = models
        command = [str(python), "-m", f"bench.peers.{peer.module}", "--repository", str(repository.resolve())]
        super().__init__(
            peer.title,
            [*command, "--port", str(port), *peer.arguments, *arguments],
            log,
            environment=_variables(python, peer),
            start_timeout=START_TIMEOUT,
            stop_timeout=STOP_TIMEOUT,
        )

    def _look_ready(self) -> bool:
        return _answers_http(self.address, self.peer.health) if self.peer.health else self._has_models()

    def _has_models(self) -> bool:
        with grpc.insecure_channel(self.address, [("grpc.enable_http_proxy", 0)]) as channel:
            server = channel.unary_unary(
                f"{_SERVICE}ServerReady",
                oip.ServerReadyRequest.SerializeToString,
                oip.ServerReadyResponse.FromString,
            )
            model = channel.unary_unary(
                f"{_SERVICE}ModelReady", oip.ModelReadyRequest.SerializeToString, oip.ModelReadyResponse.FromString
            )
            try:
                return server(oip.ServerReadyRequest(), timeout=_ASK_TIMEOUT).ready and all(
                    model(oip.ModelReadyRequest(name=name), timeout=_ASK_TIMEOUT).ready for name in self._models
                )
            except grpc.RpcError:
                return False


def start(
    peer: Peer, repository: Path, log: Path, arguments: Sequence[str] = (), *, models: Sequence[str]
) -> PeerProcess | ServerProcess:
    """The process of a peer, or of fewstep itself, not yet started.

    Raises:
        PeerEnvironmentError: its environment is not installed.
    """
    if peer.module is None:
        return ServerProcess(repository, log, [*peer.arguments, *arguments])
    return PeerProcess(peer, repository, log, arguments, models=models)


def hold(process: ServingProcess) -> None:
    """Stop all processes of a server where they are (SIGSTOP): what is idle must not take the cores from what runs."""
    _signal(process, signal.SIGSTOP)


def release(process: ServingProcess) -> None:
    """Let a held server go on."""
    _signal(process, signal.SIGCONT)


def _signal(process: ServingProcess, number: signal.Signals) -> None:
    for pid in process.family():
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            if pid == process.pid:
                raise ServerFailed(f"{process.log}: the server has ended") from None


def _answers_http(address: str, path: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{address}{path}", timeout=_ASK_TIMEOUT) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _variables(python: Path, peer: Peer) -> Mapping[str, str]:
    # One thread where a library would take all cores beside the engine's own.
    variables = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return {**variables, **library_path(python), **peer.variables}
