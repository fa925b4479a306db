"""The credentials of a running server: what counts at once, what is left out, and what is valid."""

from __future__ import annotations

import json
import logging
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from stacked.api import keyring
from stacked.api.keyring import KeyRing
from stacked.callers import Allowance, Caller
from stacked.errors import ConfigInvalid, KeyFileInvalid, NotAuthenticated
from stacked.keys import Rights, create, create_signing, files, keys_dir, remove, rotate


@dataclass
class Clock:
    """Seconds since the epoch, in a year of its own."""

    now: float = datetime(2030, 1, 1, tzinfo=UTC).timestamp()

    def __call__(self) -> float:
        return self.now

    def after(self, **span: float) -> datetime:
        return datetime.fromtimestamp(self.now, UTC) + timedelta(**span)


def ring_of(data_dir: Path, clock: Clock | None = None) -> KeyRing:
    return KeyRing({}, keys_dir(data_dir), clock=clock or Clock())


def refused(ring: KeyRing, token: str) -> str:
    with pytest.raises(NotAuthenticated) as error:
        ring.bearer(token)
    return str(error.value)


# -- tokens ---------------------------------------------------------------------------------


def test_a_token_is_its_caller_with_all_that_was_granted(tmp_path: Path) -> None:
    rights = Rights(
        keys=frozenset({"sql", "triage"}),
        requests_per_minute=60,
        tokens_per_minute=1000,
        concurrency=2,
        weight=3,
    )
    token, admin = create(tmp_path, "app", rights), create(tmp_path, "ops", Rights(admin=True))
    ring = ring_of(tmp_path)
    keys = frozenset({"sql", "triage"})
    assert ring.bearer(token) == Caller("app", "", False, keys, Allowance(60, 1000, 2), 3.0)
    assert ring.bearer(admin) == Caller("ops", admin=True)
    assert ring.bearer(create(tmp_path, "plain")) == Caller("plain")


def test_every_other_token_is_refused_with_one_sentence(tmp_path: Path) -> None:
    """Whether its id is known, and whether it was valid once, does not show."""
    token, other = create(tmp_path, "app"), create(tmp_path / "elsewhere", "app")
    ring = ring_of(tmp_path)
    half = other.split("_")[2]
    said = {refused(ring, other), refused(ring, _signed(f"stk_{token.split('_')[1]}_{half[:64]}"))}
    remove(tmp_path, "app")
    said.add(refused(ring, token))
    assert said == {"the token is not valid here, or not any more"}


def _signed(head: str) -> str:
    """With the checksum of its own: found by its id, and compared."""
    return f"{head}{zlib.crc32(head.encode()):08x}"


@pytest.mark.parametrize("wrong", ["", "none", "sk-abc", "stk_", "é", "x" * 100_000])
def test_what_is_no_token_is_not_looked_up(tmp_path: Path, wrong: str) -> None:
    token = create(tmp_path, "app")
    ring = ring_of(tmp_path)
    for each in (wrong, token[:-1], token + "0", token.upper(), f" {token}"):
        assert "not one of `stacked keys create`" in refused(ring, each)


def test_a_rotated_token_works_for_its_grace_and_no_longer(tmp_path: Path) -> None:
    clock = Clock(datetime.now(UTC).timestamp())
    first = create(tmp_path, "app", Rights(keys=frozenset({"sql"})))
    ring = ring_of(tmp_path, clock)
    second = rotate(tmp_path, "app", grace=timedelta(hours=1))
    assert ring.bearer(first) == ring.bearer(second) == Caller("app", keys=frozenset({"sql"}))
    clock.now += 3700
    refused(ring, first)
    third = rotate(tmp_path, "app")
    refused(ring, second)
    assert ring.bearer(third).name == "app"


def test_what_has_expired_is_valid_no_longer_without_a_restart(tmp_path: Path) -> None:
    clock = Clock()
    rights = Rights(time_expires=clock.after(days=1))
    token, signing = create(tmp_path, "app", rights), create_signing(tmp_path, "alice", rights)
    ring = ring_of(tmp_path, clock)
    assert (ring.bearer(token).name, ring.signer(signing.principal).name) == ("app", "alice")
    clock.now += 86_401
    assert "'app' has expired" in refused(ring, token)
    with pytest.raises(NotAuthenticated, match="'alice' has expired"):
        ring.signer(signing.principal)


# -- files that come and go -----------------------------------------------------------------


def test_what_a_key_may_do_must_be_clear(tmp_path: Path) -> None:
    made = create_signing(tmp_path, "app", Rights())
    assert ring_of(tmp_path).signer(made.principal) == Caller("app", user=made.principal.user)
    tree = json.loads(made.public.read_text())
    for other in ({"admin": "true"}, {"admin": None}, {"keyz": ["sql"]}, {"keys": []}):
        made.public.write_text(json.dumps({**tree, **other}))
        with pytest.raises(ConfigInvalid, match=next(iter(other))):
            ring_of(tmp_path)


def test_a_change_counts_at_once_however_fast_it_follows(tmp_path: Path) -> None:
    """Also where the file system gives two changes the same time."""
    ring = ring_of(tmp_path)
    for turn in range(50):
        token = create(tmp_path, "app")
        assert ring.bearer(token).name == "app", turn
        again = rotate(tmp_path, "app")
        refused(ring, token)
        assert ring.bearer(again).name == "app", turn
        remove(tmp_path, "app")
        refused(ring, again)
    assert len(ring) == 0


def test_a_signing_key_counts_at_once_too(tmp_path: Path) -> None:
    first = create_signing(tmp_path, "alice")
    ring = ring_of(tmp_path)
    second = create_signing(tmp_path, "bob")
    assert ring.signing(str(second.principal)) is not None
    remove(tmp_path, "alice")
    assert ring.signing(str(first.principal)) is None
    assert len(ring) == 1


def test_files_that_have_not_changed_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        create(tmp_path, f"app{number}")
    ring, read, read_file = ring_of(tmp_path), [], files.read_file

    def noted(path: Path) -> files.File:
        read.append(path.stem)
        return read_file(path)

    monkeypatch.setattr(files, "read_file", noted)
    token = create(tmp_path, "new")
    for _ in range(5):
        assert ring.bearer(token).name == "new"
    assert read == ["new"]


def test_a_file_that_is_edited_in_place_counts_at_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyring, "LOOK_SECONDS", 0)
    token = create(tmp_path, "app")
    ring = ring_of(tmp_path)
    place = keys_dir(tmp_path) / "app.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "keys": ["sql"]}))
    assert ring.bearer(token).keys == frozenset({"sql"})


def test_a_directory_may_come_later(tmp_path: Path) -> None:
    ring = ring_of(tmp_path)
    assert len(ring) == 0
    assert ring.bearer(create(tmp_path, "app")).name == "app"


def test_a_broken_file_is_refused_at_start_and_left_out_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token = create(tmp_path, "app")
    ring = ring_of(tmp_path)
    broken = keys_dir(tmp_path) / "broken.json"
    broken.write_text("{}")
    with caplog.at_level(logging.WARNING):
        assert [ring.bearer(token).name for _ in range(5)] == ["app"] * 5
    assert caplog.text.count("broken.json") == 1
    with pytest.raises(ConfigInvalid, match=r"broken\.json"):
        ring_of(tmp_path)


def test_a_warning_never_shows_what_a_file_holds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    create(tmp_path, "app")
    ring = ring_of(tmp_path)
    with caplog.at_level(logging.WARNING):
        for number, text in enumerate(("geheim", '{"geheim": 1}', '{"admin": "geheim"}')):
            (keys_dir(tmp_path) / f"broken{number}.json").write_text(text)
            refused(ring, "none")
            refused(ring, _signed(f"stk_{'0' * 16}_{'0' * 64}"))
    assert "broken2.json" in caplog.text
    assert "geheim" not in caplog.text.replace("geheim: Extra", "")


def test_a_directory_that_cannot_be_read_any_more_vouches_for_nobody(tmp_path: Path) -> None:
    token = create(tmp_path, "app")
    ring = ring_of(tmp_path)
    keys_dir(tmp_path).rename(tmp_path / "away")
    keys_dir(tmp_path).write_text("a file")
    refused(ring, token)
    with pytest.raises(KeyFileInvalid):
        ring_of(tmp_path)
    keys_dir(tmp_path).unlink()
    (tmp_path / "away").rename(keys_dir(tmp_path))
    assert ring.bearer(token).name == "app"


def test_keys_of_the_config_may_be_text_or_paths(tmp_path: Path) -> None:
    made = create_signing(tmp_path, "alice")
    pem = json.loads(made.public.read_text())["publicKey"]
    path = tmp_path / "alice.pem"
    path.write_text(pem)
    id = str(made.principal)
    for text in (pem, str(path)):
        ring = KeyRing({id: text}, tmp_path / "none")
        assert ring.signing(id) is not None
        user = made.principal.user
        assert ring.signer(made.principal) == Caller(user, user=user, admin=True)
    other = str(made.principal).rpartition("/")[0] + "/" + ":".join(["00"] * 16)
    for key_id, text, words in (
        (other, pem, "fingerprint is"),
        ("a/b/c", pem, "not an OCID"),
        (id, str(tmp_path / "none"), "cannot be read"),
        (id, "-----BEGIN PUBLIC KEY-----\nx", "not a public key"),
    ):
        with pytest.raises(ConfigInvalid, match=words):
            KeyRing({key_id: text}, tmp_path / "none")
