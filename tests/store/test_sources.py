"""Every kind of source ends as the same two files, or as a refusal that says why."""

from __future__ import annotations

import contextlib
import errno
import http.server
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from stacked.errors import (
    AdapterError,
    AdapterTooLarge,
    FileMissing,
    PathUnsafe,
    PickleRefused,
    SourceNotFound,
    SourceRefused,
    SourceUnreachable,
)
from stacked.store.files import _opened
from stacked.store.limits import Limits
from stacked.store.sources import HubRef, fetch, hub_download, parse_hub
from tests.store.small import write_adapter

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BESIDE = (
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.json",
    "additional_chat_templates/*.jinja",
)
Handler = Callable[[http.server.BaseHTTPRequestHandler], None]


def fetched(source: object, tmp_path: Path, limits: Limits | None = None, **options: Any) -> Path:
    target, scratch = tmp_path / "target", tmp_path / "scratch"
    for directory in (target, scratch):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
    fetch(str(source), target, scratch, limits or Limits(), **options)
    return target


def assert_same(target: Path, adapter: Path) -> None:
    assert sorted(os.listdir(target)) == [CONFIG, WEIGHTS]
    for name in (CONFIG, WEIGHTS):
        assert (target / name).read_bytes() == (adapter / name).read_bytes()
        assert not (target / name).is_symlink()


def refused(
    error: type[AdapterError],
    said: str,
    source: object,
    tmp_path: Path,
    limits: Limits | None = None,
    **options: Any,
) -> None:
    with pytest.raises(AdapterError) as caught:
        fetched(source, tmp_path, limits, **options)
    assert type(caught.value) is error, str(caught.value)
    assert caught.value.code == error.__name__
    assert said in str(caught.value)


# Directories


def test_a_directory_gives_its_two_files_and_nothing_else(adapter: Path, tmp_path: Path) -> None:
    for name in ("README.md", "tokenizer.model", "training_args.bin", "adapter_model.bin", "x.py"):
        (adapter / name).write_text("not wanted")
    assert_same(fetched(adapter, tmp_path), adapter)


def test_chat_templates_and_tokens_come_along(adapter: Path, tmp_path: Path) -> None:
    more = adapter / "additional_chat_templates"
    more.mkdir()
    (more / "tool_use.jinja").write_text("tools")
    (more / "notes.txt").write_text("not wanted")
    (adapter / "chat_template.jinja").write_text("chat")
    (adapter / "tokenizer_config.json").symlink_to("chat_template.jinja")
    target = fetched(adapter, tmp_path)
    assert (target / "chat_template.jinja").read_text() == "chat"
    assert (target / "tokenizer_config.json").read_text() == "chat"
    assert [(f.name, f.read_text()) for f in (target / more.name).iterdir()] == [
        ("tool_use.jinja", "tools")
    ]


@pytest.mark.parametrize("name", ["chat_template.jinja", "additional_chat_templates/x.jinja"])
def test_a_template_that_is_a_link_out_is_refused(adapter: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "secret"
    outside.write_text("secret")
    (adapter / name).parent.mkdir(exist_ok=True)
    (adapter / name).symlink_to(outside)
    refused(PathUnsafe, "leads out", adapter, tmp_path)


def test_a_folder_of_templates_that_is_a_link_out_is_refused(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (adapter / "additional_chat_templates").symlink_to(tmp_path / "elsewhere")
    refused(PathUnsafe, "leads out", adapter, tmp_path)


def test_file_addresses_and_relative_and_linked_paths_work(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spaced = adapter.rename(tmp_path / "my adapter")
    (tmp_path / "current").symlink_to(spaced)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    address = f"file://{tmp_path}/my%20adapter"
    for source in ("my adapter", "./my adapter", "current", "~/current", address):
        assert_same(fetched(source, tmp_path), spaced)


def test_an_existing_path_wins_over_a_hub_id(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org").mkdir()
    adapter.rename(tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    assert_same(fetched("org/name", tmp_path), tmp_path / "org" / "name")


@pytest.mark.parametrize("source", ["/no/such", "./no/such", "~/no-such", "a/b/c", "../x"])
def test_what_looks_like_a_path_is_never_asked_of_the_hub(source: str, tmp_path: Path) -> None:
    def download(ref: HubRef, patterns: Sequence[str]) -> Path:
        raise AssertionError("asked the Hub")

    refused(SourceNotFound, "does not exist", source, tmp_path, download=download)


@pytest.mark.parametrize(
    ("source", "error", "said"),
    [
        ("", SourceRefused, "http"),
        ("a\0b", SourceRefused, "http"),
        ("memory://host/key", SourceRefused, "memory://"),
        ("ftp://host/x", SourceRefused, "hf://org/name"),
        ("file://host/x", SourceRefused, "file:///absolute/path"),
        ("file:relative", SourceNotFound, "neither an existing path nor a Hub id"),
        ("word", SourceNotFound, "neither an existing path nor a Hub id"),
        ("org/na me", SourceNotFound, "neither an existing path nor a Hub id"),
        ("hf://org", SourceRefused, "hf://org/name"),
        ("hf://org/name@", SourceRefused, "hf://org/name"),
        ("hf://org/name/../x", SourceRefused, "hf://org/name"),
        ("hf://org/name/a//b", SourceRefused, "hf://org/name"),
    ],
)
def test_what_is_no_source_is_refused_with_those_that_work(
    source: str, error: type[AdapterError], said: str, tmp_path: Path
) -> None:
    refused(error, said, source, tmp_path)


@pytest.mark.parametrize(
    ("files", "error", "said"),
    [
        ([], FileMissing, "adapter_config.json"),
        ([CONFIG], FileMissing, WEIGHTS),
        ([WEIGHTS], FileMissing, CONFIG),
        (["config.json", "model.safetensors"], FileMissing, "full model"),
        ([CONFIG, "adapter_model.bin"], PickleRefused, "adapter_model.bin"),
        ([CONFIG, "adapter_model.pt"], PickleRefused, "adapter_model.pt"),
        (["pytorch_model.bin"], PickleRefused, "pytorch_model.bin"),
        ([CONFIG, "training_args.bin"], FileMissing, WEIGHTS),
        (["checkpoint-5/adapter_config.json"], FileMissing, "in checkpoint-5"),
        ([CONFIG, "adapter_model-00001-of-00002.safetensors"], FileMissing, "in several files"),
        ([CONFIG, "adapter_model.safetensors.index.json"], FileMissing, "in several files"),
        ([CONFIG, "adapters.safetensors", "0000100_adapters.safetensors"], FileMissing, "MLX"),
        (["global_step100/mp_rank_00", "zero_to_fp32.py"], FileMissing, "DeepSpeed"),
        (["pytorch_model_fsdp_0/__0_0.distcp"], FileMissing, "FSDP"),
        (["__0_0.distcp", ".metadata"], FileMissing, "FSDP"),
    ],
)
def test_a_directory_without_the_two_files_is_refused(
    files: list[str], error: type[AdapterError], said: str, tmp_path: Path
) -> None:
    directory = tmp_path / "directory"
    directory.mkdir()
    for name in files:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text("{}")
    refused(error, said, directory, tmp_path)


def test_a_link_that_leads_out_is_refused(adapter: Path, tmp_path: Path) -> None:
    (adapter / CONFIG).rename(tmp_path / "secret.json")
    (adapter / CONFIG).symlink_to(tmp_path / "secret.json")
    refused(PathUnsafe, "leads out", adapter, tmp_path)


def test_a_link_that_stays_inside_is_followed(adapter: Path, tmp_path: Path) -> None:
    (adapter / CONFIG).rename(adapter / "real.json")
    (adapter / CONFIG).symlink_to("real.json")
    assert_same(fetched(adapter, tmp_path), adapter)


def test_a_dangling_link_is_refused(adapter: Path, tmp_path: Path) -> None:
    (adapter / CONFIG).unlink()
    (adapter / CONFIG).symlink_to("gone.json")
    refused(SourceRefused, "cannot be read", adapter, tmp_path)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_or_a_directory_in_place_of_a_file_is_refused(
    make: Callable[[Path], None], adapter: Path, tmp_path: Path
) -> None:
    (adapter / CONFIG).unlink()
    make(adapter / CONFIG)
    refused(PathUnsafe, "not a regular file", adapter, tmp_path)


def test_a_device_as_a_source_is_refused(tmp_path: Path) -> None:
    refused(SourceRefused, "neither a directory nor a file", "/dev/null", tmp_path)


def test_bare_weights_are_told_that_the_config_is_missing(adapter: Path, tmp_path: Path) -> None:
    refused(SourceRefused, "give the directory", adapter / WEIGHTS, tmp_path)


def test_a_file_over_the_limit_is_refused(adapter: Path, tmp_path: Path) -> None:
    refused(AdapterTooLarge, WEIGHTS, adapter, tmp_path, Limits(max_bytes=100))
    refused(AdapterTooLarge, CONFIG, adapter, tmp_path, Limits(max_config_bytes=100))


def test_a_file_that_says_it_is_too_large_is_not_copied(adapter: Path, tmp_path: Path) -> None:
    with (adapter / WEIGHTS).open("ab") as file:
        file.truncate(1 << 40)
    refused(AdapterTooLarge, WEIGHTS, adapter, tmp_path)
    assert not [path for path in tmp_path.rglob(WEIGHTS) if path.parent != adapter]


def test_a_directory_that_becomes_a_link_while_it_is_read_leads_nowhere(tmp_path: Path) -> None:
    """Whatever the moment: what is read is what was there, or nothing."""
    roots, mine, swapped = tmp_path / "roots", tmp_path / "roots" / "a", tmp_path / "roots" / "b"
    write_adapter(mine, r=4)
    secret = write_adapter(tmp_path / "secret", base_model_name_or_path="a secret")
    allowed, over = [roots.resolve()], threading.Event()

    def swap() -> None:
        while not over.is_set():
            mine.rename(swapped)
            mine.symlink_to(secret)
            mine.unlink()
            swapped.rename(mine)

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        for number in range(200):
            target, scratch = tmp_path / f"t{number}", tmp_path / f"s{number}"
            target.mkdir()
            scratch.mkdir()
            with contextlib.suppress(AdapterError):
                fetch(str(mine), target, scratch, Limits(), roots=allowed)
            read = [file.read_text() for file in target.glob("*.json")]
            assert not any("a secret" in text for text in read)
    finally:
        over.set()
        swapping.join()


@pytest.mark.parametrize("error", [OSError(errno.EINVAL, "Invalid argument"), ValueError("null")])
def test_a_path_that_changes_while_its_links_are_followed_is_refused(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`readlink` after `lstat` saw a link: the race above, at its narrowest."""

    def changed(*_: object) -> str:
        raise error

    link = tmp_path / "link"
    link.symlink_to(write_adapter(tmp_path / "a", r=4))
    monkeypatch.setattr(os, "readlink", changed)
    with pytest.raises(SourceRefused, match="cannot be read"):
        fetch(str(link), tmp_path, tmp_path, Limits(), roots=[tmp_path])


def test_a_link_in_place_of_a_resolved_folder_is_not_followed(adapter: Path) -> None:
    (adapter.parent / "link").symlink_to(adapter)
    with pytest.raises(OSError, match=r"directory|links"):
        _opened(adapter.parent / "link" / CONFIG)
    os.close(_opened(adapter / CONFIG))


def test_outside_the_allowed_roots_nothing_is_read(adapter: Path, tmp_path: Path) -> None:
    outside = "outside the directories"
    other = tmp_path / "other"
    other.mkdir()
    assert_same(fetched(adapter, tmp_path, roots=[other, tmp_path]), adapter)
    refused(SourceRefused, outside, adapter, tmp_path, roots=[other])
    refused(SourceRefused, outside, adapter, tmp_path, roots=[])
    refused(SourceRefused, outside, "/etc/passwd", tmp_path, roots=[other])
    refused(SourceRefused, outside, "/no/such", tmp_path, roots=[other])
    refused(SourceRefused, outside, f"{other}/../adapter", tmp_path, roots=[other])
    (other / "link").symlink_to(adapter)
    refused(SourceRefused, outside, other / "link", tmp_path, roots=[other])
    refused(SourceRefused, outside, f"file://{adapter}", tmp_path, roots=[other])


# Archives on disk


@pytest.mark.parametrize("packing", ["zip", "tar", "gztar", "bztar", "xztar"])
def test_an_archive_of_a_directory_or_of_its_content_works(
    packing: str, adapter: Path, tmp_path: Path
) -> None:
    inside = shutil.make_archive(str(tmp_path / "inside"), packing, adapter)
    outside = shutil.make_archive(str(tmp_path / "outside"), packing, tmp_path, "adapter")
    for archive in (inside, outside, f"file://{inside}"):
        assert_same(fetched(archive, tmp_path), adapter)
    refused(SourceRefused, "outside", inside, tmp_path, roots=[tmp_path / "adapter"])


# The Hub


@dataclass
class FakeHub:
    """A Hub cache on disk, and what was asked of it."""

    root: Path
    asked: list[tuple[HubRef, list[str]]] = field(default_factory=list)

    def hold(self, adapter: Path, folder: str = "") -> None:
        """Lay an adapter out as huggingface_hub's cache does: links into blobs."""
        snapshot = self.root / "models--org--name" / "snapshots" / ("a" * 40)
        blobs = self.root / "models--org--name" / "blobs"
        blobs.mkdir(parents=True, exist_ok=True)
        (snapshot / folder).mkdir(parents=True, exist_ok=True)
        for name in (CONFIG, WEIGHTS):
            blob = blobs / f"{folder.replace('/', '-')}{name}-hash"
            shutil.copy(adapter / name, blob)
            place = snapshot / folder / name
            place.symlink_to(os.path.relpath(blob, place.parent))

    def refer(self, revision: str = "main") -> None:
        refs = self.root / "models--org--name" / "refs"
        refs.mkdir(parents=True, exist_ok=True)
        (refs / revision).write_text("a" * 40)

    def download(self, ref: HubRef, patterns: Sequence[str]) -> Path:
        self.asked.append((ref, list(patterns)))
        return self.root / "models--org--name" / "snapshots" / ("a" * 40)


@pytest.fixture
def hub(tmp_path: Path) -> FakeHub:
    return FakeHub(tmp_path / "hub")


@pytest.mark.parametrize(
    ("source", "ref"),
    [
        ("org/name", HubRef("org/name")),
        ("org/name@v2", HubRef("org/name", "v2")),
        ("hf://org/name", HubRef("org/name")),
        ("hf://org/name@v2", HubRef("org/name", "v2")),
        ("hf://org/name@refs%2Fpr%2F1/a/b", HubRef("org/name", "refs/pr/1", "a/b")),
        ("hf://org/name/a/b/", HubRef("org/name", None, "a/b")),
    ],
)
def test_hub_addresses_are_read(source: str, ref: HubRef) -> None:
    assert parse_hub(source) == ref


def test_only_what_makes_an_adapter_is_asked_of_the_hub(
    hub: FakeHub, adapter: Path, tmp_path: Path
) -> None:
    hub.hold(adapter)
    assert_same(fetched("org/name@v2", tmp_path, download=hub.download), adapter)
    assert hub.asked == [(HubRef("org/name", "v2"), [CONFIG, WEIGHTS, *BESIDE])]


def test_a_folder_of_a_hub_repository_works(hub: FakeHub, adapter: Path, tmp_path: Path) -> None:
    hub.hold(adapter, "sql/v2")
    source = "hf://org/name/sql/v2"
    assert_same(fetched(source, tmp_path, download=hub.download), adapter)
    assert hub.asked[0][1] == [f"sql/v2/{name}" for name in (CONFIG, WEIGHTS, *BESIDE)]
    refused(SourceNotFound, "'other'", "hf://org/name/other", tmp_path, download=hub.download)


def test_the_snapshot_in_a_hub_cache_works_as_a_directory(
    hub: FakeHub, adapter: Path, tmp_path: Path
) -> None:
    hub.hold(adapter)
    assert_same(fetched(hub.download(HubRef("org/name"), []), tmp_path), adapter)


def test_a_link_out_of_the_hub_cache_is_refused(
    hub: FakeHub, adapter: Path, tmp_path: Path
) -> None:
    hub.hold(adapter)
    config = hub.download(HubRef("org/name"), []) / CONFIG
    config.unlink()
    config.symlink_to(adapter / CONFIG)
    refused(PathUnsafe, "leads out", "org/name", tmp_path, download=hub.download)


@pytest.fixture
def offline(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """huggingface_hub itself, on the fake cache, without a network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub.root))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return hub


def test_the_hub_library_serves_its_cache_offline(
    offline: FakeHub, adapter: Path, tmp_path: Path
) -> None:
    offline.hold(adapter)
    offline.refer()
    assert_same(fetched("org/name", tmp_path), adapter)


def test_what_the_hub_cache_lacks_offline_is_unreachable(offline: FakeHub, tmp_path: Path) -> None:
    refused(SourceUnreachable, "HF_HUB_OFFLINE", "org/name", tmp_path)


@pytest.mark.parametrize(
    ("raised", "error", "said"),
    [
        ("RepositoryNotFoundError", SourceNotFound, "no repository org/name"),
        ("GatedRepoError", SourceUnreachable, "gated"),
        ("RevisionNotFoundError", SourceNotFound, "no revision 'v2'"),
        ("LocalEntryNotFoundError", SourceUnreachable, "not in the local Hub cache"),
        ("HfHubHTTPError", SourceUnreachable, "could not be fetched"),
        ("HFValidationError", SourceRefused, "not a Hub id"),
        ("OfflineModeIsEnabled", SourceUnreachable, "could not be fetched"),
    ],
)
def test_what_the_hub_says_becomes_a_refusal_of_ours(
    raised: str, error: type[AdapterError], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    kind = getattr(pytest.importorskip("huggingface_hub.errors"), raised)

    def fail(*_: object, **__: object) -> str:
        # Their constructors want an HTTP response; only the class matters here.
        raise kind.__new__(kind)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(AdapterError) as caught:
        hub_download(HubRef("org/name", "v2"), [CONFIG])
    assert type(caught.value) is error
    assert said in str(caught.value)


# http


@contextlib.contextmanager
def server(answer: Handler) -> Iterator[str]:
    """A real HTTP server on the loopback address; its address."""

    class Answering(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with contextlib.suppress(ConnectionError):
                answer(self)

        def log_message(self, *_: object) -> None:
            """Silent."""

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    listening.block_on_close = False  # a handler may still be waiting when its test fails
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}"
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()


def status(code: int, **headers: str) -> Handler:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(code)
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()

    return answer


def content(data: bytes, length: int | None = None) -> Handler:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        if length is not None:
            request.send_header("content-length", str(length))
        request.end_headers()
        request.wfile.write(data)

    return answer


@pytest.mark.parametrize("packing", ["zip", "gztar"])
def test_an_archive_over_http_works_through_a_redirect(
    packing: str, adapter: Path, tmp_path: Path
) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), packing, adapter))

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        if request.path == "/latest":
            status(302, location="/files/v2?token=1")(request)
        else:
            assert request.path == "/files/v2?token=1"
            content(archive.read_bytes())(request)

    with server(answer) as address:
        assert_same(fetched(f"{address}/latest", tmp_path), adapter)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (404, SourceNotFound),
        (410, SourceNotFound),
        (401, SourceUnreachable),
        (403, SourceUnreachable),
        (500, SourceUnreachable),
        (503, SourceUnreachable),
        (204, SourceUnreachable),
        (206, SourceUnreachable),
    ],
)
def test_a_status_is_named_and_secrets_are_not(
    code: int, error: type[AdapterError], tmp_path: Path
) -> None:
    with server(status(code)) as address:
        secret = address.replace("http://", "http://user:hunter2@") + "/a.zip?token=hunter2"
        refused(error, f"status {code}", secret, tmp_path)
        with pytest.raises(error) as caught:
            fetched(secret, tmp_path)
    assert "hunter2" not in str(caught.value)
    assert "/a.zip" in str(caught.value)


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://host/x", "hf://org/name"])
def test_a_redirect_to_another_scheme_is_not_followed(location: str, tmp_path: Path) -> None:
    with server(status(302, location=location)) as address:
        refused(SourceRefused, "not followed", f"{address}/a.zip", tmp_path)


def test_redirects_without_end_are_given_up(tmp_path: Path) -> None:
    with server(status(302, location="/again")) as address:
        refused(SourceUnreachable, "more than 5 times", f"{address}/a.zip", tmp_path)


def test_a_download_over_the_limit_is_refused_announced_or_not(tmp_path: Path) -> None:
    limits = Limits(max_bytes=1000)
    with server(content(b"", length=1001)) as address:
        refused(AdapterTooLarge, "at most 1000 bytes", f"{address}/a", tmp_path, limits)
    with server(content(bytes(5000))) as address:
        refused(AdapterTooLarge, "sent more than 1000 bytes", f"{address}/a", tmp_path, limits)


def test_a_download_cut_short_is_unreachable(tmp_path: Path) -> None:
    with server(content(b"PK", length=100)) as address:
        refused(SourceUnreachable, "could not be fetched", f"{address}/a.zip", tmp_path)


def test_a_silent_server_is_given_up(tmp_path: Path) -> None:
    done = threading.Event()

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        done.wait(30)

    with server(answer) as address:
        limits = Limits(read_seconds=0.2)
        refused(SourceUnreachable, "timed out", f"{address}/a.zip", tmp_path, limits)
        done.set()


def test_a_dripping_server_is_given_up(tmp_path: Path) -> None:
    done = threading.Event()

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        while not done.wait(0.01):
            request.wfile.write(b"x")

    with server(answer) as address:
        limits = Limits(download_seconds=0.2)
        refused(SourceUnreachable, "not complete after", f"{address}/a.zip", tmp_path, limits)
        done.set()


def test_nobody_there_is_unreachable(tmp_path: Path) -> None:
    with server(status(200)) as address:
        pass
    refused(SourceUnreachable, "could not be fetched", f"{address}/a.zip", tmp_path)


@pytest.mark.parametrize("address", ["http://", "http://[bad", "https://exa mple/x"])
def test_a_malformed_address_is_refused(address: str, tmp_path: Path) -> None:
    with pytest.raises((SourceRefused, SourceUnreachable)):
        fetched(address, tmp_path)


def test_the_adapter_helper_writes_what_is_fetched(tmp_path: Path) -> None:
    """Guards the tests above: two adapters of different seeds differ."""
    one, two = write_adapter(tmp_path / "1"), write_adapter(tmp_path / "2", seed=1)
    assert (one / WEIGHTS).read_bytes() != (two / WEIGHTS).read_bytes()
