"""The whole walk with OCI's own SDK: models, a stacked group, a deployment, and a LIVE update.

    stacked serve --data-dir /tmp/stacked          # in one terminal
    python examples/oci_sdk.py                     # in another

It needs `pip install oci requests`, a base model's directory (or the model id of a base that the
server has) and LoRA adapters of it. Nothing of Stacked is imported: what works here works in
whatever scripts already speak to OCI Data Science, with `service_endpoint` as the one line changed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import oci
import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from oci.data_science import models as sdk

ROOT = Path(__file__).resolve().parent.parent
# A server of your own is one compartment and one project; these names are kept, and mean nothing.
COMPARTMENT = "ocid1.compartment.oc1..example"
PROJECT = "ocid1.datascienceproject.oc1..example"
OVER = ["SUCCEEDED", "FAILED", "CANCELED"]
# The waiter doubles its pauses up to half a minute; a server that is near can be asked more often.
WAIT = {"max_interval_seconds": 2, "max_wait_seconds": 600}
QUESTION = (
    "Write one SQL query.\nSchema: books(title, author, price)\n"
    "Question: Show the three most expensive books."
)


class Walk:
    """The SDK's clients, and what was made with them."""

    def __init__(self, endpoint: str, config: dict[str, Any]) -> None:
        self.client = oci.data_science.DataScienceClient(config, service_endpoint=endpoint)
        self.waiting = oci.data_science.DataScienceClientCompositeOperations(self.client)
        self.inference = oci.model_deployment.ModelDeploymentClient(
            config, service_endpoint=endpoint
        )
        self.signer = oci.signer.Signer.from_config(config)
        self.made: list[tuple[str, Callable[[], Any]]] = []

    # -- the catalogue ----------------------------------------------------------------------

    def upload(self, name: str, directory: Path, base_id: str | None = None) -> str:
        """A model whose content is a directory, zipped; its id. `base_id` is an adapter's base."""
        metadata = []
        if base_id is not None:
            metadata.append(sdk.Metadata(key="fine_tune_source", value=base_id, category="Other"))
        details = sdk.CreateModelDetails(
            compartment_id=COMPARTMENT,
            project_id=PROJECT,
            display_name=name,
            custom_metadata_list=metadata,
        )
        model = self.client.create_model(details).data
        self._remember(f"model {name}", lambda: self.client.delete_model(model.id))
        with tempfile.TemporaryFile() as file:
            zip_directory(directory, file)
            size = file.tell()
            file.seek(0)
            self.client.create_model_artifact(
                model.id, file, content_disposition=f'attachment; filename="{name}.zip"'
            )
        say(f"uploaded {directory} ({size / 1e6:.1f} MB) as {model.id}")
        return str(model.id)

    def base_from(self, given: str) -> str:
        """The model id of the base: given, read by the server where it stands, or uploaded."""
        if given.startswith("ocid1."):
            model = self.client.get_model(given).data
            say(f"the base is {model.display_name}, {model.id}")
            return str(model.id)
        directory = Path(given).expanduser().resolve()
        source = sdk.Metadata(key="source", value=str(directory))
        details = sdk.CreateModelDetails(
            compartment_id=COMPARTMENT,
            project_id=PROJECT,
            display_name=directory.name,
            custom_metadata_list=[source],
        )
        try:
            model = self.client.create_model(details).data
        except oci.exceptions.ServiceError as error:
            say(f"the server does not read {directory} itself ({error.code}); it is uploaded")
            return self.upload(directory.name, directory)
        self._remember(f"model {directory.name}", lambda: self.client.delete_model(model.id))
        say(f"the server reads {directory} where it stands, as {model.id}")
        return str(model.id)

    # -- groups -----------------------------------------------------------------------------

    def stacked_group(self, base_id: str, members: dict[str, str]) -> str:
        """A STACKED group of a base, under the key `base`, and models by inference key."""
        entries = {"base": base_id, **members}
        details = sdk.CreateModelGroupDetails(
            compartment_id=COMPARTMENT,
            project_id=PROJECT,
            display_name="example",
            model_group_details=sdk.StackedModelGroupDetails(base_model_id=base_id),
            member_model_entries=sdk.MemberModelEntries(
                member_model_details=[
                    sdk.MemberModelDetails(inference_key=key, model_id=id)
                    for key, id in entries.items()
                ]
            ),
        )
        group = self.waiting.create_model_group_and_wait_for_state(
            details, wait_for_states=OVER, waiter_kwargs=WAIT
        )
        return self._keep_group(group.data.resources[0].identifier, ", ".join(entries))

    def clone(self, group_id: str, key: str, old: str, new: str) -> str:
        """The same group with another model under one key."""
        patches = [
            sdk.PatchRemoveMemberModels(
                values=[sdk.MemberModelDetails(inference_key=key, model_id=old)]
            ),
            sdk.PatchInsertNewMemberModels(
                values=[sdk.MemberModelDetails(inference_key=key, model_id=new)]
            ),
        ]
        source = sdk.CloneCreateFromModelGroupDetails(
            source_id=group_id,
            modify_model_group_details=sdk.ModifyModelGroupDetails(display_name="example, newer"),
            patch_model_group_member_model_details=sdk.PatchModelGroupMemberModelDetails(
                items=patches
            ),
        )
        details = sdk.CloneModelGroupDetails(
            compartment_id=COMPARTMENT,
            project_id=PROJECT,
            model_group_clone_source_details=source,
        )
        group = self.client.create_model_group(details).data
        return self._keep_group(group.id, f"a clone, with another model under {key}")

    def _keep_group(self, id: str, what: str) -> str:
        self._remember(f"group {id}", lambda: self.client.delete_model_group(id))
        say(f"group {id} ({what})")
        return id

    # -- the deployment ---------------------------------------------------------------------

    def deploy(self, group_id: str, params: str) -> sdk.ModelDeployment:
        """Serve a group, and wait until it is served."""
        details = sdk.CreateModelDeploymentDetails(
            compartment_id=COMPARTMENT,
            project_id=PROJECT,
            display_name="example",
            model_deployment_configuration_details=sdk.ModelGroupDeploymentConfigurationDetails(
                model_group_configuration_details=sdk.ModelGroupConfigurationDetails(
                    model_group_id=group_id
                ),
                infrastructure_configuration_details=infrastructure(self.shape()),
                environment_configuration_details=(
                    sdk.DefaultModelDeploymentEnvironmentConfigurationDetails(
                        environment_variables={"PARAMS": params}
                    )
                ),
            ),
        )
        answer = self.client.create_model_deployment(details)
        id = answer.data.id
        self._remember(f"deployment {id}", lambda: self._delete_deployment(id))
        say(f"deployment {id} is {answer.data.lifecycle_state}")
        self.follow(answer.headers["opc-work-request-id"])
        return self.client.get_model_deployment(id).data

    def shape(self) -> str:
        """This machine, which is the one shape that the server has."""
        shape = self.client.list_model_deployment_shapes(COMPARTMENT).data[0]
        say(f"the server's machine: {shape.core_count} cores, {shape.memory_in_gbs} GB")
        return str(shape.name)

    def update_live(self, deployment: sdk.ModelDeployment, group_id: str) -> None:
        """Another group under traffic; the deployment's blocks are sent along as they are."""
        configuration = sdk.UpdateModelGroupDeploymentConfigurationDetails(
            update_type="LIVE",
            model_group_configuration_details=sdk.UpdateModelGroupConfigurationDetails(
                model_group_id=group_id
            ),
        )
        details = sdk.UpdateModelDeploymentDetails(
            model_deployment_configuration_details=configuration
        )
        done = self.waiting.update_model_deployment_and_wait_for_state(
            deployment.id, details, wait_for_states=OVER, waiter_kwargs=WAIT
        ).data
        self._tell(done.id, done.status)

    def follow(self, work_id: str) -> None:
        """Print the log of a work request as it grows, until it is over."""
        shown = 0
        first = self.client.get_work_request(work_id)

        def over(answer: Any) -> bool:
            nonlocal shown
            logs = self.client.list_work_request_logs(work_id).data
            for line in logs[shown:]:
                say(f"{answer.data.percent_complete:3.0f} %  {line.message}", 2)
            shown = len(logs)
            return answer.data.status in OVER

        done = oci.wait_until(self.client, first, evaluate_response=over, **WAIT).data
        self._tell(work_id, done.status)

    def _tell(self, work_id: str, status: str) -> None:
        say(f"work request {work_id}: {status}")
        if status != "SUCCEEDED":
            errors = self.client.list_work_request_errors(work_id).data
            raise SystemExit("\n".join(f"{each.code}: {each.message}" for each in errors))

    def states(self, deployment_id: str) -> None:
        rows = self.client.list_model_deployment_model_states(deployment_id, COMPARTMENT).data
        for row in rows:
            say(f"{row.inference_key or '':12} {row.state:10} {row.model_id}", 2)

    # -- inference --------------------------------------------------------------------------

    def ask(self, deployment: sdk.ModelDeployment, key: str) -> None:
        """The same question in each of the ways in which a request can name its model."""
        body = {
            "messages": [{"role": "user", "content": QUESTION}],
            "max_tokens": 40,
            "temperature": 0,
        }
        url = f"{deployment.model_deployment_url}/predict"
        header = requests.post(
            url, json=body, headers={"model-key": key}, auth=self.signer, timeout=60
        )
        header.raise_for_status()
        by_header = header.json()
        named = {**body, "model": key}
        by_body = requests.post(url, json=named, auth=self.signer, timeout=60).json()
        by_sdk = json.loads(self.inference.predict(deployment.id, named).data)
        texts = [each["choices"][0]["message"]["content"] for each in (by_header, by_body, by_sdk)]
        same = "the same three ways" if len(set(texts)) == 1 else f"three answers: {texts}"
        say(f"{key}: {texts[0].strip()!r} ({same})", 2)

    # -- the end ----------------------------------------------------------------------------

    def clean_up(self) -> None:
        """Delete what was made here: the deployment, then groups, then models."""
        for name, undo in sorted(self.made, key=lambda one: one[0].split()[0]):
            undo()
            say(f"deleted {name}")

    def _remember(self, name: str, undo: Callable[[], Any]) -> None:
        self.made.append((name, undo))

    def _delete_deployment(self, id: str) -> None:
        self.waiting.delete_model_deployment_and_wait_for_state(
            id, wait_for_states=OVER, waiter_kwargs=WAIT
        )


def infrastructure(shape: str) -> sdk.ModelDeployInfrastructureConfigurationDetails:
    return sdk.InstancePoolInfrastructureConfigurationDetails(
        instance_configuration=sdk.InstanceConfiguration(instance_shape_name=shape),
        scaling_policy=sdk.FixedSizeScalingPolicy(instance_count=1),
    )


def zip_directory(directory: Path, file: Any) -> None:
    """Weights hardly shrink, so they are packed as they are."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(directory.iterdir()):
            if path.is_file() and path.suffix != ".md":
                archive.write(path, path.name)


def some_config() -> dict[str, Any]:
    """A key made up for this run: the SDK signs always, a server without `auth.oci` looks not."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return {
        "tenancy": "ocid1.tenancy.oc1..example",
        "user": "ocid1.user.oc1..example",
        "fingerprint": ":".join(["00"] * 16),
        "key_file": None,
        "key_content": pem.decode(),
        "region": "us-ashburn-1",
    }


def say(text: str, indent: int = 0) -> None:
    print(textwrap.indent(text, " " * indent), flush=True)


def step(text: str) -> None:
    say(f"\n== {text}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--endpoint", default="http://127.0.0.1:8080", help="where the server is")
    add("--config-file", help="what `stacked keys create NAME --oci` wrote; default: any key does")
    add("--profile", default="DEFAULT", help="the profile in it")
    add(
        "--base",
        default=str(ROOT / ".stacked/bases/smollm2-135m-instruct"),
        help="a directory, or the model id of a base that the server has",
    )
    add(
        "--adapter",
        action="append",
        metavar="KEY=DIR",
        help="two adapters; default: the weak SQL writer and the pirate",
    )
    add(
        "--replacement",
        type=Path,
        default=ROOT / "adapters/sql/v2",
        metavar="DIR",
        help="what the first key means after the LIVE update; default: the good SQL writer",
    )
    add("--params", default="--max-model-len 1024", help="vLLM's flags for the deployment")
    add("--cleanup", action="store_true", help="delete what was made")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    config = some_config()
    if given.config_file:
        config = oci.config.from_file(given.config_file, given.profile)
    pairs = given.adapter or [
        f"sql={ROOT / 'adapters/sql/v1'}",
        f"pirate={ROOT / 'adapters/pirate/v1'}",
    ]
    adapters = {key: Path(directory) for key, _, directory in (p.partition("=") for p in pairs)}
    walk = Walk(given.endpoint, config)
    try:
        run(walk, given, adapters)
        if given.cleanup:
            step("Cleaning up")
            walk.clean_up()
    except oci.exceptions.ServiceError as error:
        sys.exit(f"{error.status} {error.code}: {error.message}")


def run(walk: Walk, given: argparse.Namespace, adapters: dict[str, Path]) -> None:
    step("Models")
    base = walk.base_from(given.base)
    members = {key: walk.upload(key, directory, base) for key, directory in adapters.items()}
    step("A stacked group of them")
    group = walk.stacked_group(base, members)
    step("Its deployment")
    deployment = walk.deploy(group, given.params)
    step("Answers by inference key")
    for key in ("base", *members):
        walk.ask(deployment, key)
    step("A clone with a changed member")
    changed = next(iter(members))
    newer = walk.upload(f"{changed}, newer", given.replacement, base)
    clone = walk.clone(group, changed, members[changed], newer)
    step("A LIVE update to it")
    walk.update_live(deployment, clone)
    step("Model states")
    walk.states(deployment.id)
    step("Answers after the update")
    for key in ("base", *members):
        walk.ask(deployment, key)


if __name__ == "__main__":
    main()
