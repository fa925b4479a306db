"""The example as a file: that it stands alone, and what it does without a key file."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path

import oci

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "oci_sdk.py"


def test_it_needs_nothing_of_this_package() -> None:
    tree = ast.parse(EXAMPLE.read_text(encoding="utf-8"))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [str(node.module)]
        )
    }
    assert "oci" in imported
    assert "stacked" not in imported


def test_the_key_that_it_makes_up_is_one_that_the_sdk_takes() -> None:
    example = runpy.run_path(str(EXAMPLE))
    walk = example["Walk"]("http://127.0.0.1:1", example["some_config"]())
    assert walk.client.base_client.endpoint == "http://127.0.0.1:1/20190101"
    assert isinstance(walk.signer, oci.signer.Signer)
