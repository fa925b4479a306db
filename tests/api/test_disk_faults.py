"""A server on a disk that is full or cannot be written: what it says before it starts anything."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving import free_port

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


def _with_config(directory: Path) -> Path:
    (directory / "control.yaml").write_text("server: {}\n", encoding="utf-8")
    return directory
