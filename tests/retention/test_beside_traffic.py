"""Collections race 16 clients and LIVE updates on a real engine: no error, and a flat disk.

Minutes of one engine, so `-m long` asks for it; `test_rounds` does the same over doubles.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from tests.api.aftermath import check_store
from tests.api.test_kills import write_config
from tests.api.test_live_update import API, register
from tests.conftest import TinyModels, complete
from tests.serving import Server, free_port, serving
from tests.test_cli import run

pytestmark = [pytest.mark.long, pytest.mark.engine]

CLIENTS = 16
SECONDS = 120
VERSIONS = 3
RETENTION = {
    "interval": "1s",
    "group_versions": VERSIONS,
    "deleted_records": "0s",
    "work_requests": "0s",
}


def variant(source: Path, target: Path, number: int) -> Path:
    """An adapter that is a little stronger: other content, and quick to make."""
    shutil.copytree(source, target)
    file = target / "adapter_model.safetensors"
    tensors = load_file(file)
    for name in tensors:
        if "lora_B" in name:
            tensors[name] = tensors[name] * (1 + number / 500)
    file.unlink()
    save_file(tensors, file, {"format": "pt"})
    return target


class Race:
    """Threads that work until `stop`; what any of them raised is in `errors`."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.stop = threading.Event()
        self.errors: list[BaseException] = []
        self.done: dict[str, int] = {}
        self._threads: list[threading.Thread] = []

    def start(self, name: str, step: Callable[[httpx.Client, int], object]) -> None:
        def run() -> None:
            try:
                with self.server.client() as client:
                    while not self.stop.is_set():
                        step(client, self.done.get(name, 0))
                        self.done[name] = self.done.get(name, 0) + 1
            except BaseException as error:  # noqa: BLE001  whatever it is, the test tells it
                self.errors.append(error)
                self.stop.set()

        self._threads.append(threading.Thread(target=run, name=name))
        self._threads[-1].start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


def stored(server: Server) -> set[str]:
    return {path.name for path in (server.directory / "data" / "store" / "adapters").iterdir()}


def test_collections_beside_clients_and_updates(tiny_models: TinyModels, tmp_path: Path) -> None:
    (tmp_path / "base").symlink_to(tiny_models.base)
    models = TinyModels(tmp_path / "base", tiny_models.adapters)
    port = free_port()
    config = write_config(tmp_path, models, port, {"x": "a", "y": "b"})
    tree = yaml.safe_load(config.read_text()) | {"retention": RETENTION}
    tree["server"]["adapter_roots"] = [str(tmp_path)]
    config.write_text(yaml.safe_dump(tree), encoding="utf-8")
    a, b = (tiny_models.adapters[name] for name in "ab")
    with serving(str(config), "--data-dir", "data", directory=tmp_path, port=port) as server:
        race = Race(server)
        peaks: list[int] = []

        def update(client: httpx.Client, number: int) -> None:
            variant(a, tmp_path / f"x{number}", 2 * number + 1)
            variant(b, tmp_path / f"y{number}", 2 * number + 1)
            members = [{"key": key, "source": f"./{key}{number}"} for key in "xy"]
            tree = {"base": {"model": "any"}, "group": {"name": "next", "members": members}}
            file = tmp_path / f"next-{number}.yaml"
            file.write_text(yaml.safe_dump(tree), encoding="utf-8")
            done = run("update", "--live", str(file), "--url", server.url, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            shutil.rmtree(tmp_path / f"x{number}")
            shutil.rmtree(tmp_path / f"y{number}")
            peaks.append(len(stored(server)))

        def delete(client: httpx.Client, number: int) -> None:
            id = register(client, variant(a, tmp_path / f"d{number}", 2 * number + 2))
            shutil.rmtree(tmp_path / f"d{number}")
            assert client.delete(f"{API}/models/{id}").status_code == 204
            response = client.post("/stacked/collect", params={"dryRun": number % 2 == 0})
            assert response.status_code == 200, response.text
            assert not response.json()["notes"]

        for at in range(CLIENTS):
            key = "xy"[at % 2]
            race.start(f"client {at}", lambda client, _, key=key: complete(client, key))
        race.start("updates", update)
        race.start("deletes", delete)
        race.stop.wait(SECONDS)
        race.stop.set()
        race.join()
        assert not race.errors, race.errors
        until = time.monotonic() + 30
        # The file's own group is of another name: two adapters more than of the versions.
        while len(stored(server)) > 2 * (VERSIONS + 1):
            assert time.monotonic() < until, stored(server)
            time.sleep(0.2)
        with server.client() as client:
            metrics = client.get("/metrics").text
        assert 'stacked_store_bytes{kind="adapter"}' in metrics
    check_store(tmp_path / "data")
    answers = sum(count for name, count in race.done.items() if name.startswith("client"))
    print(
        f"{answers} answers, {race.done['updates']} updates, {race.done['deletes']} deletions; "
        f"adapters stored after each update: {min(peaks)} to {max(peaks)}"
    )
