"""No command prints a password or a signature of an address, or a token of its environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.wire import wire

ADDRESS = "https://u:zqsecret@127.0.0.1:1/x.zip?sig=zqsecret"
SERVER = "http://u:zqsecret@127.0.0.1:1"


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "hello", "--url", SERVER],
        ["status", "--url", f"{SERVER}?x=zqsecret"],
        ["usage", "--url", SERVER],
        ["prepare", ADDRESS],
        ["serve", "zqfile.yaml"],
    ],
)
def test_an_error_shows_no_secret(arguments: list[str], tmp_path: Path) -> None:
    tree = f"base: {{model: '{ADDRESS}'}}\ngroup: {{members: [{{source: '{ADDRESS}'}}]}}"
    (tmp_path / "zqfile.yaml").write_text(tree)
    done = subprocess.run(
        [sys.executable, "-m", "stacked", *arguments],
        cwd=tmp_path,
        env={**os.environ, "STACKED_API_KEY": "stk_zqsecret", "STACKED_DATA_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "error [" in done.stderr
    assert "zqsecret" not in done.stdout + done.stderr


def test_a_refusal_that_quotes_nothing_shows_no_token(tmp_path: Path) -> None:
    with wire() as told:
        told.status, told.answer = 401, {"code": "NotAuthenticated", "message": "no"}
        done = subprocess.run(
            [sys.executable, "-m", "stacked", "status", "--url", told.url],
            env={**os.environ, "STACKED_API_KEY": "stk_zqsecret"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert told.headers["authorization"] == "Bearer stk_zqsecret"
    assert "NotAuthenticated" in done.stderr
    assert "zqsecret" not in done.stdout + done.stderr
