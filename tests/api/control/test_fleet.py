"""`/stacked/fleet`: what the store of a fleet has, as it shows a person."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stacked.config import FleetConfig
from stacked.deployment.fleet import FleetMember
from stacked.fleet.shared import Abort, Advance, Beat, Fleet, Found, Join, Mode, Propose, Report
from stacked.registry.fleets import FleetStore
from tests.contract.rig import rig


def test_fleet_is_shown_at_each_stage_of_an_update(tmp_path: Path) -> None:
    store = FleetStore(tmp_path / "fleet.sqlite")
    with rig(tmp_path) as server:
        answer = server.http.get("/stacked/fleet")
        assert (answer.status_code, answer.json()["code"]) == (404, "NotAuthorizedOrNotFound")
        config = server.service.config
        fleet = FleetConfig(replica="b")
        server.service.config = config.model_copy(update={"fleet": fleet})
        server.service.ledger.fleet = store

        def shown() -> dict[str, Any]:
            return dict(server.http.get("/stacked/fleet").json())

        def gates() -> list[tuple[str, str]]:
            return [(each["gate"], each["reason"]) for each in shown()["members"]]

        assert server.http.get("/stacked/fleet").status_code == 503
        store.carry_out("", Found(Fleet(Mode.GLOBAL, 3, "g", 3)))
        for id in ("b/1", "a/1"):
            store.carry_out(id, Join(Report(id, id[0], 1, 3)))
        first = shown()
        members = first.pop("members")
        expected = {"replica": "b", "mode": "global", "generation": 3, "groupId": "g"}
        assert first == {**expected, "update": None}
        assert [each["name"] for each in members] == ["a", "b"]
        assert all(0 <= each.pop("silentSeconds") < 600 for each in members)
        open_ = {"name": "a", "id": "a/1", "generation": 3, "gate": "open", "reason": ""}
        assert members[0] == {**open_, "lacking": {}}
        store.put_lacking("a/1", 3, {"ocid1.m": "it died"})
        assert [each["lacking"] for each in shown()["members"]] == [{"ocid1.m": "it died"}, {}]

        store.carry_out("a/1", Propose("a/1", "work", "next", 3))
        assert shown()["update"] == {
            "number": 4,
            "stage": "PREPARING",
            "groupId": "next",
            "workRequestId": "work",
            "coordinator": "a",
            "reason": "",
        }
        assert gates() == [("loading", ""), ("loading", "")]
        for id in ("a/1", "b/1"):
            store.carry_out(id, Beat(Report(id, id[0], 2, 3, ready=4)))
        store.carry_out("a/1", Advance(4))
        store.carry_out("b/1", Beat(Report("b/1", "b", 3, 3, ready=4, held=4)))
        assert gates() == [("ready", ""), ("held", "")]
        store.carry_out("a/1", Beat(Report("a/1", "a", 3, 3, refused=4, reason="no room")))
        assert gates() == [("refused", "no room"), ("held", "")]
        store.carry_out("a/1", Abort(4, "replica a: no room"))
        ended = shown()["update"]
        assert (ended["stage"], ended["reason"]) == ("ABORTED", "replica a: no room")


def test_states_of_models_are_those_of_all_replicas(tmp_path: Path) -> None:
    store = FleetStore(tmp_path / "fleet.sqlite", 10.0)
    with rig(tmp_path) as server:
        server.stock()
        id, model = server.ids["modelDeployments"][0], server.ids["models"][0]
        service = server.service
        config = FleetConfig(replica="b", lease_seconds=60)
        service.fleet = FleetMember(service._slot, service.ledger, store, config)

        def shown() -> list[tuple[str, str]]:
            (here,) = server.http.get("/stacked/status").json()["models"]
            listed = server.ask("GET", f"/modelDeployments/{id}/models/modelState?modelId={model}")
            assert here["modelId"] == model
            found = [(here["state"], here["reason"])]
            return found + [(each["state"], each["lifecycleDetails"]) for each in listed]

        assert shown() == [("SUCCESS", "")] * 2
        store.carry_out("", Found(Fleet(Mode.GLOBAL, 1, "g", 1)))
        for name in ("a", "b"):
            store.carry_out(name, Join(Report(name, name, 1, 1)))
        store.put_lacking("a", 1, {model: "it died"})
        assert shown() == [("INCONSISTENT", "replica a: it died")] * 2
        store.put_lacking("b", 1, {model: "it died"})
        assert shown() == [("FAILED", "replica a, b: it died")] * 2
        store.put_lacking("a", 2, {model: "it died"})
        assert shown() == [("INCONSISTENT", "replica b: it died")] * 2
