"""A server without vLLM: nothing of it, nor torch, is imported where models are served.

Each server is a process of its own, in which an import is what it would be on a machine of a user.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.models.making import times

SERVES = """
import asyncio, sys
from pathlib import Path

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("vllm", "torch", "transformers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())

from stacked.config import ControlConfig
from stacked.registry import DEPLOYMENT, GROUP, Deployment, GroupMember, GroupRecord, Model, new_id
from stacked.service import Service

async def main(data, files):
    service = Service(ControlConfig(), data, durable=True)
    await service.start()
    try:
        digest = service.catalogue.models.add(files, "m").digest
        id = "ocid1.datasciencemodel.oc1..m"
        service.registry.models.put(Model(id=id, kind="model", digest=digest))
        group = GroupRecord(
            id=new_id(GROUP), display_name="g", kind="HETEROGENEOUS", base_model_id=None,
            members=(GroupMember(id, "m"),),
        )
        service.registry.groups.create(group)
        new = Deployment(id=new_id(DEPLOYMENT), display_name="d", configuration={"group": group.id})
        await service.deployments.create(new)
        await service.deployments.wait()
        print(service.registry.deployments.get(new.id).state.value, len(service.routing.members))
    finally:
        await service.close()

asyncio.run(main(*map(Path, sys.argv[1:])))
print(sorted({"onnxruntime", "openvino", "vllm", "torch"} & sys.modules.keys()))
"""

STARTS = """
import sys
import stacked.service, stacked.api.server, stacked.cli
print(sorted({"stacked.models", "onnxruntime", "openvino", "vllm"} & sys.modules.keys()))
"""


def run(script: str, *arguments: str) -> list[str]:
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_models_are_served_where_vllm_and_torch_cannot_be_imported(tmp_path: Path) -> None:
    files = times(tmp_path / "m", 2).path
    assert run(SERVES, str(tmp_path / "data"), str(files)) == ["ACTIVE 1", "[]"]


def test_a_server_imports_nothing_of_models_by_itself() -> None:
    assert run(STARTS) == ["[]"]
