"""Signing keys: what is written, for whose eyes, what is refused, and the commands."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import zlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import oci
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from typer.testing import CliRunner

from stacked import keys
from stacked.cli import app
from stacked.errors import KeyFileInvalid
from stacked.keys import (
    Principal,
    Rights,
    create,
    create_signing,
    keys_dir,
    read_directory,
    read_public,
    remove,
    rotate,
    tokens,
)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def pem_of(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def names(data_dir: Path) -> list[str]:
    found, faults = read_directory(keys_dir(data_dir))
    assert not faults
    return [each.name for each in found]


def test_the_written_file_is_one_that_the_sdk_takes(tmp_path: Path) -> None:
    made = create_signing(tmp_path, "alice")
    config = oci.config.from_file(str(made.sdk_config))
    oci.config.validate_config(config)
    assert Path(config["key_file"]).is_absolute()
    signer = oci.signer.Signer.from_config(config)
    assert signer.api_key == str(made.principal)
    (found,) = read_directory(keys_dir(tmp_path))[0]
    assert found.public is not None
    assert found.public.principal == made.principal
    assert found.public.key == signer.private_key.public_key()
    assert found.public.key.key_size == 2048


def test_the_key_file_is_labelled_for_ocis_command_line(tmp_path: Path) -> None:
    """Which otherwise warns at every call; readers of PEM pass over what follows the key."""
    written = create_signing(tmp_path, "alice").private.read_bytes()
    assert written.endswith(b"-----END PRIVATE KEY-----\nOCI_API_KEY\n")
    assert isinstance(serialization.load_pem_private_key(written, None), rsa.RSAPrivateKey)


def test_tenancy_user_region_and_length_are_as_asked(tmp_path: Path) -> None:
    tenancy, user = "ocid1.tenancy.oc1..aaaa", "ocid1.user.oc1..bbbb"
    said = {"tenancy": tenancy, "user": user, "region": "eu-frankfurt-1"}
    made = create_signing(tmp_path, "a", **said, bits=3072)  # type: ignore[arg-type]
    config = oci.config.from_file(str(made.sdk_config))
    assert (config["tenancy"], config["user"]) == (tenancy, user)
    assert config["region"] == "eu-frankfurt-1"
    assert read_directory(keys_dir(tmp_path))[0][0].public.key.key_size == 3072


def test_what_is_secret_is_its_owners_alone(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o755)
    old = os.umask(0)
    try:
        made = create_signing(tmp_path, "alice")
    finally:
        os.umask(old)
    for path in (made.private, made.sdk_config, made.public):
        assert mode(path) == 0o600, path
    for path in (made.private.parent, made.private.parent.parent, made.public.parent):
        assert mode(path) == 0o700, path


def test_the_public_half_tells_nothing_of_the_private_one(tmp_path: Path) -> None:
    made = create_signing(tmp_path, "alice")
    assert "PRIVATE" not in made.public.read_text()
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".new-")]


def test_a_name_that_is_taken_is_refused_unless_forced(tmp_path: Path) -> None:
    first = create_signing(tmp_path, "alice")
    private = first.private.read_bytes()
    with pytest.raises(KeyFileInvalid, match="already; --force"):
        create_signing(tmp_path, "alice")
    assert first.private.read_bytes() == private
    second = create_signing(tmp_path, "alice", force=True)
    assert second.principal.fingerprint != first.principal.fingerprint
    assert names(tmp_path) == ["alice"]
    assert second.private.read_bytes() != private


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../a", "a.b", "-a", "a b", "é", "a" * 65, "anyone", "nobody"]
)
def test_a_name_that_could_be_a_path_is_refused(tmp_path: Path, name: str) -> None:
    for act in (create_signing, create, rotate, remove):
        with pytest.raises(KeyFileInvalid, match="not a name"):
            act(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wrong",
    [{"tenancy": "acme"}, {"user": "a/b.c.d.e"}, {"user": 'x".y.z.a.b'}, {"region": "a\nb"}],
)
def test_owners_that_no_sdk_takes_are_refused(tmp_path: Path, wrong: dict[str, str]) -> None:
    with pytest.raises(KeyFileInvalid):
        create_signing(tmp_path, "alice", **wrong)  # type: ignore[arg-type]
    assert names(tmp_path) == []


def test_a_key_that_is_removed_is_gone_with_its_private_half(tmp_path: Path) -> None:
    made = create_signing(tmp_path, "alice")
    create_signing(tmp_path, "bob")
    remove(tmp_path, "alice")
    assert names(tmp_path) == ["bob"]
    assert not made.private.exists()
    with pytest.raises(KeyFileInvalid, match="no key 'alice'"):
        remove(tmp_path, "alice")


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"publicKey": 1}', "\xff", '{"publicKey": ""}']
)
def test_a_file_that_is_no_key_is_told_and_the_others_are_read(
    tmp_path: Path, content: str
) -> None:
    create_signing(tmp_path, "alice")
    (keys_dir(tmp_path) / "broken.json").write_text(content, encoding="latin-1")
    found, faults = read_directory(keys_dir(tmp_path))
    assert [each.name for each in found] == ["alice"]
    assert len(faults) == 1
    assert "broken.json" in faults[0]


def test_a_file_cannot_claim_another_fingerprint(tmp_path: Path) -> None:
    made = create_signing(tmp_path, "alice")
    tree = json.loads(made.public.read_text())
    made.public.write_text(json.dumps({**tree, "fingerprint": "00:" * 15 + "00"}))
    (found,) = read_directory(keys_dir(tmp_path))[0]
    assert found.public is not None
    assert found.public.principal == made.principal


def test_only_rsa_keys_of_a_sound_length_are_read() -> None:
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    curve = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(ValueError, match="1024"):
        read_public(pem_of(weak))
    with pytest.raises(ValueError, match="not an RSA key"):
        read_public(pem_of(curve))
    private = b"-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY-----"
    with pytest.raises(ValueError, match="private key") as error:
        read_public(private)
    assert "abc" not in str(error.value)


def test_the_fingerprint_is_the_one_that_oci_shows() -> None:
    """MD5 of the DER form, as `openssl rsa -pubout -outform DER | openssl md5 -c` prints it."""
    assert keys.fingerprint(read_public(PUBLIC.encode())) == PRINTED


PUBLIC = (
    "-----BEGIN PUBLIC KEY-----\n"
    "MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAnDwb95Ra00c2m3vb1nS0\n"
    "Oz+C7Pg1tG3CNWNS2FmjCz3ALXF0LeFYmeMRwQM/oxalCdnMheda3eM8dvJmNFf+\n"
    "W9uTTlIt916tA6UZRKllqeAgxwq3QN05doLQmLGwk1CyHIaFVvBmEa3UM1Ivni6r\n"
    "7jsB9nCQ3QtAdDbfB/uMd0Iudl73KwJzy1gXXmVUJG504ipT7rMlQBz9fL8FeSww\n"
    "/t4tklrkK0L4Z4gjiNxiaAq1twjFCNEhIjU/ckBTkbxEj4OfpoEtsf7iAuaoDtW6\n"
    "bre6DxUY5vOC/1TwpJA9JTDEQvlyGcnjwXwZVMobExlxWjNfo4gudKHQslkmthpB\n"
    "DwIDAQAB\n"
    "-----END PUBLIC KEY-----\n"
)
PRINTED = "51:16:c8:0b:9f:36:7e:59:f9:12:a6:36:cd:f9:69:85"


@pytest.mark.parametrize("text", ["", "a/b", "a/b/c", "ST$abc", "x" * 2000])
def test_a_key_id_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Principal.parse(text)


# -- tokens ---------------------------------------------------------------------------------


def test_of_a_token_its_hash_and_its_rights_are_stored_and_nothing_else(tmp_path: Path) -> None:
    token = create(tmp_path, "app", Rights(keys=frozenset({"sql"}), requests_per_minute=60))
    place = keys_dir(tmp_path) / "app.json"
    text = place.read_text()
    _, id, secret = token.split("_")
    assert not any(part in text for part in (token, secret, secret[:64], secret[:16]))
    tree = json.loads(text)
    assert tree.pop("timeCreated").endswith("Z")
    assert tree == {
        "admin": False,
        "keys": ["sql"],
        "requestsPerMinute": 60,
        "weight": 1.0,
        "batch": False,
        "secrets": [{"id": id, "sha256": hashlib.sha256(token.encode()).hexdigest()}],
    }
    assert (mode(place), mode(place.parent)) == (0o600, 0o700)
    assert list(tmp_path.rglob("*")) == [place.parent, place]


def test_a_scanner_finds_tokens_and_discards_what_only_looks_like_one() -> None:
    """The pattern of docs/security.md, and the checksum that needs no server."""
    made = [tokens.make()[0] for _ in range(100)]
    found = re.findall(r"stk_[0-9a-f]{16}_[0-9a-f]{72}", f"key={', '.join(made)};")
    assert found == made == sorted(set(made), key=made.index)
    for token in made:
        assert int(token[-8:], 16) == zlib.crc32(token[:-8].encode())
        assert tokens.id_of(token) == token[4:20]
        typo = token[:40] + ("0" if token[40] != "0" else "1") + token[41:]
        assert tokens.id_of(typo) is None


def test_a_rotation_keeps_the_rights_and_refuses_what_it_cannot_rotate(tmp_path: Path) -> None:
    rights = Rights(admin=True, concurrency=2)
    first = create(tmp_path, "app", rights)
    (before,) = read_directory(keys_dir(tmp_path))[0]
    assert rotate(tmp_path, "app") != first
    (after,) = read_directory(keys_dir(tmp_path))[0]
    assert (after.caller, after.created) == (before.caller, before.created)
    assert len(after.secrets) == 1
    assert after.secrets != before.secrets
    create_signing(tmp_path, "alice")
    create(tmp_path, "old", Rights(time_expires=datetime.now(UTC) - timedelta(seconds=1)))
    (keys_dir(tmp_path) / "broken.json").write_text("{}")
    for name, words in (
        ("bob", "no key 'bob'"),
        ("alice", "signing key"),
        ("old", "has expired"),
        ("broken", "not the file of a credential"),
    ):
        with pytest.raises(KeyFileInvalid, match=words):
            rotate(tmp_path, name)


def test_a_token_and_a_signing_key_share_their_names(tmp_path: Path) -> None:
    made = create_signing(tmp_path, "alice")
    with pytest.raises(KeyFileInvalid, match="already; --force"):
        create(tmp_path, "alice")
    create(tmp_path, "alice", force=True)
    assert not made.private.exists()
    (found,) = read_directory(keys_dir(tmp_path))[0]
    assert found.public is None


# -- the commands ---------------------------------------------------------------------------


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["keys", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_commands_make_show_and_remove_a_key(tmp_path: Path) -> None:
    where = ("--data-dir", str(tmp_path))
    printed = run("create", "alice", "--oci", *where)
    lines = [line for line in printed.splitlines() if line.strip()]
    assert len(lines) == 3
    said: dict[str, object] = {}
    exec(lines[0], {"oci": oci}, said)  # noqa: S102 - it is meant to be pasted
    config = said["config"]
    assert isinstance(config, dict)
    shown = run("list", *where)
    assert "alice" in shown
    run("remove", "alice", *where)
    assert "alice" not in run("list", *where)


def test_a_refusal_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(KeyFileInvalid):
        CliRunner().invoke(
            app, ["keys", "remove", "bob", "--data-dir", str(tmp_path)], catch_exceptions=False
        )


def test_a_token_is_printed_alone_and_never_listed(tmp_path: Path) -> None:
    where = ("--data-dir", str(tmp_path))
    held = ("--allow", "sql, triage", "--expires", "30d", "--requests-per-minute", "60")
    made = CliRunner().invoke(app, ["keys", "create", "app", *held, *where])
    token = made.stdout.strip()
    assert tokens.id_of(token) is not None
    assert "shown once" in made.stderr
    again = CliRunner().invoke(app, ["keys", "rotate", "app", "--grace", "1h", *where])
    assert tokens.id_of(again.stdout.strip()) is not None
    run("create", "ops", "--admin", *where)
    run("create", "robot", "--batch", "--weight", "0.5", *where)
    shown = run("list", *where)
    assert "0.5 weight, batch" in shown
    for part in ("app", "inference", "sql, triage", "60 requests/min", "ops", "all"):
        assert part in shown
    assert not any(text.split("_")[2] in shown for text in (token, again.stdout.strip()))


@pytest.mark.parametrize(
    "wrong",
    [
        ("--allow", ""),  # a variable that is not set must not allow everything
        ("--allow", "a,,b"),
        ("--allow", "a", "--admin"),
        ("--admin", "--oci"),
        ("--inference-only",),
        ("--expires", "soon"),
        ("--expires", "0d"),  # it would never end
        ("--requests-per-minute", "0"),
        ("--weight", "nan"),
    ],
)
def test_rights_that_cannot_be_meant_are_wrong_usage(
    tmp_path: Path, wrong: tuple[str, ...]
) -> None:
    done = CliRunner().invoke(app, ["keys", "create", "a", *wrong, "--data-dir", str(tmp_path)])
    assert (done.exit_code, done.stdout) == (2, "")
    assert list(tmp_path.iterdir()) == []
