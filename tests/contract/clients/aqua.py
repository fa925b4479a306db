"""AQUA's walk, by `oracle-ads`: create a stacked deployment, update it, list, stop and delete it.

Run by a Python that has `oracle-ads[aqua]`: `aqua.py ENDPOINT SDK_CONFIG BASE.zip A.zip B.zip`. The
last line that is printed is what was seen, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

C, P = "ocid1.compartment.oc1..c", "ocid1.datascienceproject.oc1..p"
OVER = ("ACTIVE", "INACTIVE", "FAILED", "DELETED")


def upload(client: Any, content: Path, name: str, tags: Any, metadata: dict[str, str]) -> str:
    """A model with an artifact, tagged as AQUA tags its own; its id."""
    from oci.data_science import models

    items = [models.Metadata(key=key, value=value) for key, value in metadata.items()]
    details = models.CreateModelDetails(
        compartment_id=C,
        project_id=P,
        display_name=name,
        freeform_tags={"OCI_AQUA": "active", **tags},
        custom_metadata_list=items,
    )
    id = str(client.create_model(details).data.id)
    client.create_model_artifact(id, content.read_bytes())
    return id


def main(endpoint: str, config: str, *zips: str) -> None:
    os.environ |= {
        "OCI_ODSC_SERVICE_ENDPOINT": endpoint,
        "PROJECT_OCID": P,
        "PROJECT_COMPARTMENT_OCID": C,
        "TELEMETRY_DISABLED": "true",
    }
    import ads
    import oci

    ads.set_auth("api_key", oci_config_location=config)
    from ads.aqua.modeldeployment import AquaDeploymentApp

    app = AquaDeploymentApp()
    client = oci.data_science.DataScienceClient(
        oci.config.from_file(config), service_endpoint=endpoint
    )
    base, first, second = map(Path, zips)
    base_id = upload(
        client,
        base,
        "tiny",
        {},
        {"artifact_location": "tiny/artifact", "deployment-container": "odsc-vllm-serving"},
    )
    # What AQUA otherwise looks for in object storage.
    known = {"shape": ["VM.GPU.A10.1"], "configuration": {"VM.GPU.A10.1": {"parameters": {}}}}
    client.create_model_defined_metadatum_artifact(
        base_id, "DeploymentConfiguration", json.dumps(known).encode()
    )
    of_base = {"fine_tune_source": base_id, "fine_tune_source_name": "tiny"}
    tuned = {"aqua_fine_tuned_model": f"{base_id}#tiny", "fine_tune_model_version": "v2"}
    ids = [upload(client, zip, zip.stem, tuned, of_base) for zip in (first, second)]
    weights = [
        {"model_id": id, "model_name": zip.stem, "model_path": ""}
        for id, zip in zip(ids, (first, second), strict=True)
    ]
    seen: dict[str, Any] = {"ids": ids}
    shapes = [shape.name for shape in app.list_shapes(compartment_id=C)]
    seen["shapes"] = shapes

    from ads.model.datascience_model import DataScienceModel

    with tempfile.TemporaryDirectory() as place:
        DataScienceModel.from_id(ids[0]).download_artifact(place, force_overwrite=True)
        seen["downloaded"] = sorted(os.listdir(place))

    def settle(id: str) -> str:
        """The state that a deployment comes to rest in."""
        for _ in range(300):
            state = str(client.get_model_deployment(id).data.lifecycle_state)
            if state in OVER:
                return state
            time.sleep(0.5)
        raise AssertionError(f"{id} stays {state}")

    def served(id: str) -> dict[str, str]:
        rows = client.list_model_deployment_model_states(id, C).data
        return {row.inference_key: row.state for row in rows}

    made = app.create(
        instance_shape="VM.GPU.A10.1",
        display_name="from AQUA",
        compartment_id=C,
        project_id=P,
        deployment_type="STACKED",
        models=[
            {"model_id": base_id, "model_name": "tiny", "fine_tune_weights": weights[:1]},
        ],
        env_var={"PARAMS": "--max-model-len 256"},
    )
    id = made.id
    seen["created"] = [settle(id), served(id)]
    details = client.get_model_deployment(id).data.model_deployment_configuration_details
    seen["environment"] = details.environment_configuration_details.environment_variables

    both = [{"model_id": base_id, "model_name": "renamed", "fine_tune_weights": weights}]
    app.update(id, models=both)
    seen["live"] = [settle(id), served(id)]
    app.update(id, display_name="described", description="anew")
    seen["zdt"] = [settle(id), app.get(id).display_name]
    seen["got"] = [app.get(id).id == id, [one.id for one in app.list(compartment_id=C)] == [id]]
    app.deactivate(id)
    seen["deactivated"] = settle(id)
    app.activate(id)
    seen["activated"] = [settle(id), served(id)]
    app.delete(id)
    for _ in range(300):
        if str(client.get_model_deployment(id).data.lifecycle_state) == "DELETED":
            break
        time.sleep(0.5)
    seen["deleted"] = str(client.get_model_deployment(id).data.lifecycle_state)
    time.sleep(1)  # the last line of the last work
    seen["works"] = sorted(
        f"{row.operation_type} {row.status}"
        for row in client.list_work_requests(C, resource_id=id).data
    )
    print(json.dumps(seen), flush=True)
    os._exit(0)  # AQUA's own threads still wait for services that are not here


if __name__ == "__main__":
    main(*sys.argv[1:])
