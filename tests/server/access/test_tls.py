"""Certificates: which are refused, and when they are read again."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from server.access.tls import Certificates
from server.config import ConfigError, Security

from ...certificates import Authority
from .calling import Clock


def test_bad_certificates_are_refused_by_option_and_file(authority: Authority, tmp_path: Path):
    """Missing, not PEM, another's key, a key with a password or open to others: each names its option and file."""
    good, other = authority.issue("good"), authority.issue("other")
    text = tmp_path / "text"
    text.touch(mode=0o600)
    text.write_text("hello")
    locked = tmp_path / "locked.key"
    locked.touch(mode=0o600)
    locked.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIH0MF8=\n-----END ENCRYPTED PRIVATE KEY-----\n")
    shared = tmp_path / "shared.key"
    shared.write_bytes(good.key.read_bytes())
    shared.chmod(0o644)
    missing = tmp_path / "missing"
    cases: list[tuple[Path, Path, Path | None, str]] = [
        (missing, good.key, None, "tls_certificate: .*missing: No such file"),
        (good.certificate, missing, None, "tls_key: .*missing: No such file"),
        (good.certificate, good.key, missing, "tls_client_ca: .*missing: No such file"),
        (text, good.key, None, "tls_certificate: .*text holds no PEM certificate"),
        (good.certificate, text, None, "tls_key: .*text holds no PEM private key"),
        (good.certificate, good.key, text, "tls_client_ca: .*text holds no PEM certificate"),
        (good.certificate, other.key, None, r"tls_key: .*other\.key is not the key of the certificate .*good\.crt"),
        (good.certificate, locked, None, "tls_key: .*without a password"),
        (good.certificate, shared, None, r"tls_key: .*shared\.key is open to other users \(mode 0644\)"),
        (good.certificate, tmp_path, None, "tls_key: .*not a regular file"),
    ]
    for certificate, key, client_ca, message in cases:
        with pytest.raises(ConfigError, match=message):
            Certificates(Security(certificate, key, client_ca))


def test_certificates_are_read_again_when_they_change(
    authority: Authority, clock: Clock, caplog: pytest.LogCaptureFixture
):
    """A new pair is taken over once; half of one, and a file that is gone, leave the old pair in use with a warning."""
    pair = authority.issue("rotated")
    certificates = Certificates(Security(pair.certificate, pair.key), clock=clock)

    def later() -> Any:
        clock.now += 2
        return certificates.changed()

    assert later() is None
    pair.replace(authority.issue("newer"))
    assert certificates.changed() is None, "looked at again within the second"
    assert later() is not None
    assert later() is None
    newest = authority.issue("newest")
    with caplog.at_level(logging.WARNING):
        pair.certificate.write_bytes(newest.certificate.read_bytes())
        assert later() is None
        assert later() is None
    assert [record.message for record in caplog.records if "not the key" in record.message] != []
    assert len(caplog.records) == 1, "one warning a change, not one a look"
    pair.key.write_bytes(newest.key.read_bytes())
    assert later() is not None
    pair.key.unlink()
    assert later() is None
