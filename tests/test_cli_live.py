"""`stacked update`, `rollback`, `groups` and `status` against a small control plane over real HTTP.

The control plane is a double that keeps its records in lists; the real one has its own tests.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from stacked.store import outgoing
from tests.serving import free_port
from tests.store.small import write_adapter
from tests.test_cli import run, within

BASE = "ocid1.datasciencemodel.oc1..base"
FIRST = "ocid1.datasciencemodelgroup.oc1..first"
WORK = "ocid1.datascienceworkrequest.oc1..work"
DEPLOYMENT = "ocid1.datasciencemodeldeployment.oc1..demo"


def model_id(name: str) -> str:
    return f"ocid1.datasciencemodel.oc1..{name}"


@dataclass
class Plane:
    """What the double holds and what was asked of it. A source's last part is its content."""

    url: str = ""
    base_source: str = ""
    groups: list[dict[str, Any]] = field(default_factory=list)
    status: dict[str, Any] = field(default_factory=dict)
    work: list[dict[str, Any]] = field(default_factory=list)
    """What each poll is answered with; the last one stays."""
    logs: list[str] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    refuse: dict[str, tuple[int, str, str]] = field(default_factory=dict)
    """By `METHOD path`: status, code and message."""
    asked: list[str] = field(default_factory=list)
    put: list[dict[str, Any]] = field(default_factory=list)
    adapters: dict[str, bytes] = field(default_factory=dict)
    """Those that the store has, by digest, as they were sent."""
    cut: bool = False
    """Whether uploads are cut off in their middle."""

    def sent(self) -> list[str]:
        """The digests of what was sent, in turn."""
        place = "PUT /stacked/adapters/"
        return [each.removeprefix(place) for each in self.asked if each.startswith(place)]

    def serve(self, keys: dict[str, str | None], **more: Any) -> None:
        """Serve contents by key in the first group."""
        entries = [{"modelId": BASE, "inferenceKey": "base"}]
        entries += [{"modelId": model_id(c), "inferenceKey": key} for c, key in keys.items()]  # type: ignore[misc]
        self.groups = [group(FIRST, "first", entries)]
        self.status = {
            "deploymentId": DEPLOYMENT,
            "groupId": FIRST,
            "groupName": "first",
            "generation": 3,
            "previousGroupId": None,
            "state": "ACTIVE",
            "reason": "",
            "update": None,
            "draining": [],
            "models": [live(content, key) for content, key in keys.items()],
            **more,
        }

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any, dict[str, str]]:
        path, _, query = path.partition("?")
        self.asked.append(f"{method} {path}")
        if f"{method} {path}" in self.refuse:
            status, code, message = self.refuse[f"{method} {path}"]
            return status, {"code": code, "message": message}, {}
        parts = path.removeprefix("/20190101").strip("/").split("/")
        match (method, parts):
            case ("GET", ["stacked", "status"]):
                return 200, self.status, {}
            case ("POST", ["stacked", "check"]):
                return 200, {}, {}
            case ("GET", ["stacked", "adapters", digest]):
                if digest in self.adapters:
                    return 204, None, {}
                return 404, {"code": "AdapterAbsent", "message": "it is not here"}, {}
            case ("PUT", ["stacked", "adapters", digest]):
                self.adapters[digest] = body
                return 204, None, {}
            case ("GET", ["models", id]):
                item = {"key": "source", "value": self.base_source}
                return 200, {"id": id, "customMetadataList": [item]}, {}
            case ("POST", ["models"]):
                return 200, self.registered(body), {}
            case ("GET", ["modelGroups"]):
                return self.page(query)
            case ("GET", ["modelGroups", id]):
                return 200, next(each for each in self.groups if each["id"] == id), {}
            case ("POST", ["modelGroups"]):
                return 200, self.created(body), {}
            case ("PUT", ["modelDeployments", _]):
                self.put.append(body)
                return 202, None, {"opc-work-request-id": WORK}
            case ("GET", ["workRequests", _]):
                work = self.work.pop(0) if len(self.work) > 1 else self.work[0]
                return 200, work, {}
            case ("GET", ["workRequests", _, "logs"]):
                return 200, [{"message": line} for line in self.logs], {}
            case ("GET", ["workRequests", _, "errors"]):
                return 200, self.errors, {}
        return 404, {"code": "NotFound", "message": path}, {}

    def page(self, query: str) -> tuple[int, Any, dict[str, str]]:
        """One group a page, the newest first."""
        at = int(query.rpartition("page=")[2]) if "page=" in query else 0
        more = {"opc-next-page": str(at + 1)} if at + 1 < len(self.groups) else {}
        return 200, self.groups[::-1][at : at + 1], more

    def registered(self, body: Any) -> Any:
        given = {item["key"]: item["value"] for item in body["customMetadataList"]}
        content = Path(given["source"]).name.removeprefix("sha256:")
        items = [{"key": "digest", "value": f"sha256:{content}"}]
        return {"id": given.get("modelId") or model_id(content), "customMetadataList": items}

    def created(self, body: Any) -> Any:
        entries = body["memberModelEntries"]["memberModelDetails"]
        made = group(f"{FIRST}{len(self.groups)}", body["displayName"], entries)
        made["modelGroupDetails"] = body["modelGroupDetails"]
        self.groups.append(made)
        return made


def group(id: str, name: str, entries: list[Any]) -> dict[str, Any]:
    return {
        "id": id,
        "displayName": name,
        "lifecycleState": "ACTIVE",
        "timeCreated": "2026-01-02T03:04:05.678Z",
        "modelGroupDetails": {"type": "STACKED", "baseModelId": BASE, "customMetadataList": []},
        "memberModelEntries": {"memberModelDetails": entries},
    }


def live(content: str, key: str | None) -> dict[str, Any]:
    return {
        "modelId": model_id(content),
        "inferenceKey": key,
        "digest": f"sha256:{content}",
        "rank": 8,
        "state": "SUCCESS",
        "reason": "",
        "leases": 2,
        "resident": True,
    }


def work(status: str, percent: float) -> dict[str, Any]:
    return {"id": WORK, "status": status, "percentComplete": percent}


@pytest.fixture
def plane() -> Iterator[Plane]:
    told = Plane(work=[work("IN_PROGRESS", 40.0), work("SUCCEEDED", 100.0)])

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            raw = self.headers.get("content-type") == "application/zip"
            if raw and told.cut:
                self.rfile.read(length // 2)
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            data = self.rfile.read(length)
            body = json.loads(data) if data and not raw else data
            status, answer, headers = told.answer(self.command, self.path, body)
            data = b"" if answer is None else json.dumps(answer).encode()
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = handle_any

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    told.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield told
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def config(directory: Path, members: list[dict[str, str]], **more: Any) -> str:
    path = directory / "next.yaml"
    tree = {"base": {"model": "tiny"}, "group": {"name": "next", "members": members}, **more}
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return str(path)


def member(content: str, key: str) -> dict[str, str]:
    return {"key": key, "source": f"hf://adapters/{content}"}


# --- update --------------------------------------------------------------------------------


def test_update_registers_shows_the_difference_and_follows(plane: Plane, tmp_path: Path) -> None:
    plane.serve({"sql1": "sql", "old": "old", "move": "before"})
    plane.logs = ["staging: 1 of 1", "switching: generation 4 is live"]
    listed = [member("sql2", "sql"), member("move", "after"), member("new", "new")]
    done = run("update", "--live", config(tmp_path, listed), "--url", plane.url)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines == [
        ["~", "sql", "changed", "sql1", "→", "sql2"],
        ["→", "after", "renamed", "was", "before"],
        ["+", "new", "added", "new"],
        ["-", "old", "removed", "old"],
    ]
    assert "switching: generation 4 is live" in done.stderr
    assert "Group 'next' is live" in done.stderr
    made = plane.groups[-1]
    assert made["memberModelEntries"]["memberModelDetails"] == [
        {"modelId": BASE, "inferenceKey": "base"},
        {"modelId": model_id("sql2"), "inferenceKey": "sql"},
        {"modelId": model_id("move"), "inferenceKey": "after"},
        {"modelId": model_id("new"), "inferenceKey": "new"},
    ]
    change = plane.put[0]["modelDeploymentConfigurationDetails"]
    assert change["updateType"] == "LIVE"
    assert change["modelGroupConfigurationDetails"] == {"modelGroupId": made["id"]}


def test_an_update_shows_what_becomes_of_experiments(plane: Plane, tmp_path: Path) -> None:
    def tried(a: int, b: int) -> dict[str, Any]:
        return {"key": "x", "arms": [{"key": "a", "weight": a}, {"key": "b", "weight": b}]}

    plane.serve({"one": "a", "two": "b"})
    text = json.dumps([tried(50, 50), {**tried(1, 1), "key": "gone"}])
    details = plane.groups[0]["modelGroupDetails"]
    details["customMetadataList"] = [{"key": "stacked.experiments", "value": text}]
    path = Path(config(tmp_path, [member("one", "a"), member("other", "b")]))
    tree = yaml.safe_load(path.read_text())
    tree["group"]["experiments"] = [tried(60, 40), {**tried(1, 1), "key": "new"}]
    path.write_text(yaml.safe_dump(tree))
    done = run("update", "--live", str(path), "--url", plane.url)
    assert done.returncode == 0, done.stderr
    assert [" ".join(line.split()) for line in done.stdout.splitlines()] == [
        "~ x weights 50/50 → 60/40",
        "~ x phase a new one: arm b has other content",
        "+ new added experiment of a 1, b 1",
        "- gone removed experiment of a 1, b 1",
        "~ b changed two → other",
    ]
    (item,) = plane.groups[-1]["modelGroupDetails"]["customMetadataList"]
    assert json.loads(item["value"])[0]["arms"][1] == {"key": "b", "weight": 40.0}


def test_gates_travel_with_the_group_and_its_verdicts_are_shown(
    plane: Plane, tmp_path: Path
) -> None:
    plane.serve({"sql1": "sql"})
    told = {"gate": "sql", "inferenceKey": "sql", "digest": "sha256:sql2", "examples": 2}
    told |= {"score": 0.5, "served": 0.75, "reasons": ["its mean score is below 0.8"]}
    plane.status["gates"] = [told]
    plane.work = [work("FAILED", 40.0)]
    plane.errors = [{"code": "GateFailed", "message": "0.5", "modelId": model_id("sql2")}]
    (tmp_path / "two.jsonl").write_text('{"prompt": "a", "expected": "b"}\n' * 2, encoding="utf-8")
    gate = tmp_path / "gate.yaml"
    gate.write_text("{name: sql, keys: [sql], threshold: 0.8, examples: two.jsonl}")
    path = config(tmp_path, [member("sql2", "sql")])
    done = run("update", "--live", path, "--gate", str(gate), "--url", plane.url)
    assert done.returncode == 1
    assert "error [GateFailed]: sql: 0.5\n" in done.stderr
    (item,) = plane.groups[-1]["modelGroupDetails"]["customMetadataList"]
    assert item["key"] == "stacked.gates"
    (sent,) = json.loads(item["value"])
    examples = [{"prompt": "a", "expected": "b"}] * 2
    assert sent == {"name": "sql", "keys": ["sql"], "threshold": 0.8, "examples": examples}
    shown = run("status", "--url", plane.url)
    assert "sql: sql refused, 0.500, 0.750 before" in shown.stdout


def test_update_to_what_is_served_changes_nothing(plane: Plane, tmp_path: Path) -> None:
    plane.serve({"sql1": "sql"})
    done = run("update", "--live", config(tmp_path, [member("sql1", "sql")]), "--url", plane.url)
    assert done.returncode == 0, done.stderr
    assert "Nothing to change" in done.stderr
    assert (len(plane.groups), plane.put) == (1, [])


def test_an_adapter_that_was_loaded_by_hand_is_a_difference(plane: Plane, tmp_path: Path) -> None:
    plane.serve({"sql1": "sql"})
    plane.status["models"].append(live("extra", "extra"))
    done = run("update", "--live", config(tmp_path, [member("sql1", "sql")]), "--url", plane.url)
    assert done.stdout.split() == ["-", "extra", "removed", "extra"]
    assert len(plane.put) == 1


def test_a_failed_update_tells_each_model_and_its_reason(plane: Plane, tmp_path: Path) -> None:
    plane.serve({"sql1": "sql"})
    plane.work = [work("FAILED", 40.0)]
    plane.errors = [
        {"code": "RankRefused", "message": "rank 512", "modelId": model_id("bad")},
        {"code": "UpdateFailed", "message": "1 model failed"},
    ]
    done = run("update", "--live", config(tmp_path, [member("bad", "sql")]), "--url", plane.url)
    assert done.returncode == 1
    assert "error [RankRefused]: sql: rank 512\n" in done.stderr
    assert "error [UpdateFailed]: 1 model failed\n" in done.stderr
    assert "is live" not in done.stderr


def test_an_adapter_that_is_refused_is_named_and_nothing_is_changed(
    plane: Plane, tmp_path: Path
) -> None:
    plane.serve({})
    plane.refuse["POST /20190101/models"] = (404, "SourceNotFound", "nothing stands there")
    done = run("update", "--live", config(tmp_path, [member("x", "sql")]), "--url", plane.url)
    assert done.returncode == 1
    said = "error [SourceNotFound]: group.members[0] (sql): nothing stands there"
    assert said in done.stderr
    assert (len(plane.groups), plane.put) == (1, [])


def test_adapters_of_this_machine_are_sent_and_what_the_server_has_is_not(
    plane: Plane, tmp_path: Path
) -> None:
    """Relative to the file, wherever the command runs; each content once, in whatever it comes."""
    plane.serve({})
    there, mine = (write_adapter(tmp_path / f"a{seed}", seed=seed) for seed in (1, 2))
    with outgoing(str(there)) as known, outgoing(str(mine)) as new:
        digests = [known.digest, new.digest]
    plane.adapters[digests[0]] = b""
    shutil.make_archive(str(tmp_path / "packed"), "zip", mine)
    (tmp_path / "link").symlink_to(mine)
    sources = {"x": "./a1", "y": "a2", "z": "packed.zip", "w": str(tmp_path / "link")}
    listed = [{"key": key, "source": source} for key, source in sources.items()]
    path, elsewhere = config(tmp_path, listed), tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = run("update", "--live", path, "--url", plane.url, cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    assert plane.sent() == digests[1:]
    with zipfile.ZipFile(io.BytesIO(plane.adapters[digests[1]])) as archive:
        for name in archive.namelist():
            assert archive.read(name) == (mine / name).read_bytes()
        assert sorted(archive.namelist()) == sorted(os.listdir(mine))
    wanted = [model_id(digests[0].removeprefix("sha256:"))]
    wanted += [model_id(digests[1].removeprefix("sha256:"))] * 3
    entries = plane.groups[-1]["memberModelEntries"]["memberModelDetails"]
    assert [each["modelId"] for each in entries[1:]] == wanted
    lines = done.stderr.splitlines()
    assert "    the server has 1 of 2 from here" in lines
    assert sum("✓ Sending y, " in line for line in lines) == 1
    again = run("update", "--live", path, "--url", plane.url)
    assert (again.returncode, plane.sent()) == (0, digests[1:])


def test_an_adapter_that_is_none_is_refused_before_another_one_is_sent(
    plane: Plane, tmp_path: Path
) -> None:
    plane.serve({})
    good = {"key": "good", "source": str(write_adapter(tmp_path / "good"))}
    broken = write_adapter(tmp_path / "broken")
    (broken / "adapter_model.safetensors").write_bytes(b"short")
    for source, code in ((str(broken), "WeightsInvalid"), ("mistyped", "SourceNotFound")):
        path = config(tmp_path, [good, {"key": "bad", "source": source}])
        done = run("update", "--live", path, "--url", plane.url)
        assert done.returncode == 1
        assert f"error [{code}]: group.members[1] (bad): " in done.stderr, done.stderr
    assert not [each for each in plane.asked if not each.startswith("GET")]


@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        ((404, "NotFound", "there is nothing"), "ServerTooOld"),
        ((403, "NotAllowed", "it is off here"), "NotAllowed"),
        ((401, "NotAuthenticated", "sign it"), "NotAuthenticated"),
    ],
)
def test_a_server_that_takes_no_adapters_says_so_before_any_is_sent(
    plane: Plane, tmp_path: Path, refusal: tuple[int, str, str], code: str
) -> None:
    plane.serve({})
    place = write_adapter(tmp_path / "a")
    with outgoing(str(place)) as adapter:
        plane.refuse[f"GET /stacked/adapters/{adapter.digest}"] = refusal
    done = run("update", "--live", config(tmp_path, [{"source": str(place)}]), "--url", plane.url)
    assert (done.returncode, f"error [{code}]: " in done.stderr) == (1, True), done.stderr
    assert not [each for each in plane.asked if not each.startswith("GET")]


def test_an_upload_that_is_cut_off_changes_nothing_and_may_be_made_again(
    plane: Plane, tmp_path: Path
) -> None:
    plane.serve({})
    path = config(tmp_path, [{"key": "x", "source": str(write_adapter(tmp_path / "a"))}])
    plane.cut = True
    done = run("update", "--live", path, "--url", plane.url)
    assert done.returncode == 1
    assert "error [ConnectionLost]: group.members[0] (x): " in done.stderr
    assert "run this again" in done.stderr
    assert (len(plane.groups), plane.put, plane.adapters) == (1, [], {})
    plane.cut = False
    assert run("update", "--live", path, "--url", plane.url).returncode == 0
    assert len(plane.adapters) == 1


def test_a_second_update_is_refused(plane: Plane, tmp_path: Path) -> None:
    plane.serve({})
    place = f"PUT /20190101/modelDeployments/{DEPLOYMENT}"
    plane.refuse[place] = (409, "UpdateInProgress", "another one is under way")
    path = config(tmp_path, [member("x", "sql")])
    done = run("update", "--live", path, "--url", plane.url)
    assert done.returncode == 1
    assert "error [UpdateInProgress]: another one is under way" in done.stderr
    plane.status["update"] = WORK
    plane.asked.clear()
    done = run("update", "--live", path, "--url", plane.url)
    assert done.returncode == 1
    assert WORK in done.stderr
    assert not [each for each in plane.asked if each.startswith("POST")]


def test_other_engine_settings_are_refused_before_anything_is_registered(
    plane: Plane, tmp_path: Path
) -> None:
    plane.serve({})
    plane.refuse["POST /stacked/check"] = (400, "UpdateNotLive", "settings differ (dtype)")
    path = config(tmp_path, [member("x", "sql")], engine={"dtype": "half"})
    done = run("update", "--live", path, "--url", plane.url)
    assert (done.returncode, "error [UpdateNotLive]: settings differ" in done.stderr) == (1, True)
    assert "POST /20190101/models" not in plane.asked


def test_another_base_is_refused_before_anything_is_registered(
    plane: Plane, tmp_path: Path
) -> None:
    held, given = tmp_path / "held", tmp_path / "given"
    held.mkdir()
    given.mkdir()
    plane.serve({})
    plane.base_source = str(held)
    wrong = [
        {"model": "tiny", "id": model_id("other")},
        {"model": str(given)},
    ]
    for base in wrong:
        path = config(tmp_path, [member("x", "sql")], base=base)
        done = run("update", "--live", path, "--url", plane.url)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("error [UpdateNotLive]: base.")
    assert not [each for each in plane.asked if each.startswith("POST")]


def test_another_key_of_the_base_is_a_rename_like_any_other(plane: Plane, tmp_path: Path) -> None:
    plane.serve({"x": "sql"})
    path = config(tmp_path, [member("x", "sql")], base={"model": "tiny", "key": "other"})
    done = run("update", "--live", path, "--url", plane.url)
    assert done.returncode == 0, done.stderr
    assert "other" in done.stdout
    assert "was base" in done.stdout
    entries = plane.groups[-1]["memberModelEntries"]["memberModelDetails"]
    assert {"modelId": BASE, "inferenceKey": "other"} in entries


def test_update_without_live_is_wrong_usage(tmp_path: Path) -> None:
    done = within("update", config(tmp_path, []))
    assert done.exit_code == 2
    assert "--live" in done.stderr


@pytest.mark.parametrize("command", ["status", "groups", "rollback"])
def test_without_a_server_each_says_how_to_start_one(command: str) -> None:
    done = run(command, "--url", f"http://127.0.0.1:{free_port()}")
    assert (done.returncode, done.stdout) == (1, "")
    assert "stacked serve" in done.stderr


# --- rollback ------------------------------------------------------------------------------


def test_rollback_goes_to_the_group_before(plane: Plane) -> None:
    plane.serve({"sql2": "sql"})
    entries = [
        {"modelId": BASE, "inferenceKey": "base"},
        {"modelId": model_id("sql1"), "inferenceKey": "sql"},
    ]
    plane.groups.insert(0, group(f"{FIRST}0", "before", entries))
    plane.status["previousGroupId"] = f"{FIRST}0"
    done = run("rollback", "--url", plane.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["~", "sql", "changed", "sql2", "→", "sql1"]
    change = plane.put[0]["modelDeploymentConfigurationDetails"]
    assert change["modelGroupConfigurationDetails"] == {"modelGroupId": f"{FIRST}0"}


def test_rollback_without_a_group_before_says_so(plane: Plane) -> None:
    plane.serve({"sql1": "sql"})
    done = run("rollback", "--url", plane.url)
    assert (done.returncode, plane.put) == (1, [])
    assert done.stderr.startswith("error [NoPreviousGroup]: ")


# --- groups and status ---------------------------------------------------------------------


def test_groups_are_listed_from_every_page_and_the_served_one_is_marked(plane: Plane) -> None:
    plane.serve({})
    plane.groups += [group(f"{FIRST}{at}", f"later{at}", []) for at in (1, 2)]
    done = run("groups", "--url", plane.url)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    assert [row[-1] for row in rows] == [*["2026-01-02T03:04:05.678Z"] * 2, "served"]
    assert [row[0] for row in rows] == ["later2", "later1", "●"]


def test_status_tells_group_generation_and_models(plane: Plane) -> None:
    plane.serve({"sql1": "sql"}, reason="the update failed", draining=["old"])
    done = run("status", "--url", plane.url)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["generation", "3"] in lines
    assert ["state", "ACTIVE:", "the", "update", "failed"] in lines
    assert ["draining", "old"] in lines
    assert lines[-1] == ["sql", model_id("sql1"), "sql1", "8", "SUCCESS", "2", "yes"]


def test_an_engine_that_does_not_serve_is_shown_and_not_updated(
    plane: Plane, tmp_path: Path
) -> None:
    engine = {"state": "restarting", "reason": "it died", "nextStart": "2026-01-02T03:04:05.678Z"}
    plane.serve({"sql1": "sql"}, engine=engine)
    done = run("status", "--url", plane.url)
    assert done.returncode == 0, done.stderr
    assert "restarting: it died; next start 2026-01-02T03:04:05.678Z" in done.stdout
    plane.serve({}, engine={**engine, "state": "none"}, deploymentId=None, groupId=None)
    plane.status |= {"groupName": None, "generation": None, "state": None}
    assert "none: it died" in run("status", "--url", plane.url).stdout
    refused = run("rollback", "--url", plane.url)
    assert refused.returncode == 1
    assert "NotReady" in refused.stderr
    assert "it died" in refused.stderr


def test_status_shows_experiments(plane: Plane) -> None:
    arms = [{"key": "a", "share": 0.6, "digest": "d"}, {"key": "b", "share": 0.4, "digest": None}]
    plane.serve({}, experiments=[{"key": "sql", "unit": "user", "phase": "1f", "arms": arms}])
    lines = [line.split() for line in run("status", "--url", plane.url).stdout.splitlines()]
    assert ["sql", "user", "1f", "a", "60%,", "b", "40%"] in lines


def test_status_as_json_is_what_the_server_said(plane: Plane) -> None:
    plane.serve({"sql1": "sql"})
    done = run("status", "--json", "--url", plane.url)
    assert json.loads(done.stdout) == plane.status
    assert done.stdout.count("\n") == 1


def test_watching_tells_every_change_until_it_is_interrupted(plane: Plane) -> None:
    plane.serve({"sql1": "sql"})
    command = [sys.executable, "-m", "stacked", "status", "--watch", "--json", "--url", plane.url]
    watching = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert watching.stdout is not None
    try:
        assert json.loads(watching.stdout.readline())["generation"] == 3
        plane.status = {**plane.status, "generation": 4}
        assert json.loads(watching.stdout.readline())["generation"] == 4
    finally:
        watching.send_signal(signal.SIGINT)
        rest, said = watching.communicate(timeout=60)
    assert (watching.returncode, rest, said) == (130, "", "")
