"""A small HTTP client of a running Stacked: predict, list, and change the served group LIVE."""

from __future__ import annotations

import json
import os
import ssl
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from stacked.answers import ClientError as ClientError
from stacked.answers import array_of, error_in, object_of, refusal
from stacked.core import VERSIONED, header_form
from stacked.errors import KeyFileInvalid
from stacked.logs import shown_url

_CONTROL = "/20190101"
DEFAULT_URL = "http://127.0.0.1:8080"


def default_url() -> str:
    """`$STACKED_URL`, otherwise the default address of `stacked serve`."""
    return os.environ.get("STACKED_URL") or DEFAULT_URL


def credential() -> httpx.Auth | None:
    """The token in `$STACKED_API_KEY`, or signatures by the key of `$STACKED_OCI_CONFIG`.

    Raises KeyFileInvalid.
    """
    token, path = os.environ.get("STACKED_API_KEY"), os.environ.get("STACKED_OCI_CONFIG")
    if token and path:
        raise KeyFileInvalid("STACKED_API_KEY and STACKED_OCI_CONFIG are both set; set only one")
    if token:
        return _Bearer(token)
    if not path:
        return None
    from stacked.signing import Signer  # imports cryptography, which most calls do not need

    return Signer.from_file(Path(path).expanduser())


class _Bearer(httpx.Auth):
    def __init__(self, token: str) -> None:
        self._header = f"Bearer {token}"

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["authorization"] = self._header
        yield request


@dataclass(frozen=True, slots=True)
class Served:
    """One model that the server lists: its names, its content, whether it is served."""

    key: str
    model_id: str
    digest: str
    rank: int | None
    state: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a group, the base included. `content` identifies its weights.

    It is the digest if known, otherwise the model id, which also names one content.
    """

    model_id: str
    key: str | None
    content: str
    weight: float = 1.0

    @property
    def label(self) -> str:
        return self.key or self.model_id

    def wire(self) -> dict[str, Any]:
        key = {} if self.key is None else {"inferenceKey": self.key}
        weight = {} if self.weight == 1.0 else {"weight": self.weight}
        return {"modelId": self.model_id, **key, **weight}


class Client:
    """One server, reached at `url`. A context manager; not for several threads at once.

    Requests have the token in `$STACKED_API_KEY`, or are signed if `$STACKED_OCI_CONFIG` names a
    config file of OCI's SDKs. `$SSL_CERT_FILE` names the authorities of https addresses.
    """

    def __init__(self, url: str | None = None, *, timeout: float = 600) -> None:
        self.url = (url or default_url()).rstrip("/")
        if "://" not in self.url:
            self.url = f"http://{self.url}"
        self._shown = shown_url(self.url)
        # An answer may take minutes on a CPU, a connection only moments.
        self._http = httpx.Client(timeout=httpx.Timeout(timeout, connect=5), auth=credential())

    def predict(self, key: str | None, body: dict[str, Any]) -> dict[str, Any]:
        """POST /predict and return the whole answer. Raises ClientError."""
        return self._one("POST", "/predict", headers=_headers(key), json=body)

    def predict_stream(self, key: str | None, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """POST /predict with `stream: true`; yields events as they arrive. Raises ClientError."""
        body = {**body, "stream": True}
        with self._asked("POST", "/predict", headers=_headers(key), json=body) as response:
            for data in _events(response.iter_lines()):
                if data == "[DONE]":
                    return
                event = json.loads(data)
                if "error" in event or ("code" in event and "message" in event):
                    raise error_in(event, response.status_code)
                yield event
        raise ClientError("StreamCut", "the stream ended without [DONE]; the answer is cut short")

    def models(self) -> list[Served]:
        """GET /v1/models, or the status of what vLLM does not serve. Raises ClientError."""
        try:
            return [_served(entry) for entry in self._one("GET", "/v1/models").get("data", [])]
        except ClientError as error:
            if error.code != "NotAuthorizedOrNotFound":
                raise
        named = {"inferenceKey": "id", "modelId": "model_id"}
        rows = ({named.get(k, k): each[k] for k in each} for each in self.status()["models"])
        return [_served({**row, "id": row["id"] or row["model_id"]}) for row in rows]

    # -- the control plane: every method raises ClientError ----------------------------------

    def status(self) -> dict[str, Any]:
        """GET /stacked/status: the deployment, its group, and every live model."""
        return self._one("GET", "/stacked/status")

    def model(self, id: str) -> dict[str, Any]:
        return self._one("GET", f"{_CONTROL}/models/{quote(id, safe='')}")

    def has_adapter(self, digest: str) -> bool:
        """Whether the server's store has an adapter, complete, so that it need not be sent."""
        try:
            with self._asked("GET", _adapter(digest)):
                return True
        except ClientError as error:
            if error.code == "AdapterAbsent":
                return False
            if error.status in (404, 405):
                raise ClientError(
                    "ServerTooOld",
                    f"{self._shown} accepts no uploaded adapters: it is older than this "
                    "command; install the same version there",
                    error.status,
                ) from error
            raise

    def send_adapter(self, digest: str, parts: Iterable[bytes], size: int) -> None:
        """Send an adapter as the `size` bytes of a zip, for `register` to use. Idempotent."""
        headers = {"content-length": str(size), "content-type": "application/zip"}
        with self._asked("PUT", _adapter(digest), content=parts, headers=headers):
            pass

    def register(
        self, source: str, *, key: str | None = None, model_id: str | None = None
    ) -> Entry:
        """Have the server fetch, check and store the adapter at `source`. Idempotent.

        The digest of an adapter that the server has is also a source. A new model is removed with
        the last group version that has it.
        """
        given = {"source": source, "modelId": model_id}
        items = [{"key": name, "value": value} for name, value in given.items() if value]
        body = {"displayName": key, "customMetadataList": items, "freeformTags": VERSIONED}
        made = self._one("POST", f"{_CONTROL}/models", json=body)
        return Entry(str(made.get("id")), key, metadata_of(made).get("digest", ""))

    def group(self, id: str) -> dict[str, Any]:
        return self._one("GET", f"{_CONTROL}/modelGroups/{quote(id, safe='')}")

    def groups(self) -> list[dict[str, Any]]:
        """All groups, the newest first."""
        return self._all(f"{_CONTROL}/modelGroups")

    def create_group(
        self,
        name: str,
        entries: Sequence[Entry],
        *,
        kind: str = "STACKED",
        details: Any = None,
        **more: Any,
    ) -> dict[str, Any]:
        """A group of these entries, the base first if its kind has one.

        `details` are more of its `modelGroupDetails`, `more` other fields of the request.
        """
        base = {"baseModelId": entries[0].model_id} if kind == "STACKED" else {}
        listed = [entry.wire() for entry in entries]
        body = {
            "createType": "CREATE",
            "displayName": name,
            "modelGroupDetails": {"type": kind, **base, **(details or {})},
            "memberModelEntries": {"memberModelDetails": listed},
        }
        return self._one("POST", f"{_CONTROL}/modelGroups", json=body | more)

    def clone_group(self, source: dict[str, Any], metadata: Mapping[str, str]) -> dict[str, Any]:
        """A group as this one, with other custom metadata."""
        details = source["modelGroupDetails"]
        items = [{"key": key, "value": value} for key, value in metadata.items()]
        same = {name: details[name] for name in ("type", "baseModelId") if details.get(name)}
        details = {**same, "customMetadataList": items}
        name = source["displayName"]
        cloned = {
            "modelGroupCloneSourceType": "MODEL_GROUP",
            "sourceId": source["id"],
            "modifyModelGroupDetails": {"displayName": name, "modelGroupDetails": details},
        }
        body = {"createType": "CLONE", "modelGroupCloneSourceDetails": cloned}
        return self._one("POST", f"{_CONTROL}/modelGroups", json=body)

    def check_engine(self, engine: dict[str, Any]) -> None:
        """Have the server refuse settings that differ from its engine's."""
        with self._asked("POST", "/stacked/check", json={"engine": engine}):
            pass

    def collect(self, *, dry_run: bool = False) -> dict[str, Any]:
        """Have the server remove what is no longer needed; returns its report."""
        return self._one("POST", f"/stacked/collect?dryRun={str(dry_run).lower()}")

    def usage(self, since: str, by: str | None = None) -> dict[str, Any]:
        """Requests and tokens by credential and key; `since` is a duration such as `7d`."""
        query = {"since": since} | ({"by": by} if by else {})
        return self._one("GET", "/stacked/usage", params=query)

    def shadow(self, samples: int = 0) -> dict[str, Any]:
        """What shadow traffic has shown, and so many comparisons with their texts."""
        return self._one("GET", f"/stacked/shadow?samples={samples}")

    def fleet(self) -> dict[str, Any]:
        """GET /stacked/fleet: what all replicas of a server's fleet serve, and each of them."""
        return self._one("GET", "/stacked/fleet")

    def experiments(self) -> dict[str, Any]:
        """Those that are served or have results, each with its newest phase, under `items`."""
        return self._one("GET", "/stacked/experiments")

    def experiment(self, key: str, **query: str | None) -> dict[str, Any]:
        """The arms of an experiment compared; `phase` and `metric` choose what is shown."""
        given = {name: value for name, value in query.items() if value}
        return self._one("GET", f"/stacked/experiments/{quote(key, safe='')}", params=given)

    def update_live(self, deployment_id: str, group_id: str) -> str:
        """Begin a LIVE update and return the id of its work request."""
        change = {
            "deploymentType": "MODEL_GROUP",
            "updateType": "LIVE",
            "modelGroupConfigurationDetails": {"modelGroupId": group_id},
        }
        return self._change(deployment_id, change)

    def scale(self, deployment_id: str, policy: Mapping[str, Any]) -> str:
        """Have another scaling policy followed, and return the id of the work request."""
        path = f"{_CONTROL}/modelDeployments/{quote(deployment_id, safe='')}"
        shown = self._one("GET", path)["modelDeploymentConfigurationDetails"]
        block = "infrastructureConfigurationDetails"
        change = {"deploymentType": "MODEL_GROUP", block: {**shown[block], "scalingPolicy": policy}}
        return self._change(deployment_id, change)

    def _change(self, deployment_id: str, change: Mapping[str, Any]) -> str:
        path = f"{_CONTROL}/modelDeployments/{quote(deployment_id, safe='')}"
        body = {"modelDeploymentConfigurationDetails": change}
        with self._asked("PUT", path, json=body) as response:
            work = response.headers.get("opc-work-request-id")
        if not work:
            raise ClientError("NotStacked", f"{self._shown} names no work request for the update")
        return str(work)

    def work(self, id: str) -> dict[str, Any]:
        return self._one("GET", f"{_CONTROL}/workRequests/{quote(id, safe='')}")

    def work_logs(self, id: str) -> list[dict[str, Any]]:
        """Oldest first."""
        return self._all(f"{_CONTROL}/workRequests/{quote(id, safe='')}/logs")

    def work_errors(self, id: str) -> list[dict[str, Any]]:
        """Oldest first."""
        return self._all(f"{_CONTROL}/workRequests/{quote(id, safe='')}/errors")

    def follow(
        self, work_id: str, pause: float = 0.3
    ) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """A work request with its logs, again and again until it has ended."""
        while True:
            work, logs = self.work(work_id), self.work_logs(work_id)
            yield work, logs
            if work["status"] in ("SUCCEEDED", "FAILED", "CANCELED"):
                return
            time.sleep(pause)  # work requests are polled, as OCI's are

    def _one(self, method: str, path: str, **rest: Any) -> dict[str, Any]:
        with self._asked(method, path, **rest) as response:
            response.read()
            return object_of(response)

    def _all(self, path: str) -> list[dict[str, Any]]:
        """Every page of a list."""
        rows: list[dict[str, Any]] = []
        query = {"limit": "100"}
        while True:
            with self._asked("GET", path, params=query) as response:
                response.read()
                rows += array_of(response)
                following = response.headers.get("opc-next-page")
            if not following:
                return rows
            query["page"] = following

    @contextmanager
    def _asked(self, method: str, path: str, **rest: Any) -> Iterator[httpx.Response]:
        """A successful response whose body is not read yet."""
        try:
            with self._http.stream(method, self.url + path, **rest) as response:
                if not response.is_success:
                    response.read()
                    raise refusal(response)
                yield response
        except httpx.ConnectError as error:
            if isinstance(_root(error), ssl.SSLError):
                raise ClientError(
                    "CertificateInvalid",
                    f"{self._shown}: {error}; $SSL_CERT_FILE names a file of authorities to trust",
                ) from error
            raise ClientError(
                "NoServer",
                f"no server at {self._shown}; start one with: stacked serve configs/demo.yaml",
            ) from error
        except httpx.TimeoutException as error:
            raise ClientError("Timeout", f"{self._shown} did not answer in time") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ClientError("ConnectionLost", f"{self._shown}: {error or type(error)}") from error

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def text_of(answer: dict[str, Any]) -> str:
    """The text of an answer or of one event of a stream, chat or completion."""
    for choice in answer.get("choices") or ():
        said = choice.get("text")
        for place in ("message", "delta"):
            said = said or (choice.get(place) or {}).get("content")
        return said or ""
    return ""


def entries_of(group: dict[str, Any]) -> list[Entry]:
    """The entries of a group's JSON, with their contents by model id."""
    listed = (group.get("memberModelEntries") or {}).get("memberModelDetails") or []
    return [
        Entry(each["modelId"], each.get("inferenceKey"), each["modelId"], each.get("weight", 1.0))
        for each in listed
    ]


def metadata_of(record: dict[str, Any]) -> dict[str, str]:
    """The custom metadata of a model's JSON, or of a group's `modelGroupDetails`."""
    items = record.get("customMetadataList") or []
    return {str(item.get("key")): str(item.get("value")) for item in items}


def _root(error: BaseException) -> BaseException:
    """The first of the errors that led to this one."""
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
    return error


def _adapter(digest: str) -> str:
    return f"/stacked/adapters/{digest}"


def _headers(key: str | None) -> dict[str, str]:
    return {"model-key": header_form(key)} if key else {}


def _events(lines: Iterator[str]) -> Iterator[str]:
    """The data of each server-sent event; an event's data may span several lines."""
    data: list[str] = []
    for line in lines:
        if line.startswith("data:"):
            data.append(line.removeprefix("data:").removeprefix(" "))
        elif not line and data:
            yield "\n".join(data)
            data = []
    if data:
        yield "\n".join(data)


def _served(entry: dict[str, Any]) -> Served:
    rank, root = entry.get("rank"), str(entry.get("root") or "")
    digest = str(entry.get("digest") or (root if root.startswith("sha256:") else ""))
    return Served(
        key=str(entry.get("id", "")),
        model_id=str(entry.get("model_id") or ""),
        digest=digest,
        rank=rank if isinstance(rank, int) else None,
        state=str(entry.get("state") or ""),
    )
