"""A fleet on a Ray cluster of its own, as a user starts it, under traffic.

`pip install 'stacked[fleet]'`, then `pytest -m long tests/ray`: minutes, as Ray starts many
processes for three replicas.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.postgres import Postgres
from tests.ray.cluster import START_SECONDS, Fleet, Patient, Request, Traffic, fleet_of
from tests.waiting import until

ray = pytest.importorskip("ray", reason="stacked[fleet] is not installed")

pytestmark = [pytest.mark.long, pytest.mark.timeout(2400)]

# What a score.py of this version answers; each is another content.
CODE = "def predict(data, model):\n    return {version!r}\n"

PREDICT: Request = ("/predict", {}, lambda answer: answer)


def version(directory: Path, name: str) -> Path:
    source = directory / name
    source.mkdir(exist_ok=True)
    (source / "score.py").write_text(CODE.format(version=name))
    return source


@pytest.fixture(scope="module")
def fleet(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    member = {"key": "k", "source": str(version(tmp_path_factory.mktemp("first"), "one"))}
    tree: dict[str, Any] = {
        "group": {"name": "fleet", "kind": "HETEROGENEOUS", "members": [member]},
        "models": {"code": True},
        "storage": {"database": postgres.url()},
        "fleet": {"lease_seconds": 10, "hold_seconds": 10},
    }
    with fleet_of(tree, replicas=3) as found:
        yield found


def served(fleet: Fleet) -> set[str]:
    """What 30 requests are answered with."""
    sent = [
        httpx.post(f"{fleet.url}/predict", headers={"model-key": "k"}, json={}, timeout=60)
        for _ in range(30)
    ]
    return {answer.json() for answer in sent if answer.status_code == 200}


def policy(count: int) -> dict[str, Any]:
    return {"policyType": "FIXED_SIZE", "instanceCount": count}


def until_servers(fleet: Fleet, count: int) -> None:
    until(lambda: len(fleet.servers()) == count, START_SECONDS)


def test_three_replicas_answer_at_one_address(fleet: Fleet) -> None:
    assert len(fleet.servers()) == 3
    with Traffic(fleet, PREDICT) as traffic:
        traffic.goes_on(200)
    assert set(traffic.statuses) == {200}
    assert traffic.said == {"one"}
    shown = fleet.deployment()
    assert shown["modelDeploymentSystemData"]["currentInstanceCount"] == 3
    details = shown["modelDeploymentConfigurationDetails"]["infrastructureConfigurationDetails"]
    assert details["scalingPolicy"] == policy(3)


def test_an_update_through_the_one_address_switches_all_of_them(fleet: Fleet) -> None:
    with Traffic(fleet, PREDICT) as traffic:
        assert fleet.update(k=version(fleet.directory, "two")).wait(300) == 0
        traffic.goes_on()
    assert set(traffic.statuses) == {200}
    assert traffic.said == {"one", "two"}
    assert traffic.backwards == 0
    assert served(fleet) == {"two"}


def test_a_replica_that_is_killed_in_an_update_takes_only_its_own_requests(fleet: Fleet) -> None:
    """And a client of OpenAI's sees nothing of it: it sends them again by itself."""
    with Traffic(fleet, PREDICT) as traffic, Patient(fleet, PREDICT) as patient:
        with fleet.in_update(k=version(fleet.directory, "three")) as updating:
            ray.kill(fleet.actors()[0])
        until_servers(fleet, 3)
        until(fleet.healthy, START_SECONDS)
        for each in (traffic, patient):
            each.goes_on()
    print("plain", traffic.statuses, "openai", patient.statuses, "repeated", patient.repeated)
    assert traffic.failed <= 4  # one of each client was there
    assert set(patient.statuses) == {200}
    assert traffic.backwards == patient.backwards == 0
    wanted = "three" if updating.returncode == 0 else "two"
    assert served(fleet) == {wanted}


def test_from_one_replica_to_three_and_back_nobody_notices(fleet: Fleet) -> None:
    """By the file, as long as nobody has said a number over the control plane."""
    with Traffic(fleet, PREDICT) as traffic:
        for count in (1, 3, 1):
            before = fleet.servers()
            fleet.again(replicas=count)
            until_servers(fleet, count)
            assert before <= fleet.servers() or before >= fleet.servers()  # none is started again
            traffic.goes_on()
    assert set(traffic.statuses) == {200}
    assert traffic.backwards == 0


def test_more_replicas_are_started_where_requests_wait(fleet: Fleet) -> None:
    """One replica has requests for two."""
    scale = {"min": 1, "max": 2, "requests": 2, "up_after": "1s", "down_after": "5s"}
    fleet.again(replicas=scale)
    with Traffic(fleet, PREDICT, clients=6):
        until_servers(fleet, 2)
    until_servers(fleet, 1)


def test_the_control_plane_says_how_many_and_nobody_notices(fleet: Fleet) -> None:
    """Through the one address, whichever replica answers there; none is started again."""
    with Traffic(fleet, PREDICT) as traffic:
        for count in (3, 1):
            before = fleet.servers()
            assert fleet.scale(count) == 0
            until_servers(fleet, count)
            assert before <= fleet.servers() or before >= fleet.servers()
            traffic.goes_on()
            shown = fleet.deployment()["modelDeploymentConfigurationDetails"]
            assert shown["infrastructureConfigurationDetails"]["scalingPolicy"] == policy(count)
            until(
                lambda count=count: (
                    fleet.deployment()["modelDeploymentSystemData"]
                    == {
                        "systemInfraType": "INSTANCE_POOL",
                        "modelType": "MANAGED_MODEL",
                        "currentInstanceCount": count,
                    }
                ),
                START_SECONDS,
            )
    print("control plane", traffic.statuses)
    assert set(traffic.statuses) == {200}
    assert traffic.backwards == 0
    assert fleet.scale(10_000) == 1


def test_what_the_control_plane_said_is_there_after_a_restart(fleet: Fleet) -> None:
    """The file says one replica, the records two."""
    assert fleet.scale(2) == 0
    assert fleet.end() == 0
    fleet.write(replicas=1)
    fleet.start()
    fleet.connect()
    until_servers(fleet, 2)
