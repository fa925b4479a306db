"""Requests that the OpenAPI document allows, by each kind of credential and none: no 5xx, nothing
for who is not known, and nothing administrative for who only uses models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import oci
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from stacked.api.openapi import of_server
from stacked.api.routes import create_routes
from stacked.config import AuthConfig, ControlConfig, OciAuth
from stacked.keys import Rights, create, create_signing
from stacked.service import Service
from stacked.serving.targets import HEALTH_PATHS, canonical
from tests.contract.rig import Rig, rig

_DOCUMENT = of_server(create_routes(cast(Service, SimpleNamespace(config=ControlConfig()))))
_OPERATIONS = [
    result.ok() for result in schemathesis.openapi.from_dict(_DOCUMENT).get_all_operations()
]
_OPEN = tuple(HEALTH_PATHS)


@dataclass(frozen=True)
class Credentials:
    server: Rig
    tokens: dict[str, str]
    signers: dict[str, Any]

    def send(self, kind: str, case: schemathesis.Case) -> requests.Response:
        case.headers = {**(case.headers or {})}
        for name in ("authorization", "api-key", "Authorization"):
            case.headers.pop(name, None)
        if kind in self.tokens:
            case.headers["authorization"] = f"Bearer {self.tokens[kind]}"
        return cast(
            requests.Response, case.call(base_url=self.server.url, auth=self.signers.get(kind))
        )


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Credentials]:
    directory = tmp_path_factory.mktemp("credentials")
    data, over = directory / "data", datetime.now(UTC) - timedelta(days=1)
    kinds = {
        "serving": Rights(),
        "held": Rights(keys=frozenset({"x"})),
        "expired": Rights(admin=True, time_expires=over),
        "admin": Rights(admin=True),
    }
    tokens = {name: create(data, name, rights) for name, rights in kinds.items()}
    tokens |= {"unknown": tokens["admin"][:-1] + "A", "odd": "stk_\xe9"}
    signers = {
        "signed": _signer(data, "signed", Rights(admin=True)),
        "signed for inference": _signer(data, "inference", Rights()),
    }
    with rig(directory, auth=AuthConfig(bearer=True, oci=OciAuth())) as running:
        yield Credentials(running, tokens, signers)


def _signer(data: Path, name: str, rights: Rights) -> Any:
    made = create_signing(data, name, rights)
    return oci.signer.Signer.from_config(oci.config.from_file(str(made.sdk_config)))


def _sent(credentials: Credentials, kind: str, count: int) -> Counter[tuple[str, int]]:
    """Requests of every operation; which of them were answered how."""
    answered: Counter[tuple[str, int]] = Counter()

    def ask(operation: Any) -> None:
        @given(case=operation.as_strategy())
        @settings(
            max_examples=count,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def run(case: schemathesis.Case) -> None:
            answer = credentials.send(kind, case)
            path = canonical(operation.path)
            assert answer.status_code < 500 or answer.status_code in (501, 503), answer.text
            answered[f"{case.method} {path}", answer.status_code] += 1

        run()

    for operation in _OPERATIONS:
        ask(operation)
    return answered


@pytest.mark.parametrize("kind", ["none", "expired", "unknown", "odd"])
def test_who_is_not_known_gets_nothing(credentials: Credentials, kind: str) -> None:
    for (operation, status), _ in _sent(credentials, kind, 1).items():
        if not operation.endswith(_OPEN):
            assert status == 401, f"{operation}: {status}"


@pytest.mark.parametrize("kind", ["serving", "held", "signed for inference"])
def test_who_uses_models_administers_nothing(credentials: Credentials, kind: str) -> None:
    answered = _sent(credentials, kind, 3)
    for operation, status in answered:
        verb, _, path = operation.partition(" ")
        if path.startswith(("/20190101/", "/stacked/")) or "lora_adapter" in path:
            assert status in (403, 405), f"{operation}: {status}"
        if verb in ("PUT", "DELETE"):
            assert status in (403, 405), f"{operation}: {status}"
    assert sum(status == 403 for _, status in answered) > 50


@pytest.mark.parametrize("kind", ["admin", "signed"])
def test_who_administers_is_refused_nothing_for_want_of_rights(
    credentials: Credentials, kind: str
) -> None:
    answered = _sent(credentials, kind, 3)
    assert not [each for each in answered if each[1] == 401]
    assert sum(200 <= status < 300 for _, status in answered) > 10
