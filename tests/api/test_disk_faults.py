"""A server on a disk that is full or cannot be written: what it says before it starts anything."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.serving import Server, free_port, stop
from tests.waiting import until

MOUNTS = (
    shutil.which("unshare") is not None
    and subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0
)


@pytest.mark.skipif(not MOUNTS, reason="mounting a small disk needs root")
@pytest.mark.parametrize(
    ("mounting", "advice"),
    [
        ("mount -t tmpfs -o ro tmpfs $0", "check its permissions"),
        (
            "mount -t tmpfs -o size=64k tmpfs $0; cat /dev/zero > $0/full 2>/dev/null",
            "No space left on device; choose another",
        ),
    ],
    ids=["read-only", "full"],
)
def test_disk_that_cannot_be_written_is_refused_by_name(
    tmp_path: Path, mounting: str, advice: str
) -> None:
    place = tmp_path / "data"
    place.mkdir()
    serve = f"exec {sys.executable} -m stacked serve --port {free_port()} --data-dir $0"
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", f"{mounting}; {serve} control.yaml", str(place)],
        cwd=_with_config(tmp_path),
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = " ".join(done.stderr.split())
    assert done.returncode == 1
    assert "Traceback" not in said
    assert str(place) in said.replace(" ", "")
    assert advice in said


@pytest.mark.skipif(not MOUNTS, reason="mounting a small disk needs root")
def test_disk_of_logs_that_fills_up_costs_lines_and_is_said_once(tmp_path: Path) -> None:
    logs, port = tmp_path / "data" / "logs", free_port()
    logs.mkdir(parents=True)
    (tmp_path / "control.yaml").write_text(f"server: {{port: {port}}}\n", encoding="utf-8")
    serve = f"exec {sys.executable} -m stacked serve control.yaml --data-dir data"
    script = f"mount -t tmpfs -o size=256k tmpfs {logs}; {serve}"
    command = ("unshare", "-m", "bash", "-c", script)
    server = Server(f"http://127.0.0.1:{port}", tmp_path, command, {})
    try:
        server.start("/health/live")
        # Only that process has the small disk; it goes with it.
        seen = Path(f"/proc/{server.process.pid}/root") / logs.relative_to("/")
        first = answered(server, "before")
        log = seen / "access.log"
        until(lambda: log.exists() and first in log.read_text())
        with suppress(OSError), (seen / "full").open("wb", buffering=0) as full:
            while True:
                full.write(bytes(4096))
        lost = [
            answered(server, f"{number:0200}") for number in range(50)
        ]  # a page has room for some
        until(lambda: "No space left on device. Serving goes on" in server.printed())
        (seen / "full").unlink()
        last = answered(server, "after")
        until(lambda: "log lines are written again" in server.printed())
        lines = log.read_text().splitlines()
    finally:
        code = stop(server.process)
    assert code == 0
    assert server.printed().count("are lost") == server.printed().count("written again") == 1
    ids = [ID.findall(line) for line in lines]
    assert {len(each) for each in ids} == {1}, "a line of the log is not whole"
    there = {id for (id,) in ids}
    assert {first, last} <= there
    assert not there.issuperset(lost)


ID = re.compile(r"INFO stacked.access id=(\S+) .* path=/stacked/status status=200 .*seconds=\S+")


def answered(server: Server, name: str) -> str:
    """The id of a request that was answered, whose line has this name."""
    answer = httpx.get(f"{server.url}/stacked/status", headers={"opc-request-id": name})
    assert answer.status_code == 200
    return answer.headers["opc-request-id"]


def _with_config(directory: Path) -> Path:
    (directory / "control.yaml").write_text("server: {}\n", encoding="utf-8")
    return directory
