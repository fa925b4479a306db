"""A client's signatures: those that OCI's own signer makes, and taken by the server's check."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import httpx
import oci
import pytest
import requests

from stacked.api.signatures import check_digest, verify
from stacked.client import Client, ClientError
from stacked.errors import KeyFileInvalid, StackedError
from stacked.keys import PublicKey, create_signing, keys_dir, read_directory
from stacked.signing import Signer
from tests.wire import wire

HOST = "http://127.0.0.1:8080"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def config(data_dir: Path) -> Path:
    return create_signing(data_dir, "alice").sdk_config


def sent(config: Path, method: str, path: str, **more: Any) -> httpx.Request:
    """The request as it goes out."""
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200)

    auth = Signer.from_file(config)
    with httpx.Client(transport=httpx.MockTransport(answer), auth=auth) as http:
        http.request(method, HOST + path, **more)
    return seen[0]


def registered(data_dir: Path) -> PublicKey:
    (alice,) = read_directory(keys_dir(data_dir))[0]
    assert alice.public is not None
    return alice.public


@pytest.mark.parametrize(
    ("method", "path", "more"),
    [
        ("GET", "/20190101/models?a=b%2Fc+d&e=%C3%A9", {}),
        ("GET", "//models/a%20b", {}),
        ("DELETE", "/models/x", {}),
        ("POST", "/predict", {"json": {"prompt": "é"}}),
        ("POST", "/20190101/modelGroups/g/actions/activate", {}),
        ("PUT", "/x", {"content": b"bytes"}),
    ],
)
def test_the_servers_check_takes_it(
    config: Path, data_dir: Path, method: str, path: str, more: dict[str, Any]
) -> None:
    request = sent(config, method, path, **more)
    alice = registered(data_dir)
    seen = verify(
        request.method,
        request.url.raw_path,
        [(name.lower(), value) for name, value in request.headers.raw],
        {str(alice.principal): alice.key}.get,
        now=time.time(),
        skew_seconds=60,
        covers_body=method in ("POST", "PUT"),
    )
    assert seen.principal == alice.principal
    check_digest(hashlib.sha256(request.content).digest(), seen.digest)


def test_an_upload_is_signed_without_its_body_which_is_not_read(
    config: Path, data_dir: Path
) -> None:
    left = iter([b"a", b"b"])
    place = f"{HOST}/stacked/adapters/sha256:ab"
    request = httpx.Request("PUT", place, content=left, headers={"content-length": "2"})
    assert next(Signer.from_file(config).auth_flow(request)) is request
    assert list(left) == [b"a", b"b"]
    alice = registered(data_dir)
    seen = verify(
        request.method,
        request.url.raw_path,
        [(name.lower(), value) for name, value in request.headers.raw],
        {str(alice.principal): alice.key}.get,
        now=time.time(),
        skew_seconds=60,
        covers_body=False,
    )
    assert (seen.principal, seen.digest) == (alice.principal, None)


def test_it_is_what_ocis_signer_makes(config: Path) -> None:
    request = sent(config, "POST", "/predict?x=1", content=b"{}")
    theirs = oci.signer.Signer.from_config(oci.config.from_file(str(config)))
    headers = {name: request.headers[name] for name in ("date", "content-type")}
    made = requests.Request(
        "POST", f"{HOST}/predict?x=1", data=b"{}", headers=headers, auth=theirs
    ).prepare()
    assert request.headers["authorization"] == made.headers["authorization"]


def test_the_client_signs_where_a_file_is_named_and_only_there(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with wire() as told:
        told.answer = {"choices": []}
        for path in ("", str(config)):
            monkeypatch.setenv("STACKED_OCI_CONFIG", path)
            with Client(told.url) as client:
                client.predict("sql", {"prompt": "x"})
            signed = told.headers.get("authorization", "")
            assert signed.startswith("Signature ") is bool(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "DEFAULT|tenancy"),
        ("no section", "cannot be read"),
        ("[DEFAULT]\ntenancy=t\nuser=u\nkey_file=key.pem", "fingerprint is missing"),
        ("[DEFAULT]\ntenancy=t\nuser=u\nfingerprint=f\nkey_file=none.pem", "cannot be read"),
        ("[DEFAULT]\ntenancy=t\nuser=u\nfingerprint=f\nkey_file=wrong.pem", "not a private key"),
    ],
)
def test_a_file_that_names_no_key_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    (tmp_path / "wrong.pem").write_text("secret")
    with pytest.raises(KeyFileInvalid, match=words) as error:
        Signer.from_file(path)
    assert "secret" not in str(error.value)
    with pytest.raises(KeyFileInvalid, match="cannot be read"):
        Signer.from_file(tmp_path / "none")


def test_the_client_says_that_its_file_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STACKED_OCI_CONFIG", str(tmp_path / "none"))
    with pytest.raises(StackedError, match="cannot be read"):
        Client(HOST)
    assert not issubclass(KeyFileInvalid, ClientError)
