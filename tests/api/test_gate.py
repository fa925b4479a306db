"""The gate in front of an app: OCI's SDK comes in, others do not, uploads pass as they come."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import oci
import pytest
import requests
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Scope
from typer.testing import CliRunner

from stacked.api.cors import LocalGate
from stacked.api.errors import plain_body
from stacked.api.gate import Gate, check_reach, is_upload, open_gate
from stacked.api.server import run
from stacked.callers import caller_of
from stacked.cli import app as cli
from stacked.config import AuthConfig, BaseConfig, Config, OciAuth, ServerConfig
from stacked.errors import ConfigInvalid, NotAuthenticated
from stacked.keys import remove
from stacked.steps import Silent
from tests.api.doors import config_of, gateway_of, sdk_config, served, signer

MODEL = "ocid1.datasciencemodel.oc1..m"


@dataclass
class Double:
    """An app that notes what reaches it."""

    seen: list[tuple[str, str, str]] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    def app(self) -> Starlette:
        async def answer(request: Request) -> Response:
            who = caller_of(request.scope).user
            self.seen.append((request.method, request.url.path, who))
            self.bodies.append(await request.body())
            listing = request.url.path == "/20190101/models" and request.method == "GET"
            model = {"id": MODEL, "displayName": "m", "lifecycleState": "ACTIVE"}
            return JSONResponse([model] if listing else model, headers={"etag": "e"})

        async def upload(request: Request) -> Response:
            content = hashlib.sha256()
            async for part in request.stream():
                self.parts.append(len(part))
                content.update(part)
            self.seen.append((request.method, content.hexdigest(), caller_of(request.scope).user))
            return Response(status_code=204)

        async def refuse(request: Request, error: Exception) -> Response:
            return JSONResponse(plain_body("NotAuthenticated", str(error)), 401)

        return Starlette(
            exception_handlers={NotAuthenticated: refuse},
            routes=[
                Route("/20190101/models/{id}/artifact", upload, methods=["POST"]),
                Route("/{path:path}", answer, methods=["GET", "POST", "PUT", "DELETE"]),
            ],
        )


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def alice(data_dir: Path) -> dict[str, Any]:
    return sdk_config(data_dir)


@pytest.fixture(scope="module")
def app_key(data_dir: Path) -> dict[str, Any]:
    return sdk_config(data_dir, "app", admin=False)


@pytest.fixture(scope="module")
def place(
    data_dir: Path, alice: dict[str, Any], app_key: dict[str, Any]
) -> Iterator[tuple[Double, str]]:
    """A server that knows both keys from its start."""
    double = Double()
    with served(gateway_of(double.app(), data_dir)) as url:
        yield double, url


@pytest.fixture
def double(place: tuple[Double, str]) -> Double:
    for noted in (place[0].seen, place[0].parts, place[0].bodies):
        noted.clear()
    return place[0]


@pytest.fixture
def url(place: tuple[Double, str], double: Double) -> str:
    return place[1]


def client_of(config: dict[str, Any], url: str) -> Any:
    return oci.data_science.DataScienceClient(
        config, service_endpoint=url, retry_strategy=oci.retry.NoneRetryStrategy()
    )


def code_of(answer: requests.Response | httpx.Response) -> str:
    tree = answer.json()
    assert set(tree) == {"code", "message"}
    assert tree["message"]
    return str(tree["code"])


# -- OCI's SDK, over real HTTP --------------------------------------------------------------


@pytest.mark.parametrize("ending", ["", "/", "/20190101", "///"])
def test_the_sdk_reads_and_writes(
    double: Double, alice: dict[str, Any], url: str, ending: str
) -> None:
    client = client_of(alice, url + ending)
    listed = client.list_models("ocid1.compartment.oc1..c", display_name="a b+c=d", page="x/y==")
    assert [model.id for model in listed.data] == [MODEL]
    assert client.get_model("a b/c").data.id == MODEL
    made = client.create_model(oci.data_science.models.CreateModelDetails(display_name="é"))
    assert made.headers["etag"] == "e"
    client.activate_model(MODEL)
    client.delete_model(MODEL)
    assert [method for method, _, _ in double.seen] == ["GET", "GET", "POST", "POST", "DELETE"]
    # A slash in an id is one of the path, for the SDK.
    assert double.seen[1][1] == "/20190101/models/a b/c"
    assert all(path.startswith("/20190101/") for _, path, _ in double.seen)
    assert {who for _, _, who in double.seen} == {alice["user"]}


@pytest.mark.parametrize("ending", ["", "/"])
def test_uploads_pass_unsigned_bodies_of_bytes_and_of_files(
    double: Double, alice: dict[str, Any], url: str, ending: str
) -> None:
    content = bytes(range(256)) * 4096 * 3
    client = client_of(alice, url + ending)
    for body in (content, io.BytesIO(content)):
        done = client.create_model_artifact(MODEL, body, content_disposition="attachment")
        assert done.status == 204
    digests = [digest for _, digest, _ in double.seen]
    assert digests == [hashlib.sha256(content).hexdigest()] * 2
    assert max(double.parts) < len(content)  # in parts, as they came


@pytest.mark.parametrize(
    ("method", "path", "reaches"),
    [
        ("PUT", "/modelDeployments/d", "/20190101/modelDeployments/d"),
        ("GET", "//modelGroups?compartmentId=c", "/20190101/modelGroups"),
        ("GET", "/models/m", "/20190101/models/m"),
        ("POST", "/models", "/20190101/models"),
        ("POST", "/models/m/actions/activate", "/20190101/models/m/actions/activate"),
        # A container's own verbs stay what they are.
        ("POST", "/models/m", "/models/m"),
        ("DELETE", "/models/m", "/models/m"),
        ("GET", "/models/m/health", "/models/m/health"),
        ("GET", "/modelsX", "/modelsX"),
        ("GET", "/20190101/models", "/20190101/models"),
    ],
)
def test_the_control_plane_is_there_without_the_version_too(
    double: Double, alice: dict[str, Any], url: str, method: str, path: str, reaches: str
) -> None:
    """Signed as it was sent: `PUT {endpoint}/modelDeployments/…` of Oracle's own page."""
    body = "{}" if method in ("POST", "PUT") else None
    answer = requests.request(method, url + path, data=body, auth=signer(alice), timeout=10)
    assert answer.status_code == 200, answer.text
    assert double.seen == [(method, reaches, alice["user"])]


def test_an_upload_without_the_version_is_an_upload(
    double: Double, alice: dict[str, Any], url: str
) -> None:
    place, content = f"{url}/models/{MODEL}/artifact", bytes(1 << 18)
    generic = signer(alice).without_content_headers
    assert requests.post(place, content, auth=generic, timeout=10).status_code == 204
    assert double.seen[0][1] == hashlib.sha256(content).hexdigest()


def test_predict_is_signed_by_the_same_signer(
    double: Double, alice: dict[str, Any], url: str
) -> None:
    answer = requests.get(f"{url}/models/x/health", auth=signer(alice), timeout=10)
    assert answer.status_code == 200
    assert double.seen[0][2]


def test_a_stranger_is_told_so_by_the_sdk(
    double: Double, alice: dict[str, Any], url: str, tmp_path: Path
) -> None:
    stranger = sdk_config(tmp_path / "elsewhere", "mallory")
    with pytest.raises(oci.exceptions.ServiceError) as error:
        client_of(stranger, url).list_models("ocid1.compartment.oc1..c")
    assert (error.value.status, error.value.code) == (401, "NotAuthenticated")
    assert "no key is registered" in error.value.message
    assert error.value.request_id
    assert double.seen == []


# -- who comes in ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/20190101/models"),
        ("POST", "/20190101/models"),
        ("POST", f"/20190101/models/{MODEL}/artifact"),
        ("GET", "/stacked/status"),
        ("GET", "/models/x/health"),
        ("POST", "/models/x"),
        ("POST", "/predict"),
        ("GET", "/metrics"),
        ("GET", "//20190101/models"),
        ("GET", "/nowhere"),
        ("DELETE", "/health"),
        ("POST", "/health"),
        ("OPTIONS", "/20190101/models"),
    ],
)
def test_what_is_not_signed_does_not_come_in(
    double: Double, url: str, method: str, path: str
) -> None:
    answer = httpx.request(method, url + path, headers={"opc-request-id": "mine"})
    assert answer.status_code == 401
    assert code_of(answer) == "NotAuthenticated"
    assert answer.headers["opc-request-id"] == "mine"
    assert answer.headers["www-authenticate"].startswith("Signature")
    assert double.seen == []


def test_openai_clients_are_refused_in_their_own_shape(url: str) -> None:
    answer = httpx.post(f"{url}/v1/completions", json={})
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "NotAuthenticated"
    assert answer.json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize("path", ["/health", "/ping", "//health"])
def test_health_is_for_everyone(url: str, path: str) -> None:
    assert httpx.get(url + path).status_code == 200


def test_the_configured_health_path_is_for_everyone(
    double: Double, alice: dict[str, Any], data_dir: Path
) -> None:
    with served(gateway_of(double.app(), data_dir, config_of(health_path="/ready"))) as url:
        assert httpx.get(f"{url}/ready").status_code == 200
        assert httpx.get(f"{url}/readyz").status_code == 401


def test_a_signature_for_one_path_does_not_open_the_doubled_one(
    alice: dict[str, Any], url: str
) -> None:
    made = requests.Request("GET", f"{url}/20190101/models", auth=signer(alice)).prepare()
    assert httpx.get(f"{url}/20190101/models", headers=dict(made.headers)).status_code == 200
    assert httpx.get(f"{url}//20190101/models", headers=dict(made.headers)).status_code == 401


def test_a_body_that_was_not_signed_does_not_come_in(
    double: Double, alice: dict[str, Any], url: str
) -> None:
    made = requests.Request(
        "POST", f"{url}/20190101/models", data=b'{"a": 1}', auth=signer(alice)
    ).prepare()
    headers = dict(made.headers)
    answer = httpx.post(f"{url}/20190101/models", content=b'{"a": 2}', headers=headers)
    assert (answer.status_code, code_of(answer)) == (401, "NotAuthenticated")
    assert "the body is not the one" in answer.json()["message"]
    assert double.seen == []


def test_a_body_on_a_get_or_delete_must_be_signed_too(
    double: Double, alice: dict[str, Any], url: str
) -> None:
    made = requests.Request("DELETE", f"{url}/20190101/models/x", auth=signer(alice)).prepare()
    headers = {
        name: text for name, text in made.headers.items() if name.lower() != "content-length"
    }
    answer = httpx.request("DELETE", f"{url}/20190101/models/x", content=b"{}", headers=headers)
    assert answer.status_code == 401
    assert "leaves out content-length" in answer.json()["message"]
    assert double.seen == []


def test_a_body_over_the_limit_is_not_read_for_its_digest(
    double: Double, alice: dict[str, Any], data_dir: Path
) -> None:
    with served(gateway_of(double.app(), data_dir, config_of(max_body_bytes=1024))) as url:
        answer = requests.post(
            f"{url}/20190101/models", data=b"x" * 2000, auth=signer(alice), timeout=10
        )
    assert (answer.status_code, code_of(answer)) == (413, "PayloadTooLarge")


def test_an_upload_whose_body_was_signed_is_checked_before_its_last_part(
    double: Double, alice: dict[str, Any], url: str
) -> None:
    place, content = f"{url}/20190101/models/{MODEL}/artifact", b"x" * 500_000
    made = requests.Request("POST", place, data=content, auth=signer(alice)).prepare()
    headers = dict(made.headers)
    assert "x-content-sha256" in headers["authorization"]
    assert httpx.post(place, content=content, headers=headers).status_code == 204
    double.seen.clear()
    answer = httpx.post(place, content=content[:-1] + b"y", headers=headers)
    assert answer.status_code == 401
    assert double.seen == []


@pytest.mark.parametrize(
    ("method", "path", "upload"),
    [
        ("POST", "/20190101/models/m/artifact", True),
        ("POST", "/20190101/modelGroups/g/artifact", True),
        ("PUT", "/20190101/models/m/customMetadata/k/artifact", True),
        ("POST", "/20190101/models/m/definedMetadata/k/artifact", True),
        ("DELETE", "/20190101/models/m/customMetadata/k/artifact", False),
        ("POST", "/20190101/models/m/artifact/content", False),
        ("POST", "/20190101/models/artifact", False),
        ("POST", "/20190101/models/m/x/artifact", False),
        ("POST", "/20190101/modelDeployments/d/artifact", False),
        ("POST", "/20190101/models/m/artifact\n", False),
        ("PUT", "/stacked/adapters/sha256:ab", True),
        ("GET", "/stacked/adapters/sha256:ab", False),
        ("PUT", "/stacked/adapters/a/b", False),
    ],
)
def test_only_artifacts_are_uploads(method: str, path: str, upload: bool) -> None:
    assert is_upload(method, path) is upload


# -- keys that come and go ------------------------------------------------------------------


def test_a_key_that_is_added_works_and_one_that_is_removed_stops(
    double: Double, tmp_path: Path
) -> None:
    alice = sdk_config(tmp_path)
    with served(gateway_of(double.app(), tmp_path)) as url:

        def status(config: dict[str, Any]) -> int:
            place = f"{url}/20190101/models"
            return requests.get(place, auth=signer(config), timeout=10).status_code

        bob = sdk_config(tmp_path, "bob")
        assert (status(alice), status(bob)) == (200, 200)
        gone = signer(bob)
        remove(tmp_path, "bob")
        assert requests.get(f"{url}/20190101/models", auth=gone, timeout=10).status_code == 401
        assert status(alice) == 200
        new = sdk_config(tmp_path, "alice", force=True)
        assert status(new) == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/20190101/models", 403),
        ("POST", "/20190101/modelGroups", 403),
        ("PUT", "/20190101/modelDeployments/d", 403),
        ("PUT", "/modelDeployments/d", 403),
        ("GET", "/models/x", 403),
        ("POST", f"/20190101/models/{MODEL}/artifact", 403),
        ("POST", "/models/x", 403),
        ("DELETE", "/models/x", 403),
        ("POST", "/v1/load_lora_adapter", 403),
        ("POST", "/stacked/check", 403),
        ("POST", "/stacked/collect", 403),
        ("GET", "/stacked/status", 403),
        ("POST", "//models/x", 403),
        # They come in, and find no engine behind this door.
        ("POST", "/predict", 500),
        ("POST", "/v1/completions", 500),
    ],
)
def test_a_key_for_inference_reaches_nothing_else(
    double: Double, app_key: dict[str, Any], url: str, method: str, path: str, status: int
) -> None:
    body = b"{}" if method in ("POST", "PUT") else None
    made = requests.Request(method, url + path, data=body, auth=signer(app_key)).prepare()
    answer = httpx.request(method, url + path, content=made.body, headers=dict(made.headers))
    assert answer.status_code == status, answer.text
    assert double.seen == []


# -- where there is none --------------------------------------------------------------------


def test_without_auth_the_gate_is_for_this_machine_and_with_none_there_is_none(
    tmp_path: Path,
) -> None:
    assert isinstance(open_gate(config_of(auth=AuthConfig()), tmp_path), LocalGate)
    assert open_gate(config_of(auth=AuthConfig(none=True)), tmp_path) is None
    gate = open_gate(config_of(), tmp_path)
    assert isinstance(gate, Gate)
    assert "0 keys" in str(gate)
    assert "stacked keys create" in str(gate)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_without_auth_loopback_is_served(host: str) -> None:
    check_reach(ServerConfig(host=host))


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "", "10.0.0.1", "example.org", "localhost.example.org"]
)
def test_without_auth_another_address_is_refused_unless_told(host: str) -> None:
    with pytest.raises(ConfigInvalid, match="--insecure-no-auth") as error:
        check_reach(ServerConfig(host=host))
    assert "stacked keys create" in str(error.value)
    check_reach(ServerConfig(host=host, auth=AuthConfig(none=True)))
    check_reach(ServerConfig(host=host, auth=AuthConfig(oci=OciAuth())))


async def test_a_client_that_leaves_during_its_body_is_no_fault(
    double: Double, alice: dict[str, Any], data_dir: Path
) -> None:
    made = requests.Request(
        "POST", "http://here/20190101/models", data=b"{}", auth=signer(alice)
    ).prepare()
    headers = [(n.lower().encode(), t.encode()) for n, t in made.headers.items()]
    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": "/20190101/models",
        "raw_path": b"/20190101/models",
        "query_string": b"",
        "headers": headers,
    }
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await gateway_of(double.app(), data_dir)(scope, receive, send)
    assert sent == []
    assert double.seen == []


def test_serve_refuses_another_address_before_it_listens_or_starts_anything(
    tmp_path: Path,
) -> None:
    config = Config(base=BaseConfig(model="nowhere"), server=ServerConfig(host="0.0.0.0"))
    with pytest.raises(ConfigInvalid, match="not a loopback address"):
        run(config, data_dir=tmp_path / "data", progress=Silent())
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("text", "arguments", "auth"),
    [
        ("{}", [], AuthConfig()),
        ("{}", ["--insecure-no-auth"], AuthConfig(none=True)),
        ("{none: true}", ["--insecure-no-auth"], AuthConfig(none=True)),
        ("{oci: true}", [], AuthConfig(oci=OciAuth())),
    ],
)
def test_the_command_line_may_take_unsigned_requests(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    arguments: list[str],
    auth: AuthConfig,
) -> None:
    served: list[Config] = []

    def note(config: Config, **_: Any) -> int:
        served.append(config)
        return 0

    monkeypatch.setattr("stacked.api.server.run", note)
    path = tmp_path / "one.yaml"
    path.write_text(f"base: {{model: m}}\nserver: {{auth: {text}}}")
    done = CliRunner().invoke(cli, ["serve", str(path), "--host", "0.0.0.0", *arguments])
    assert done.exit_code == 0, done.output
    assert served[0].server.auth == auth


def test_the_command_line_does_not_take_signatures_away(tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text("base: {model: m}\nserver: {auth: {oci: true}}")
    with pytest.raises(ConfigInvalid, match="leave out --insecure-no-auth"):
        CliRunner().invoke(cli, ["serve", str(path), "--insecure-no-auth"], catch_exceptions=False)
