"""What the client keeps to itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.client import FewstepClient
from server.client.channel import Credentials, read_token

from ...certificates import Authority
from .calling import ALICE, BOB


def test_the_client_keeps_its_token_from_the_wire_in_the_clear():
    """A token goes to another machine with TLS only, unless that is asked for; it never shows in a repr or message."""
    with pytest.raises(ValueError, match=r"in the clear to example\.org:8001"):
        FewstepClient("example.org:8001", token=ALICE)
    FewstepClient("example.org:8001", token=ALICE, insecure=True).close()
    FewstepClient("example.org:8001", token=ALICE, tls=True).close()
    FewstepClient("127.0.0.1:8001", token=ALICE).close()
    assert ALICE not in repr(Credentials(token=ALICE))
    for bad in ("", f"{ALICE}\n", f"{ALICE} {BOB}", f"{ALICE}ä"):
        with pytest.raises(ValueError, match="token") as caught:
            FewstepClient(token=bad)
        assert ALICE not in str(caught.value)


def test_the_clients_files_are_checked(tmp_path: Path, authority: Authority):
    """A certificate without its key, and files that are missing, are refused when the client is made."""
    pair = authority.issue("client")
    with pytest.raises(ValueError, match="certificate and key"):
        FewstepClient(certificate=pair.certificate)
    with pytest.raises(FileNotFoundError):
        FewstepClient(tls_ca=tmp_path / "missing")
    (tmp_path / "token").write_text(f"\n{ALICE}\n")
    assert read_token(tmp_path / "token") == ALICE
    for text in ("", " \n", f"{ALICE} {BOB}"):
        (tmp_path / "token").write_text(text)
        with pytest.raises(ValueError, match="one token"):
            read_token(tmp_path / "token")
