"""Artifacts on the wire: up, down, in part; what is refused; what a broken upload leaves."""

from __future__ import annotations

import base64
import hashlib
import io
import socket
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from stacked.catalogue import Catalogue
from stacked.store import AdapterStore
from tests.api.control.plane import (
    BASE,
    Plane,
    archive_of,
    control_plane,
    meta,
    packed,
    stacked_body,
    zipped,
)
from tests.api.doors import served
from tests.store.small import write_adapter, write_base


def upload(plane: Plane, id: str, content: bytes, expect: int = 204, **headers: str) -> Any:
    return plane.ask("POST", f"/models/{id}/artifact", expect, content, **headers)


def content(plane: Plane, id: str, expect: int = 200, **headers: str) -> Any:
    return plane.ask("GET", f"/models/{id}/artifact/content", expect, None, **headers)


@pytest.mark.parametrize("prefix", ["", "folder/"])
def test_an_uploaded_adapter_is_the_models_content_and_comes_back_as_it_was(
    plane: Plane, prefix: str
) -> None:
    id, sent = plane.model(), packed(plane.roots, 1, prefix)
    before = plane.ask("GET", f"/models/{id}").headers["etag"]
    answer = upload(plane, id, sent, content_disposition='attachment; filename="a.zip"')
    assert answer.content == b""
    shown = plane.ask("GET", f"/models/{id}")
    assert answer.headers["etag"] == shown.headers["etag"] != before
    kept = meta(shown.json())
    assert (kept["kind"], kept["rank"], kept["baseModelId"]) == ("adapter", "4", BASE)
    got = content(plane, id)
    assert got.content == sent
    headers = got.headers
    assert headers["content-length"] == str(len(sent))
    assert headers["content-disposition"] == "attachment; filename=artifact.zip"
    digest = hashlib.md5(sent, usedforsecurity=False).digest()
    assert headers["content-md5"] == base64.b64encode(digest).decode()
    assert headers["content-type"] == "application/octet-stream"
    assert headers["last-modified"].endswith("GMT")
    head = plane.ask("HEAD", f"/models/{id}/artifact/content")
    assert head.content == b""
    same = ("content-length", "content-md5", "content-disposition", "etag", "last-modified")
    assert [head.headers[name] for name in same] == [headers[name] for name in same]
    assert plane.arriving() == []


def test_an_uploaded_base_is_recognised_and_ready_for_an_engine(plane: Plane) -> None:
    place = write_base(plane.roots / "other", prefix="x.")
    (place / "code.py").write_text("raise SystemExit")
    (place / "pytorch_model.bin").write_bytes(b"pickle")
    (place / "LICENSE").write_text("free")
    id = plane.model()
    upload(plane, id, zipped(place, "top/"))
    assert meta(plane.json("GET", f"/models/{id}"))["kind"] == "base"
    base = plane.catalogue.bases.base(id, "k")
    names = sorted(path.name for path in Path(base.path).iterdir())
    assert names == ["LICENSE", "config.json", "model.safetensors"]
    weights = (place / "model.safetensors").read_bytes()
    assert (Path(base.path) / "model.safetensors").read_bytes() == weights
    again = plane.model()
    upload(plane, again, zipped(place))
    assert plane.catalogue.bases.base(again, "k").path == base.path, "the same content is kept once"


def test_the_content_type_of_an_upload_means_nothing(plane: Plane) -> None:
    id, sent = plane.model(), packed(plane.roots, 1)
    upload(plane, id, sent, content_type="application/json")
    assert content(plane, id).content == sent


def test_an_adapter_that_came_from_a_source_is_packed_the_same_each_time(plane: Plane) -> None:
    place = write_adapter(plane.roots / "here")
    items = [{"key": "source", "value": str(place)}]
    id = plane.json("POST", "/models", body={"customMetadataList": items})["id"]
    etag = plane.ask("GET", f"/models/{id}").headers["etag"]
    size = plane.ask("HEAD", f"/models/{id}/artifact/content").headers["content-length"]
    first = content(plane, id)
    assert (first.headers["content-length"], first.headers["etag"]) == (size, etag)
    with zipfile.ZipFile(io.BytesIO(first.content)) as archive:
        assert archive.testzip() is None
        weights = archive.read("adapter_model.safetensors")
    assert weights == (place / "adapter_model.safetensors").read_bytes()
    plane.ask("DELETE", f"/models/{id}", 204)
    plane.json("POST", "/models", body={"customMetadataList": items})
    assert content(plane, id).content == first.content
    other = plane.model()
    upload(plane, other, first.content)
    assert (
        meta(plane.json("GET", f"/models/{other}"))["digest"]
        == meta(plane.json("GET", f"/models/{id}"))["digest"]
    )


def test_a_part_is_sent_where_a_range_asks_for_it(plane: Plane) -> None:
    id, sent = plane.model(), packed(plane.roots, 1)
    upload(plane, id, sent)
    size = len(sent)
    for given, first, last in (
        ("bytes=0-9", 0, 9),
        ("bytes=10-", 10, size - 1),
        ("bytes=-5", size - 5, size - 1),
        (f"bytes=0-{size * 9}", 0, size - 1),
        (f"bytes=-{size * 9}", 0, size - 1),
    ):
        part = content(plane, id, 206, range=given)
        assert part.content == sent[first : last + 1]
        assert part.headers["content-range"] == f"bytes {first}-{last}/{size}"
        assert part.headers["content-length"] == str(last - first + 1)
    for given in (f"bytes={size}-", "bytes=-0"):
        assert content(plane, id, 416, range=given).json()["code"] == "RangeInvalid"
    for given in ("bytes=5-2", "bytes=0-1,4-5", "lines=1-2", "bytes=-", "nonsense"):
        assert content(plane, id, 200, range=given).content == sent
    etag = content(plane, id).headers["etag"]
    for seen, status in ((etag, 206), ("another", 200)):
        part = content(plane, id, status, range="bytes=0-9", if_range=seen).content
        assert part == (sent[:10] if status == 206 else sent)


def link(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    return buffer.getvalue()


def bad_uploads() -> dict[str, tuple[bytes, int, str]]:
    return {
        "no zip": (b"hello", 400, "ArchiveInvalid"),
        "cut short": (archive_of(a=b"x" * 1000)[:-30], 400, "ArchiveInvalid"),
        "neither": (archive_of(**{"notes.txt": b"x"}), 400, "ArchiveInvalid"),
        "code": (archive_of(**{"score.py": b"x"}), 403, "NotAllowed"),
        "Keras": (archive_of(**{"m.keras": b"x"}), 400, "ArchiveInvalid"),
        "out of it": (archive_of(**{"../adapter_config.json": b"{}"}), 400, "PathUnsafe"),
        "absolute": (archive_of(**{"/adapter_config.json": b"{}"}), 400, "PathUnsafe"),
        "a link": (link("adapter_config.json"), 400, "PathUnsafe"),
        "too many": (archive_of(**{f"f{at}": b"" for at in range(10_001)}), 413, "AdapterTooLarge"),
        "a bomb": (
            archive_of(**{"config.json": b"{}", "a.safetensors": bytes(64 * 1024 * 1024)}),
            413,
            "AdapterTooLarge",
        ),
        "half an adapter": (archive_of(**{"adapter_config.json": b"{}"}), 400, "FileMissing"),
        "a pickle": (
            archive_of(**{"adapter_config.json": b"{}", "adapter_model.bin": b"x"}),
            400,
            "PickleRefused",
        ),
        "a base of nothing": (
            archive_of(**{"config.json": b"{}", "a.safetensors": b"nothing"}),
            400,
            "ArchiveInvalid",
        ),
        "empty": (b"", 400, "CannotParseRequest"),
    }


def test_a_bad_upload_is_refused_and_leaves_nothing(plane: Plane) -> None:
    id = plane.model()
    before = plane.json("GET", f"/models/{id}")
    for name, (sent, status, code) in bad_uploads().items():
        said = upload(plane, id, sent, status).json()
        assert said["code"] == code, (name, said)
        assert str(plane.files) not in said["message"], name
        assert plane.json("GET", f"/models/{id}") == before, name
    assert (plane.stored(), plane.arriving()) == ([], [])
    upload(plane, id, packed(plane.roots, 1))


def test_an_adapter_of_another_base_is_refused_and_the_old_content_stays(plane: Plane) -> None:
    id = plane.adapter(1)
    weights = packed(plane.roots, 2, r=2)
    said = upload(plane, id, weights, 400).json()
    assert said["code"] == "ShapeMismatch"
    assert content(plane, id).content == packed(plane.roots, 1)


def test_other_content_replaces_the_first_and_its_file(plane: Plane) -> None:
    id = plane.adapter(1)
    first = meta(plane.json("GET", f"/models/{id}"))["digest"]
    upload(plane, id, packed(plane.roots, 2))
    assert meta(plane.json("GET", f"/models/{id}"))["digest"] != first
    assert content(plane, id).content == packed(plane.roots, 2)
    assert len(plane.stored()) == 1


def test_one_file_of_two_models_stays_while_one_of_them_needs_it(plane: Plane) -> None:
    one, two = plane.adapter(1), plane.adapter(1)
    assert len(plane.stored()) == 1
    plane.ask("DELETE", f"/models/{one}", 204)
    assert content(plane, two).content == packed(plane.roots, 1)
    plane.ask("DELETE", f"/models/{two}", 204)
    assert plane.stored() == []


def test_too_large_an_upload_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with control_plane(tmp_path, max_artifact_bytes=2048) as plane:
        id = plane.model()
        said = upload(plane, id, bytes(2049), 413).json()
        assert (said["code"], "max_artifact_bytes" in said["message"]) == ("PayloadTooLarge", True)
        assert plane.arriving() == []


def test_an_upload_without_a_length_is_refused(plane: Plane) -> None:
    def pieces() -> Any:
        yield b"some"

    path = f"/20190101/models/{plane.model()}/artifact"
    answer = plane.http.post(path, content=pieces())
    assert (answer.status_code, answer.json()["code"]) == (411, "LengthRequired")


def test_uploads_at_once_end_with_one_whole_content(plane: Plane) -> None:
    id = plane.model()
    sent = [packed(plane.roots, seed) for seed in range(6)]
    with served(plane.http.app) as url, ThreadPoolExecutor(6) as pool:

        def put(data: bytes) -> int:
            path = f"{url}/20190101/models/{id}/artifact"
            return httpx.post(path, content=data, timeout=60).status_code

        assert list(pool.map(put, sent)) == [204] * 6
    kept = content(plane, id).content
    assert kept in sent
    (file,) = plane.stored()
    assert file == hashlib.sha256(kept).hexdigest()
    assert plane.arriving() == []


def test_a_client_that_leaves_in_the_middle_of_its_upload_leaves_nothing(plane: Plane) -> None:
    id = plane.model()
    with served(plane.http.app) as url:
        host, port = url.removeprefix("http://").split(":")
        gone = threading.Event()
        with socket.create_connection((host, int(port))) as sock:
            sock.sendall(
                f"POST /20190101/models/{id}/artifact HTTP/1.1\r\nhost: localhost\r\n"
                "content-length: 5000000\r\n\r\n".encode()
                + bytes(100_000)
            )
            for _ in range(100):
                if plane.arriving():
                    break
                gone.wait(0.05)
            assert plane.arriving(), "the upload has begun"
        for _ in range(100):
            if not plane.arriving():
                break
            gone.wait(0.05)
    assert (plane.stored(), plane.arriving()) == ([], [])
    assert content(plane, id, 404).json()["code"] == "NotAuthorizedOrNotFound"


def test_a_start_clears_what_a_killed_process_had_half_received(tmp_path: Path) -> None:
    with control_plane(tmp_path) as plane:
        id = plane.adapter(1)
        (plane.files / "incoming" / "half").write_bytes(b"half")
        (plane.files / ("0" * 64)).write_bytes(b"named, but not recorded")
        (kept,) = [name for name in plane.stored() if name != "0" * 64]
        again = Catalogue(plane.registry, AdapterStore(tmp_path / "store"), plane.files)
        assert (plane.stored(), plane.arriving()) == ([kept], [])
        with again.open(id)[1] as file:
            assert file.read() == packed(plane.roots, 1)


@pytest.mark.parametrize("kind", ["customMetadata", "definedMetadata"])
def test_a_metadatum_has_an_artifact_of_its_own(plane: Plane, kind: str) -> None:
    listed = f"{kind}List"
    id = plane.model(**{listed: [{"key": "card", "value": "v"}]})
    path = f"/models/{id}/{kind}/card/artifact"
    plane.ask("GET", f"{path}/content", 404)
    plane.ask("PUT", path, 404, b"x")
    plane.ask("DELETE", path, 404)
    answer = plane.ask("POST", path, 204, b"# A card", content_disposition="filename=card.md")
    assert answer.headers["etag"] == plane.ask("GET", f"/models/{id}").headers["etag"]
    got = plane.ask("GET", f"{path}/content")
    assert got.content == b"# A card"
    assert got.headers["content-disposition"] == "attachment; filename=card.md"
    assert plane.ask("GET", f"{path}/content", 206, range="bytes=2-").content == b"A card"
    assert plane.ask("HEAD", f"{path}/content").headers["content-length"] == "8"
    assert plane.json("POST", path, 409, b"again")["code"] == "Conflict"
    plane.ask("PUT", path, 204, b"# Another")
    assert plane.ask("GET", f"{path}/content").content == b"# Another"
    (item,) = plane.json("GET", f"/models/{id}")[listed]
    assert (item["key"], item["value"], item["hasArtifact"]) == ("card", "v", True)
    assert len(plane.stored()) == 1
    plane.ask("DELETE", path, 204)
    assert plane.json("GET", f"/models/{id}")[listed][0]["hasArtifact"] is False
    assert plane.stored() == []


def test_metadata_with_an_artifact_is_shown_even_where_no_item_names_it(plane: Plane) -> None:
    id = plane.model()
    plane.ask("POST", f"/models/{id}/definedMetadata/Readme/artifact", 204, b"text")
    (item,) = plane.json("GET", f"/models/{id}")["definedMetadataList"]
    assert (item["key"], item["value"], item["hasArtifact"]) == ("Readme", None, True)


def test_artifacts_of_metadata_are_limited_as_bodies_are(tmp_path: Path) -> None:
    with control_plane(tmp_path, max_body_bytes=1024) as plane:
        path = f"/models/{plane.model()}/customMetadata/k/artifact"
        assert plane.json("POST", path, 413, bytes(1025))["code"] == "PayloadTooLarge"


@pytest.mark.parametrize(
    ("header", "shown"),
    [
        ('attachment; filename="a b.zip"', 'filename="a b.zip"'),
        ("attachment; filename=../../etc/passwd", "filename=passwd"),
        ('attachment; filename="c:\\\\evil\\\\x.zip"', "filename=x.zip"),
        (
            "attachment; filename*=UTF-8''S%C3%BC%C3%9F.zip",
            "filename=\"S__.zip\"; filename*=UTF-8''S%C3%BC%C3%9F.zip",
        ),
        ("attachment", "filename=k"),
    ],
)
def test_the_name_of_a_file_is_its_last_part(plane: Plane, header: str, shown: str) -> None:
    path = f"/models/{plane.model()}/customMetadata/k/artifact"
    plane.ask("POST", path, 204, b"bytes", content_disposition=header)
    given = plane.ask("GET", f"{path}/content").headers["content-disposition"]
    assert given == f"attachment; {shown}"


# -- models that are no adapters ------------------------------------------------------------


@pytest.mark.parametrize("name", ["", 'attachment; filename="m.onnx.zip"'])
def test_a_model_that_is_no_adapter_comes_back_as_it_was_sent(plane: Plane, name: str) -> None:
    id, sent = plane.model(), archive_of(**{"top/a.onnx": b"123", "top/a.data": b"4567"})
    upload(plane, id, sent, content_disposition=name)
    shown = meta(plane.json("GET", f"/models/{id}"))
    assert (shown["kind"], shown["bytes"]) == ("model", "7")
    assert "rank" not in shown
    assert content(plane, id).content == sent
    assert not plane.json("GET", f"/models/{id}")["isModelByReference"]


def test_a_file_that_is_a_whole_model_may_come_alone(plane: Plane) -> None:
    id, other = plane.model(), plane.model()
    upload(plane, id, b"graph", content_disposition='attachment; filename="net.onnx"')
    upload(plane, other, archive_of(**{"model.onnx": b"graph"}))
    one, two = (meta(plane.json("GET", f"/models/{each}")) for each in (id, other))
    assert one["digest"] == two["digest"]
    assert content(plane, id).content == b"graph"
    refused = upload(plane, plane.model(), b"graph", 400).json()
    assert refused["code"] == "ArchiveInvalid"
    named = 'attachment; filename="net.pt2"'
    refused = upload(plane, plane.model(), b"graph", 403, content_disposition=named).json()
    assert refused["code"] == "NotAllowed"


def from_source(plane: Plane, place: Path, expect: int = 200) -> Any:
    items = [{"key": "source", "value": str(place)}]
    return plane.json("POST", "/models", expect, body={"customMetadataList": items})


def test_a_model_from_a_directory_or_a_file_has_an_id_of_its_content(plane: Plane) -> None:
    place = plane.roots / "net"
    (place / "variables").mkdir(parents=True)
    (place / "saved_model.pb").write_bytes(b"graph")
    (place / "variables" / "v").write_bytes(b"values")
    made = from_source(plane, place)
    assert meta(made)["kind"] == "model"
    assert from_source(plane, place)["id"] == made["id"]
    first = content(plane, made["id"])
    with zipfile.ZipFile(io.BytesIO(first.content)) as archive:
        assert archive.read("variables/v") == b"values"
    again = plane.model()
    upload(plane, again, first.content)
    assert meta(plane.json("GET", f"/models/{again}"))["digest"] == meta(made)["digest"]
    (plane.roots / "net.zip").write_bytes(first.content)
    assert from_source(plane, plane.roots / "net.zip")["id"] == made["id"]
    (plane.roots / "net.onnx").write_bytes(b"1")
    assert meta(from_source(plane, plane.roots / "net.onnx"))["kind"] == "model"


def test_a_source_that_is_no_model_here_is_refused(plane: Plane, tmp_path: Path) -> None:
    place = plane.roots / "code"
    place.mkdir()
    assert from_source(plane, place, 400)["code"] == "FileMissing"
    (place / "score.py").touch()
    assert from_source(plane, place, 403)["code"] == "NotAllowed"
    (tmp_path / "outside.onnx").touch()
    (place / "a.onnx").symlink_to(tmp_path / "outside.onnx")
    assert from_source(plane, place / "a.onnx", 403)["code"] == "SourceRefused"
    assert from_source(plane, place, 400)["code"] == "PathUnsafe"
    assert from_source(plane, tmp_path / "outside.onnx", 403)["code"] == "SourceRefused"
    adapter = write_adapter(plane.roots / "both")
    (adapter / "score.py").touch()
    assert meta(from_source(plane, adapter))["kind"] == "adapter"


def test_other_files_of_a_model_wait_until_no_group_has_it(plane: Plane) -> None:
    id = plane.onnx(b"1")
    upload(plane, id, archive_of(**{"model.onnx": b"2"}))
    details = {"memberModelDetails": [{"modelId": id}]}
    body = stacked_body(modelGroupDetails={"type": "HETEROGENEOUS"}, memberModelEntries=details)
    group = plane.json("POST", "/modelGroups", body=body)["id"]
    upload(plane, id, archive_of(**{"other/model.onnx": b"2"}))
    refused = upload(plane, id, archive_of(**{"model.onnx": b"3"}), 409).json()
    assert refused["code"] == "Conflict"
    plane.ask("DELETE", f"/modelGroups/{group}", 202)
    upload(plane, id, archive_of(**{"model.onnx": b"3"}))
