"""A client's side of signed requests, with the config file of OCI's SDKs."""

from __future__ import annotations

import base64
import configparser
import hashlib
from collections.abc import Generator
from email.utils import formatdate
from pathlib import Path

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256

from stacked.errors import KeyFileInvalid

_GENERIC = ("date", "(request-target)", "host")
_OF_BODY = ("content-length", "content-type", "x-content-sha256")


class Signer(httpx.Auth):
    """Signs each request that an httpx client sends; its body too, unless that is a stream."""

    def __init__(self, key_id: str, key: rsa.RSAPrivateKey) -> None:
        self._key_id = key_id
        self._key = key

    @classmethod
    def from_file(cls, path: Path, profile: str = "DEFAULT") -> Signer:
        """The key that an SDK config file names. Raises KeyFileInvalid."""
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read_string(path.read_text(encoding="utf-8"))
            said = parser[profile]
            owner = "/".join(said[name] for name in ("tenancy", "user", "fingerprint"))
            return cls(owner, _private_key(path, said["key_file"], said.get("pass_phrase")))
        except KeyError as error:
            raise KeyFileInvalid(f"{path}: {error.args[0]} is missing") from error
        except (OSError, UnicodeDecodeError, configparser.Error) as error:
            raise KeyFileInvalid(f"{path}: cannot be read ({error})") from error

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        headers = request.headers
        headers["date"] = formatdate(usegmt=True)
        names: tuple[str, ...] = _GENERIC
        body = _body(request)
        if body or (body is not None and request.method in ("POST", "PUT", "PATCH")):
            names += _OF_BODY
            headers.setdefault("content-type", "application/json")
            headers.setdefault("content-length", str(len(body)))
            digest = hashlib.sha256(body).digest()
            headers["x-content-sha256"] = base64.b64encode(digest).decode()
        target = f"{request.method.lower()} {request.url.raw_path.decode('ascii')}"
        values = {"(request-target)": target}
        text = "\n".join(f"{name}: {values.get(name) or headers[name]}" for name in names)
        made = self._key.sign(text.encode(), PKCS1v15(), SHA256())
        headers["authorization"] = (
            f'Signature algorithm="rsa-sha256",headers="{" ".join(names)}",'
            f'keyId="{self._key_id}",signature="{base64.b64encode(made).decode()}",version="1"'
        )
        yield request


def _body(request: httpx.Request) -> bytes | None:
    """None for an upload, which is sent while it is read; servers accept it without a digest."""
    try:
        return request.content
    except httpx.RequestNotRead:
        return None


def _private_key(config: Path, name: str, phrase: str | None) -> rsa.RSAPrivateKey:
    path = config.parent / Path(name).expanduser()
    try:
        key = serialization.load_pem_private_key(
            path.read_bytes(), phrase.encode() if phrase else None
        )
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyFileInvalid(
            f"{path} is not a private key in PEM form, or its pass phrase is wrong"
        ) from error
    if not isinstance(key, rsa.RSAPrivateKey):
        raise KeyFileInvalid(f"{path} is not an RSA key")
    return key
