"""A command of the documents, run as a reader would run it against the demo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.serving import Server


def run(command: str, server: Server, directory: Path, **environment: str) -> tuple[str, str]:
    """Run it in this directory; what it printed, and its messages."""
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        timeout=300,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "STACKED_URL": server.url,
            **environment,
        },
        cwd=directory,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout, done.stderr
