"""A fleet that `stacked fleet deploy` has started with a cluster of its own, and its clients."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import openai
import yaml

from tests.processes import alive, descendants
from tests.serving import free_port, stop
from tests.waiting import until

START_SECONDS = 600
API = "/20190101/modelDeployments"


@dataclass
class Fleet:
    """A `stacked fleet deploy` that is a cluster, and the file that it was started with."""

    directory: Path
    port: int
    tree: dict[str, Any]
    environment: dict[str, str]
    process: subprocess.Popen[bytes] = field(init=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def config(self) -> Path:
        return self.directory / "fleet.yaml"

    def write(self, **ray_settings: Any) -> None:
        self.tree["ray"] = ray_settings
        self.config.write_text(yaml.safe_dump(self.tree))

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "stacked", *words]

    def start(self) -> None:
        command = self.command("fleet", "deploy", str(self.config), "--data-dir", "data")
        with (self.directory / "printed").open("wb") as output:
            self.process = subprocess.Popen(
                command, cwd=self.directory, env=self.environment, stdout=output, stderr=output
            )
        until(self.answers, START_SECONDS)

    def answers(self) -> bool:
        assert self.process.poll() is None, (self.directory / "printed").read_text()
        try:
            return httpx.get(f"{self.url}/health/ready", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def again(self, **ray_settings: Any) -> None:
        """Deploy the file with other settings on the running cluster."""
        self.write(**ray_settings)
        command = self.command("fleet", "deploy", str(self.config), "--data-dir", "data")
        subprocess.run(command, cwd=self.directory, env=self.environment, check=True)

    def servers(self) -> set[int]:
        """The processes of the replicas' servers."""
        below = descendants(self.process.pid)
        return {pid for (pid, _), line in below.items() if "stacked.ray.child" in line}

    def connect(self) -> None:
        """Have this process see the cluster."""
        import ray

        os.environ["RAY_TMPDIR"] = self.environment["RAY_TMPDIR"]
        ray.init(address="auto", logging_level="warning", log_to_driver=False)

    def end(self) -> int:
        """End the cluster; the exit code of the command that was it."""
        import ray

        ray.shutdown()
        os.environ.pop("RAY_TMPDIR", None)
        below = descendants(self.process.pid)
        code = stop(self.process)
        until(lambda: not alive(below))
        return int(code)

    def actors(self) -> list[Any]:
        """Handles of the replicas' actors."""
        import ray

        names = ray.util.list_named_actors(all_namespaces=True)
        ours = [each for each in names if each["name"].startswith("SERVE_REPLICA::")]
        return [ray.get_actor(each["name"], namespace=each["namespace"]) for each in ours]

    def healthy(self) -> bool:
        """Whether Ray has as many replicas as it wants, each with its server."""
        from ray import serve

        found = serve.status().applications["fleet"]
        return found.status == "RUNNING" and found.deployments["replica"].status == "HEALTHY"

    def deployment(self) -> Any:
        """As the control plane shows it."""
        (found,) = httpx.get(f"{self.url}{API}", timeout=60).raise_for_status().json()
        return found

    def scale(self, *bounds: int) -> int:
        """`stacked fleet scale`; its exit code."""
        command = self.command("fleet", "scale", *map(str, bounds), "--url", self.url)
        return subprocess.run(command, cwd=self.directory, env=self.environment).returncode

    def update(self, **sources: Path) -> subprocess.Popen[bytes]:
        """`stacked update --live` to a group of these members, begun."""
        members = [{"key": key, "source": str(path)} for key, path in sources.items()]
        self.tree["group"]["members"] = members
        self.write(**self.tree["ray"])
        command = self.command("update", "--live", str(self.config), "--url", self.url)
        return subprocess.Popen(command, cwd=self.directory, env=self.environment)

    @contextlib.contextmanager
    def in_update(self, **sources: Path) -> Iterator[subprocess.Popen[bytes]]:
        """The same, when the replicas have begun with it; wait for its end."""
        before = self._number()
        updating = self.update(**sources)
        until(lambda: self._number() > before)
        yield updating
        updating.wait(START_SECONDS)

    def _number(self) -> int:
        """Of the newest update that this fleet has begun."""
        answer = httpx.get(f"{self.url}/stacked/fleet", timeout=60)
        update = answer.json().get("update") if answer.status_code == 200 else None
        return int(update["number"]) if update else 0


@contextlib.contextmanager
def fleet_of(tree: dict[str, Any], **ray_settings: Any) -> Iterator[Fleet]:
    """A running one of this file; `group` in it is named fleet."""
    # Not below pytest's own: the paths of Ray's sockets would be too long.
    directory = Path(tempfile.mkdtemp(prefix="rayfleet-", dir="/tmp"))
    port = free_port()
    tree.setdefault("server", {}).update(port=port, drain_seconds=30)
    tree["storage"]["contents"] = str(directory / "contents")
    environment = os.environ | {"RAY_TMPDIR": str(directory / "r"), "RAY_USAGE_STATS_ENABLED": "0"}
    found = Fleet(directory, port, tree, environment)
    found.write(**ray_settings)
    try:
        found.start()
        found.connect()
        yield found
    finally:
        code = found.end()
        shutil.rmtree(directory, ignore_errors=True)
    assert code == 0


class Answer(NamedTuple):
    """When a request was sent and answered, by which generation, and what was said."""

    sent: float
    ended: float
    generation: int
    said: object


class Traffic:
    """Clients that send one request after another; every answer is counted."""

    def __init__(self, fleet: Fleet, request: Request, clients: int = 4) -> None:
        self._url, self._request = fleet.url, request
        self._ended = threading.Event()
        self.statuses: Counter[int | str] = Counter()
        self.answers: list[Answer] = []
        self._threads = [threading.Thread(target=self._send) for _ in range(clients)]

    def _send(self) -> None:
        with self._client() as ask:
            while not self._ended.is_set():
                began = time.monotonic()
                status, headers, said = ask()
                self.statuses[status] += 1
                if status == 200:
                    generation = int(headers["model-generation"])
                    self.answers.append(Answer(began, time.monotonic(), generation, said))

    @contextlib.contextmanager
    def _client(self) -> Iterator[Ask]:
        path, body, said = self._request
        with httpx.Client(base_url=self._url, timeout=60) as client:

            def ask() -> tuple[int | str, Mapping[str, str], object]:
                try:
                    answer = client.post(path, headers={"model-key": "k"}, json=body)
                except httpx.TransportError as error:
                    return type(error).__name__, {}, None
                good = answer.status_code == 200
                return answer.status_code, answer.headers, said(answer.json()) if good else None

            yield ask

    @property
    def said(self) -> set[object]:
        return {each.said for each in self.answers}

    @property
    def failed(self) -> int:
        return self.statuses.total() - self.statuses[200]

    @property
    def backwards(self) -> int:
        """Requests sent after a newer generation had answered one, that got an older one."""
        newest = sorted((each.ended, each.generation) for each in self.answers)
        wrong, at, seen = 0, 0, 0
        for each in sorted(self.answers):
            while at < len(newest) and newest[at][0] < each.sent:
                seen = max(seen, newest[at][1])
                at += 1
            wrong += each.generation < seen
        return wrong

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        until(lambda: self.statuses.total() > 20, START_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def goes_on(self, more: int = 50) -> None:
        """Wait for so many more answers."""
        then = self.statuses.total() + more
        until(lambda: self.statuses.total() >= then, START_SECONDS)


class Patient(Traffic):
    """OpenAI's own client as it comes: it sends a request again that has failed."""

    repeated = 0

    @contextlib.contextmanager
    def _client(self) -> Iterator[Ask]:
        path, body, said = self._request
        headers = {"model-key": "k", "X-Stainless-Raw-Response": "true"}
        with openai.OpenAI(base_url=self._url, api_key="none") as client:

            def ask() -> tuple[int | str, Mapping[str, str], object]:
                try:
                    answer: Any = client.post(
                        path, cast_to=object, body=body, options={"headers": headers}
                    )
                except openai.APIStatusError as error:
                    return error.status_code, {}, None
                except openai.APIError as error:
                    return type(error).__name__, {}, None
                self.repeated += answer.retries_taken
                return answer.status_code, answer.headers, said(answer.parse())

            yield ask


Ask = Callable[[], tuple[int | str, Mapping[str, str], object]]
Request = tuple[str, dict[str, Any], Callable[[Any], object]]
"""A path, a body, and what of an answer is compared."""
