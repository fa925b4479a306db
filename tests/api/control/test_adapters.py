"""Adapters by digest on the wire: asked for, sent once, refused, broken off, and never needed."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from stacked.api.routes import create_routes
from stacked.core import model_id_of
from stacked.store import outgoing
from tests.api.control.plane import BASE, Plane, control_plane, meta
from tests.api.doors import served
from tests.store.small import write_adapter
from tests.waiting import until

NONE = "sha256:" + "a" * 64


def made(directory: Path, seed: int = 1) -> tuple[str, bytes]:
    """An adapter that the server cannot read by itself: its digest, and what is sent of it."""
    place = directory / f"outside-{seed}"
    if not place.exists():
        write_adapter(place, seed=seed)
    with outgoing(str(place)) as ready:
        return ready.digest, b"".join(ready.parts())


def put(plane: Plane, digest: str, content: bytes, expect: int = 204) -> httpx.Response:
    answer = plane.http.put(f"/stacked/adapters/{digest}", content=content)
    assert answer.status_code == expect, answer.text
    return answer


def has(plane: Plane, digest: str) -> bool:
    answer = plane.http.get(f"/stacked/adapters/{digest}")
    assert answer.status_code == 204 or answer.json()["code"] == "AdapterAbsent"
    return answer.status_code == 204


def test_an_adapter_is_sent_and_registered_by_its_digest(plane: Plane, tmp_path: Path) -> None:
    digest, content = made(tmp_path)
    body = {"displayName": "x", "customMetadataList": [{"key": "source", "value": digest}]}
    assert not has(plane, digest)
    said = plane.json("POST", "/models", 404, body)
    assert (said["code"], str(tmp_path) in said["message"]) == ("AdapterAbsent", False)
    put(plane, digest, content)
    assert has(plane, digest)
    put(plane, digest, content)
    model = plane.json("POST", "/models", body=body)
    assert model["id"] == model_id_of(digest)  # type: ignore[arg-type]
    kept = meta(model)
    assert (kept["digest"], kept["kind"], kept["baseModelId"]) == (digest, "adapter", BASE)
    assert plane.json("POST", "/models", body=body)["id"] == model["id"]
    assert (plane.arriving(), plane.stored()) == ([], []), "the store's copy is the only one"


def test_a_model_that_is_registered_by_digest_keeps_where_it_was_read(
    plane: Plane, tmp_path: Path
) -> None:
    place = str(write_adapter(plane.roots / "here"))
    source = {"customMetadataList": [{"key": "source", "value": place}]}
    model = plane.json("POST", "/models", body=source)
    digest = meta(model)["digest"]
    again = plane.json(
        "POST", "/models", body={"customMetadataList": [{"key": "source", "value": digest}]}
    )
    assert (again["id"], meta(again)["source"]) == (model["id"], place)


def test_what_is_not_the_adapter_that_was_announced_is_refused_whole(
    plane: Plane, tmp_path: Path
) -> None:
    digest, content = made(tmp_path)
    for where, sent, status, code in (
        (NONE, content, 400, "DigestMismatch"),
        (digest, content[:-30], 400, "ArchiveInvalid"),
        (digest, b"hello", 400, "ArchiveInvalid"),
        (digest, b"", 400, "BodyInvalid"),
        ("sha256:abc", content, 400, "ParameterInvalid"),
    ):
        assert put(plane, where, sent, status).json()["code"] == code
        assert not has(plane, digest)
    said = plane.http.get("/stacked/adapters/nonsense")
    assert (said.status_code, said.json()["code"]) == (400, "ParameterInvalid")
    assert plane.arriving() == []


def test_an_adapter_of_another_base_is_refused(plane: Plane, tmp_path: Path) -> None:
    write_adapter(tmp_path / "outside-7", r=2)
    digest, content = made(tmp_path, 7)
    assert put(plane, digest, content, 400).json()["code"] == "ShapeMismatch"
    assert not has(plane, digest)


def test_a_server_without_updates_takes_and_tells_nothing(tmp_path: Path) -> None:
    digest, content = made(tmp_path)
    with control_plane(tmp_path, runtime_updates=False) as plane:
        assert put(plane, digest, content, 403).json()["code"] == "NotAllowed"
        said = plane.http.get(f"/stacked/adapters/{digest}")
        assert (said.status_code, said.json()["code"]) == (403, "NotAllowed")


def test_more_than_an_artifact_may_have_is_not_even_read(tmp_path: Path) -> None:
    digest, content = made(tmp_path)
    with control_plane(tmp_path, max_artifact_bytes=2000) as plane:
        assert put(plane, digest, content, 413).json()["code"] == "BodyTooLarge"


def test_a_full_disk_is_told_and_nothing_is_kept(
    plane: Plane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, content = made(tmp_path)
    monkeypatch.setattr("stacked.store.disk.SPARE", 2**62)
    assert put(plane, digest, content, 500).json()["code"] == "StoreUnusable"
    assert (has(plane, digest), plane.arriving()) == (False, [])


def test_many_who_send_the_same_at_once_are_all_served(plane: Plane, tmp_path: Path) -> None:
    digest, content = made(tmp_path)
    with served(create_routes(plane.service)) as url, ThreadPoolExecutor(8) as pool:
        place = f"{url}/stacked/adapters/{digest}"
        answers = list(pool.map(lambda _: httpx.put(place, content=content), range(8)))
    assert {answer.status_code for answer in answers} == {204}
    assert has(plane, digest)
    assert plane.arriving() == []


def test_an_upload_that_breaks_off_leaves_nothing(plane: Plane, tmp_path: Path) -> None:
    digest, content = made(tmp_path)
    with served(create_routes(plane.service)) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as sock:
            head = f"PUT /stacked/adapters/{digest} HTTP/1.1\r\nhost: localhost\r\n"
            sock.sendall(f"{head}content-length: {len(content)}\r\n\r\n".encode())
            sock.sendall(content[: len(content) // 2])
            until(plane.arriving)
        until(lambda: not plane.arriving())
    assert not has(plane, digest)
