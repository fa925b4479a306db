"""Certificates of an authority of the test's own, as PEM files."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_PEM = serialization.Encoding.PEM


@dataclass(frozen=True)
class Authority:
    """Issues certificates for 127.0.0.1 and localhost. `path` is its own."""

    path: Path
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def of(cls, directory: Path) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        built = _builder("test authority", key.public_key(), "test authority").add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        made = built.sign(key, hashes.SHA256())
        path = directory / "ca.pem"
        path.write_bytes(made.public_bytes(_PEM))
        return cls(path, made, key)

    def issue(self, directory: Path, name: str, password: bytes | None = None) -> tuple[Path, Path]:
        """The files `NAME.pem` and `NAME.key` of a new certificate for NAME."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        built = _builder(name, key.public_key(), "test authority").add_extension(
            x509.SubjectAlternativeName(names), critical=False
        )
        cert, secret = directory / f"{name}.pem", directory / f"{name}.key"
        cert.write_bytes(built.sign(self.key, hashes.SHA256()).public_bytes(_PEM))
        coded = (
            serialization.BestAvailableEncryption(password)
            if password
            else serialization.NoEncryption()
        )
        secret.write_bytes(key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, coded))
        return cert, secret


def _builder(name: str, key: ec.EllipticCurvePublicKey, issuer: str) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    subject, by = (
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in (name, issuer)
    )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
    )
