"""The document and the pages that show it, through the gateway, while nothing is deployed."""

from __future__ import annotations

from pathlib import Path

from tests.contract.rig import rig


def test_the_document_and_its_pages_are_there_before_anything_is_deployed(tmp_path: Path) -> None:
    with rig(tmp_path) as server:
        assert "/20190101/modelGroups" in server.http.get("/openapi.json").json()["paths"]
        for page in ("/docs", "/redoc", "/docs/"):
            shown = server.http.get(page)
            assert shown.status_code == 200
            assert "text/html" in shown.headers["content-type"]
            assert "/openapi.json" in shown.text
