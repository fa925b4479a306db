"""HTTPS: certificates that are replaced under traffic, and files that cannot serve."""

from __future__ import annotations

import logging
import os
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from stacked.api.tls import Certificate
from stacked.client import Client, ClientError
from stacked.config import TlsConfig
from stacked.errors import ConfigInvalid
from tests.api.certificates import Authority
from tests.api.doors import served


async def _answer(request: Request) -> PlainTextResponse:
    return PlainTextResponse(request.url.scheme)


APP = Starlette(routes=[Route("/{path:path}", _answer)])


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.of(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def files(authority: Authority, tmp_path: Path) -> TlsConfig:
    cert, key = authority.issue(tmp_path, "first")
    return TlsConfig(cert=str(cert), key=str(key))


@pytest.fixture
def url(files: TlsConfig) -> Iterator[str]:
    with served(APP, Certificate(files).context) as url:
        yield url


def trusting(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(authority.path))


def name_served(url: str, authority: Authority, server_name: str = "127.0.0.1") -> str:
    """The name in the certificate that a new connection gets."""
    port = int(url.rpartition(":")[2])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        trusting(authority).wrap_socket(plain, server_hostname=server_name) as connection,
    ):
        der = connection.getpeercert(binary_form=True)
        assert der is not None
        subject = x509.load_der_x509_certificate(der).subject
        return str(subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def replace(files: TlsConfig, cert: Path, key: Path) -> None:
    os.replace(cert, files.cert)
    os.replace(key, files.key)


def test_what_is_served_is_https_alone(url: str, authority: Authority) -> None:
    with httpx.Client(verify=trusting(authority)) as client:
        assert client.get(f"{url}/x").text == "https"
    with pytest.raises(httpx.TransportError):
        httpx.get(url.replace("https", "http"))
    with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
        httpx.get(url)


@pytest.mark.parametrize("server_name", ["127.0.0.1", "localhost"])
def test_a_new_certificate_serves_new_connections_and_old_ones_live(
    url: str, authority: Authority, files: TlsConfig, tmp_path: Path, server_name: str
) -> None:
    """Whether the client names the server (localhost) or not (an address)."""
    with httpx.Client(base_url=url, verify=trusting(authority)) as old:
        assert old.get("/").status_code == 200
        (connection,) = old._transport._pool.connections  # type: ignore[attr-defined]
        for name in ("second", "third"):
            replace(files, *authority.issue(tmp_path, name))
            assert name_served(url, authority, server_name) == name
            assert old.get("/").status_code == 200
        assert old._transport._pool.connections == [connection]  # type: ignore[attr-defined]


def test_files_that_do_not_fit_are_warned_of_and_the_last_pair_serves(
    url: str,
    authority: Authority,
    files: TlsConfig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cert, key = authority.issue(tmp_path, "second")
    with caplog.at_level(logging.WARNING):
        os.replace(cert, files.cert)  # and not yet its key
        assert [name_served(url, authority) for _ in range(3)] == ["first"] * 3
    assert caplog.text.count("the last certificate is still served") == 1
    os.replace(key, files.key)
    assert name_served(url, authority) == "second"
    for broken in (b"", b"not PEM"):
        Path(files.cert).write_bytes(broken)
        assert name_served(url, authority) == "second"
    Path(files.cert).unlink()
    assert name_served(url, authority) == "second"
    replace(files, *authority.issue(tmp_path, "third"))
    assert name_served(url, authority) == "third"


def test_files_that_cannot_serve_are_refused_at_start(
    authority: Authority, files: TlsConfig, tmp_path: Path
) -> None:
    _, other = authority.issue(tmp_path, "other")
    cert, locked = authority.issue(tmp_path, "locked", password=b"secret")
    (tmp_path / "empty").touch()
    for change, words in (
        ({"key": str(other)}, "not a certificate and its key"),
        ({"cert": str(tmp_path / "none")}, "No such file"),
        ({"cert": str(tmp_path / "empty")}, "not a certificate and its key"),
        ({"cert": str(cert), "key": str(locked)}, "needs a password"),
        ({"ca": str(tmp_path / "none")}, "server.tls.ca"),
        ({"ca": str(tmp_path / "empty")}, "server.tls.ca"),
    ):
        with pytest.raises(ConfigInvalid, match=words):
            Certificate(files.model_copy(update=change))


def test_clients_need_a_certificate_where_their_authority_is_named(
    authority: Authority, files: TlsConfig, tmp_path: Path
) -> None:
    tls = files.model_copy(update={"ca": str(authority.path)})
    known, stranger = trusting(authority), trusting(authority)
    known.load_cert_chain(*authority.issue(tmp_path, "client"))
    elsewhere = Authority.of(tmp_path)
    stranger.load_cert_chain(*elsewhere.issue(tmp_path, "stranger"))
    with served(APP, Certificate(tls).context) as url:
        with httpx.Client(verify=known) as client:
            assert client.get(url).status_code == 200
        for context in (stranger, trusting(authority)):
            with httpx.Client(verify=context) as client, pytest.raises(httpx.TransportError):
                client.get(url)


def test_a_client_that_is_trusted_no_more_does_not_come_back_by_its_session(
    authority: Authority, files: TlsConfig, tmp_path: Path
) -> None:
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(authority.path.read_bytes())
    client = trusting(authority)
    client.load_cert_chain(*authority.issue(tmp_path, "client"))

    def ask(port: int, session: ssl.SSLSession | None = None) -> tuple[bytes, ssl.SSLSession]:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
            client.wrap_socket(plain, server_hostname="localhost", session=session) as connection,
        ):
            connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            answer = connection.recv(100)
            assert connection.session is not None
            return answer, connection.session

    tls = files.model_copy(update={"ca": str(trusted)})
    with served(APP, Certificate(tls).context) as url:
        port = int(url.rpartition(":")[2])
        answer, session = ask(port)
        assert answer.startswith(b"HTTP/1.1 200")
        new = tmp_path / "new.pem"
        new.write_bytes(Authority.of(tmp_path).path.read_bytes())
        os.replace(new, trusted)
        for had in (session, None):
            try:
                answer, _ = ask(port, had)
            except OSError:
                continue
            assert answer == b""  # of TLS 1.3, the client is done before it is refused
        client.maximum_version = ssl.TLSVersion.TLSv1_2  # which resumes without tickets
        with pytest.raises(OSError, match=r"(?i)version|EOF|reset"):
            ask(port)


def test_our_client_trusts_the_authorities_it_is_given(
    url: str, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with Client(url) as client, pytest.raises(ClientError, match="SSL_CERT_FILE") as error:
        client.status()
    assert error.value.code == "CertificateInvalid"
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
    with Client(url) as client, pytest.raises(ClientError) as error:
        client.status()
    assert error.value.code == "NotStacked"  # it was reached, and answers otherwise
