"""Signatures of OCI's own signer are taken; whatever is changed in them or the request is not."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path
from typing import Any

import oci
import pytest
import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import assume
from hypothesis import given as drawn
from hypothesis import strategies as st

from stacked.api.signatures import BODY_DIGEST, Verified, check_digest, verify
from stacked.errors import NotAuthenticated
from stacked.keys import Principal, fingerprint, read_public

PRIVATE = rsa.generate_private_key(public_exponent=65537, key_size=2048)
ALICE = Principal(
    "ocid1.tenancy.oc1..t", "ocid1.user.oc1..alice", fingerprint(PRIVATE.public_key())
)
NOW = 1_767_225_600.0  # of all that is signed and checked here: 2026-01-01T00:00:00Z
DATE = formatdate(NOW, usegmt=True)
URL = "http://127.0.0.1:8080"
GENERIC = ("date", "(request-target)", "host")
WITH_BODY = (*GENERIC, "content-length", "content-type", BODY_DIGEST)

PEM = PRIVATE.private_bytes(
    serialization.Encoding.PEM,
    serialization.PrivateFormat.PKCS8,
    serialization.NoEncryption(),
).decode()
SIGNER = oci.signer.Signer(
    ALICE.tenancy, ALICE.user, ALICE.fingerprint, None, private_key_content=PEM
)


@dataclass(frozen=True)
class Sent:
    """A request as it stands on the wire."""

    method: str
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes = b""

    def with_header(self, name: str, *values: bytes) -> Sent:
        kept = tuple(pair for pair in self.headers if pair[0] != name.encode())
        return replace(self, headers=(*kept, *((name.encode(), value) for value in values)))

    def header(self, name: str) -> bytes:
        return dict(self.headers)[name.encode()]


def signed(method: str, path: str, body: bytes | None = None) -> Sent:
    """What OCI's signer makes of a request, dated at ``NOW``."""
    dated = {"date": DATE}
    made = requests.Request(method, URL + path, headers=dated, data=body, auth=SIGNER).prepare()
    headers = tuple((n.lower().encode(), _bytes(v)) for n, v in made.headers.items())
    return Sent(method, made.path_url.encode(), headers, body or b"")


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


def by_hand(
    method: str = "GET",
    target: bytes = b"/20190101/models",
    names: Sequence[str] = GENERIC,
    given: dict[str, bytes] | None = None,
    **parameters: str,
) -> Sent:
    """A signature that OCI's signer would not make."""
    values = {"date": DATE.encode(), "host": b"here", **(given or {})}
    lines = [
        b"(request-target): " + method.lower().encode() + b" " + target
        if name == "(request-target)"
        else name.encode() + b": " + values.get(name, b"")
        for name in map(str.lower, names)
    ]
    made = PRIVATE.sign(b"\n".join(lines), PKCS1v15(), SHA256())
    pairs = {
        "version": "1",
        "keyId": str(ALICE),
        "algorithm": "rsa-sha256",
        "headers": " ".join(names),
        "signature": base64.b64encode(made).decode(),
        **parameters,
    }
    text = "Signature " + ", ".join(f'{name}="{value}"' for name, value in pairs.items())
    wire = {**values, "authorization": text.encode()}
    return Sent(method, target, tuple((name.encode(), value) for name, value in wire.items()))


def check(sent: Sent, *, now: float | None = None, covers_body: bool | None = None) -> Verified:
    """Verify all of a request, its body too."""
    covered = sent.method in ("POST", "PUT") if covers_body is None else covers_body
    keys = {str(ALICE): PRIVATE.public_key()}
    seen = verify(
        sent.method,
        sent.target,
        sent.headers,
        keys.get,
        now=NOW if now is None else now,
        skew_seconds=300,
        covers_body=covered,
    )
    check_digest(hashlib.sha256(sent.body).digest(), seen.digest)
    return seen


@contextmanager
def refused(words: str) -> Iterator[None]:
    with pytest.raises(NotAuthenticated, match=words):
        yield


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/20190101/models?compartmentId=c&page=a%2Bb%3D", None),
        ("GET", "//20190101/models/a%20b", None),
        ("HEAD", "/20190101/models/m/artifact/content", None),
        ("DELETE", "/20190101/modelGroups/g", None),
        ("POST", "/20190101/modelGroups", b'{"createType":"CREATE"}'),
        ("POST", "/20190101/modelGroups/g/actions/activate", b""),
        ("PUT", "/20190101/modelDeployments/d", b'{"displayName":"\xc3\xa9"}'),
    ],
)
def test_what_the_sdk_signs_is_taken(method: str, path: str, body: bytes | None) -> None:
    sent = signed(method, path, body)
    seen = check(sent)
    assert seen.principal == ALICE
    assert (seen.digest is None) == (body is None)


def test_parameters_and_names_may_stand_in_any_order() -> None:
    assert check(by_hand()).principal == ALICE
    assert check(by_hand(names=("host", "(request-target)", "date"))).principal == ALICE


def test_x_date_does_instead_of_date() -> None:
    date = DATE.encode()
    names = ("x-date", "(request-target)", "host")
    assert check(by_hand(names=names, given={"x-date": date})).principal == ALICE
    with refused("date is .* behind"):
        check(by_hand(names=names, given={"x-date": formatdate(NOW - 900, usegmt=True).encode()}))


def test_names_in_the_list_are_compared_without_case() -> None:
    names = ("Date", "(Request-Target)", "HOST")
    assert check(by_hand(names=names)).principal == ALICE
    with refused("a name twice"):
        check(by_hand(headers="date Date (request-target) host"))


RECORDED = json.loads((Path(__file__).parent / "recorded" / "typescript.json").read_bytes())


@pytest.mark.parametrize("request_", RECORDED["requests"], ids=lambda one: one["method"])
def test_what_the_typescript_sdk_signs_is_taken(request_: dict[str, Any]) -> None:
    """Requests as `oci-common` 2.142.1 sent them; it lists `Content-Type Content-Length`."""
    key, headers, body = RECORDED["publicKey"], request_["headers"], request_["body"].encode()

    def verified(body: bytes) -> Verified:
        seen = verify(
            request_["method"],
            request_["target"].encode(),
            [(name.encode(), value.encode()) for name, value in headers.items()],
            lambda id: read_public(key.encode()),
            now=parsedate_to_datetime(headers["x-date"]).timestamp(),
            skew_seconds=1,
            covers_body=request_["method"] != "GET",
        )
        check_digest(hashlib.sha256(body).digest(), seen.digest)
        return seen

    seen = verified(body)
    assert seen.principal.user == "ocid1.user.oc1..typescript"
    assert (seen.digest is None) is (request_["method"] == "GET")
    if seen.digest is not None:
        with refused("body"):
            verified(body + b" ")


# -- changed on the way ---------------------------------------------------------------------

POSTED = signed("POST", "/20190101/modelGroups?compartmentId=c", b'{"createType":"CREATE"}')
LISTED = signed("GET", "/20190101/models?compartmentId=c&limit=10")


def flipped(data: st.DataObject, value: bytes) -> bytes:
    """The value with one bit of it the other way."""
    at = data.draw(st.integers(0, len(value) - 1))
    bit = data.draw(st.integers(0, 7))
    changed = bytearray(value)
    changed[at] ^= 1 << bit
    return bytes(changed)


@drawn(st.data())
def test_no_bit_of_the_body_may_be_another(data: st.DataObject) -> None:
    with refused("body"):
        check(replace(POSTED, body=flipped(data, POSTED.body)))


@drawn(st.sampled_from([POSTED, LISTED]), st.data())
def test_no_bit_of_the_target_may_be_another(sent: Sent, data: st.DataObject) -> None:
    with pytest.raises(NotAuthenticated):
        check(replace(sent, target=flipped(data, sent.target)))


@drawn(st.sampled_from(["authorization", *(n for n in WITH_BODY if n[0] != "(")]), st.data())
def test_no_bit_of_a_signed_header_may_be_another(name: str, data: st.DataObject) -> None:
    value = flipped(data, POSTED.header(name))
    assume(value.strip(b" \t") == value)  # no server gives these on
    # The one place where a capital says the same: the list of names.
    assume(re.sub(rb'headers="[^"]*"', lambda m: m[0].lower(), value) != POSTED.header(name))
    with pytest.raises(NotAuthenticated):
        check(POSTED.with_header(name, value))


@drawn(st.sampled_from(["authorization", *(n for n in WITH_BODY if n[0] != "(")]), st.data())
def test_nothing_may_be_put_into_or_cut_off_a_signed_header(name: str, data: st.DataObject) -> None:
    value = POSTED.header(name)
    at = data.draw(st.integers(0, len(value)))
    more = data.draw(st.binary(min_size=0, max_size=4))
    changed = value[:at] + more + (b"" if not more else value[at:])
    assume(changed.strip(b" \t") != value)
    # The one space that may stand between two parameters.
    assume(changed.replace(b'", ', b'",') != value)
    with pytest.raises(NotAuthenticated):
        check(POSTED.with_header(name, changed))


@drawn(st.binary(max_size=400))
def test_any_authorization_is_refused_with_a_sentence(value: bytes) -> None:
    with pytest.raises(NotAuthenticated):
        check(POSTED.with_header("authorization", value))
    with pytest.raises(NotAuthenticated):
        check(POSTED.with_header("authorization", b"Signature " + value))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD"])
def test_a_signature_for_one_method_does_not_do_for_another(method: str) -> None:
    with refused("does not fit"):
        check(replace(LISTED, method=method), covers_body=False)


def test_a_signature_of_another_key_is_refused() -> None:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    made = other.sign(b"date: x", PKCS1v15(), SHA256())
    with refused("does not fit"):
        check(by_hand(signature=base64.b64encode(made).decode()))


# -- what must be in it ---------------------------------------------------------------------


@pytest.mark.parametrize("name", GENERIC)
def test_date_target_and_host_must_be_signed(name: str) -> None:
    left = tuple(each for each in GENERIC if each != name)
    with refused(f"leaves out {name.replace('(', '.').replace(')', '.')}"):
        check(by_hand(names=left))


@pytest.mark.parametrize("name", ["content-length", "content-type", BODY_DIGEST])
def test_a_body_must_be_signed(name: str) -> None:
    body = {
        "content-length": b"0",
        "content-type": b"application/json",
        BODY_DIGEST: base64.b64encode(hashlib.sha256(b"").digest()),
    }
    sent = by_hand("POST", names=WITH_BODY, given=body)
    assert check(sent).digest is not None
    left = tuple(each for each in WITH_BODY if each != name)
    with refused(f"leaves out {name}"):
        check(by_hand("POST", names=left, given=body))


def test_the_body_of_an_upload_need_not_be_signed_and_counts_where_it_is() -> None:
    assert check(by_hand("POST"), covers_body=False).digest is None
    assert check(POSTED, covers_body=False).digest is not None


@pytest.mark.parametrize("seconds", [-299, 0, 299])
def test_a_clock_may_be_five_minutes_off(seconds: int) -> None:
    assert check(by_hand(), now=int(NOW) + seconds).principal == ALICE


@pytest.mark.parametrize(("seconds", "words"), [(302, "behind"), (-302, "ahead of")])
def test_a_date_too_far_off_is_refused_and_says_by_how_much(seconds: int, words: str) -> None:
    with refused(rf"date is 30\d s {words} the server's clock"):
        check(by_hand(), now=NOW + seconds)


@pytest.mark.parametrize(
    "date", [b"now", b"", b"Thu, 99 Foo 2026 00:00:00 GMT", b"\xff", b"1" * 99]
)
def test_a_date_that_is_none_is_refused(date: bytes) -> None:
    with refused("date is not a date"):
        check(by_hand(given={"date": date}))


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"algorithm": "hmac-sha256"}, "algorithm must be rsa-sha256"),
        ({"algorithm": "rsa-sha1"}, "algorithm must be rsa-sha256"),
        ({"version": "2"}, "version must be 1"),
        ({"keyId": "ST$eyJhbGciOi"}, "security tokens"),
        ({"keyId": "ocid1.tenancy.oc1..t/ocid1.user.oc1..u"}, "tenancy/user/fingerprint"),
        ({"keyId": f"{ALICE.tenancy}/{ALICE.user}/zz"}, "not a fingerprint"),
        ({"keyId": str(replace(ALICE, user="ocid1.user.oc1..bob"))}, "no key is registered"),
        ({"signature": "!"}, "not base64"),
        ({"signature": "YWJj"}, "does not fit"),
        ({"headers": "date (request-target) host host"}, "a name twice"),
        ({"headers": "date  (request-target) host"}, "not a list of names"),
        ({"headers": "d\u00e4te (request-target) host"}, "not ASCII"),
        ({"headers": " ".join(f"n{at}" for at in range(40))}, "too many"),
        ({"headers": "date (request-target) host x-absent"}, "x-absent is signed and not there"),
        ({"extra": "1"}, "unknown"),
    ],
)
def test_a_header_that_is_not_as_it_must_be_is_refused(
    parameters: dict[str, str], words: str
) -> None:
    with refused(words):
        check(by_hand(**parameters))


def test_a_parameter_that_is_missing_or_stands_twice_is_refused() -> None:
    text = by_hand().header("authorization")
    with refused("version is missing"):
        check(by_hand().with_header("authorization", text.replace(b'version="1", ', b"")))
    with refused("twice"):
        check(by_hand().with_header("authorization", text + b',version="1"'))


@pytest.mark.parametrize("name", ["authorization", "date", "host", BODY_DIGEST])
def test_a_signed_header_that_stands_twice_is_refused(name: str) -> None:
    value = POSTED.header(name)
    with refused("appears 2 times"):
        check(POSTED.with_header(name, value, value))


def test_absurd_sizes_are_refused() -> None:
    with refused("more than 8192"):
        check(by_hand().with_header("authorization", b"Signature " + b"a" * 9000))


def test_no_authorization_says_what_to_do() -> None:
    sent = replace(LISTED, headers=tuple(p for p in LISTED.headers if p[0] != b"authorization"))
    with refused("sign it as OCI's SDK does"):
        check(sent)


def test_a_basic_or_bearer_header_is_refused() -> None:
    for text in (b"Basic YTpi", b"Bearer abc", b"signature version"):
        with refused("scheme"):
            check(LISTED.with_header("authorization", text))


def test_the_same_signature_in_another_base64_is_refused() -> None:
    """256 bytes leave four bits of the last character unused: only zeros may stand there."""
    text = by_hand().header("authorization").decode()
    start = text.index('signature="') + len('signature="')
    end = text.index('"', start)
    told = text[start:end]
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    other = told[:-3] + letters[letters.index(told[-3]) + 1] + "=="
    assert base64.b64decode(other) == base64.b64decode(told)
    with refused("not base64"):
        check(by_hand().with_header("authorization", text.replace(told, other).encode()))


def test_no_sentence_tells_a_signature() -> None:
    for change in (by_hand(version="2"), replace(LISTED, target=b"/other")):
        with pytest.raises(NotAuthenticated) as error:
            check(change)
        said: Any = change.header("authorization").decode().split('signature="')[1][:20]
        assert said not in str(error.value)
