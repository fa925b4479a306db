"""Uploads of OCI's own SDK, unmodified: signed, over HTTP, through the gateway, without an engine.

`tests/contract/operations` has every operation of it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from oci.data_science import DataScienceClient
from oci.data_science import models as sdk
from oci.exceptions import ServiceError

from stacked.api.gate import open_gate
from stacked.api.gateway import Gateway
from tests.api.control.plane import Plane, control_plane, packed
from tests.api.doors import sdk_config, served


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    with control_plane(tmp_path_factory.mktemp("plane"), auth={"oci": True}) as made:
        yield made


@pytest.fixture(scope="module")
def client(plane: Plane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DataScienceClient]:
    data_dir = tmp_path_factory.mktemp("data")
    config = sdk_config(data_dir)
    door = Gateway(plane.service, plane.http.app, open_gate(plane.service.config, data_dir))
    with served(door) as url:
        yield DataScienceClient(config, service_endpoint=url)


def create(client: DataScienceClient, **more: Any) -> sdk.Model:
    details = sdk.CreateModelDetails(compartment_id="c", project_id="p", **more)
    return cast(sdk.Model, client.create_model(details).data)


def test_a_file_is_streamed_from_the_disk_and_back(
    client: DataScienceClient, plane: Plane, tmp_path: Path
) -> None:
    id, path = create(client).id, tmp_path / "adapter.zip"
    path.write_bytes(packed(plane.roots, 2))
    with path.open("rb") as file:
        client.create_model_artifact(id, file)
    back = b"".join(client.get_model_artifact_content(id).data.iter_content(1000))
    assert back == path.read_bytes()


def test_a_large_upload_that_is_refused_is_told_why(client: DataScienceClient) -> None:
    id = create(client).id
    for headers, status, code in (
        ({"if_match": "another"}, 412, "NoEtagMatch"),
        ({}, 400, "ArchiveInvalid"),
    ):
        with pytest.raises(ServiceError) as caught:
            client.create_model_artifact(id, io.BytesIO(bytes(8_000_000)), **headers)
        assert (caught.value.status, caught.value.code) == (status, code)
