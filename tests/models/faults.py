"""A server with a group of models, and updates of it that go wrong at a chosen moment.

What code waits for is a file, so that a phase lasts until the test ends it.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx

from tests.models.remote import Remote, begun, deploy, model
from tests.models.storm import BODIES, ROWS, Group, Made, digests
from tests.waiting import until

_SCORE = """
import os, time
GATE = {gate!r}
def wait():
    open(GATE + ".reached", "w").close()
    while not os.path.exists(GATE):
        time.sleep(0.01)
def load_model(folder):
    {load}
    with open(folder + "/factor") as file:
        return float(file.read())
def predict(data, model):
    {predict}
    return {{"outputs": [{{"data": [each * model for each in data["inputs"][0]["data"]]}}]}}
def unload_model(model):
    {unload}
"""
# Of the good groups: a request can be made to last, and so can the removal of the model.
_HELD = {
    "predict": 'if data == "wait": wait(); return 0',
    "unload": 'if os.path.exists(GATE + ".unload"): wait()',
}


class World:
    """`a` changes with each group, `c` stays, `s` is a score.py of its own."""

    def __init__(self, server: Remote, directory: Path) -> None:
        self.server, self._gate = server, directory / "gate"
        self._asking = ThreadPoolExecutor(1)
        self._made = Made(server, directory)
        self._stays = self._made.onnx()
        self.good = [self.group(**_HELD) for _ in range(2)]
        self.served = self.good[0]
        self.id = deploy(server, self.served.id)

    def score(self, **does: str) -> tuple[str, tuple[float, float]]:
        """`does`: what `load`, `predict` and `unload` do first."""
        factor = next(self._made.factors)
        lines = {"load": "pass", "predict": "pass", "unload": "pass"} | does
        source = _SCORE.format(gate=str(self._gate), **lines)
        files = {"score.py": source.encode(), "factor": str(factor).encode()}
        return model(self.server, **files, **{"example.json": BODIES[0]}), (factor, 0)

    def group(self, more: int = 0, **does: str) -> Group:
        """`more`: so many other members, which are loaded last."""
        members = {"a": self._made.onnx(), "c": self._stays, "s": self.score(**does)}
        members |= {f"more{at}": self._made.onnx() for at in range(more)}
        return self._made.group("HETEROGENEOUS", members)

    def not_finite(self) -> Group:
        """Whose `a` answers NaN."""
        members = {"a": self._made.onnx(float("nan")), "c": self._stays, "s": self.score()}
        return self._made.group("HETEROGENEOUS", members)

    # -- what holds a phase up ---------------------------------------------------------------

    def hold(self) -> None:
        """From here on what waits does so until `go_on`."""
        self._gate.unlink(missing_ok=True)
        self._file(".reached").unlink(missing_ok=True)

    def hold_unload(self) -> None:
        self._file(".unload").touch()

    def reached(self) -> None:
        """Return when code waits."""
        until(self._file(".reached").exists)

    def go_on(self) -> None:
        self._gate.touch()
        self._file(".unload").unlink(missing_ok=True)

    def _file(self, suffix: str) -> Path:
        return self._gate.with_name(self._gate.name + suffix)

    # -- updates and answers -----------------------------------------------------------------

    def begin(self, target: Group) -> str:
        answer = begun(self.server, self.id, target.id)
        assert answer.is_success, answer.text
        return str(answer.headers["opc-work-request-id"])

    def switched(self, target: Group) -> str:
        """An update that drains, or removes."""
        generation = self.server.status()["generation"]
        work = self.begin(target)
        until(lambda: self.server.status()["generation"] > generation)
        self.served = target
        return work

    def errors(self, work: str) -> str:
        rows = self.server.ask("GET", f"/workRequests/{work}/errors")
        return " ".join(f"{row['code']}: {row['message']}" for row in rows)

    def ask(self, key: str, content: bytes = BODIES[0]) -> httpx.Response:
        return self.server.http.post("/predict", headers={"model-key": key}, content=content)

    def lasting(self) -> Future[httpx.Response]:
        """A request of `s` that is answered when it may, or when its process has ended."""
        asking = self._asking.submit(self.ask, "s", b'"wait"')
        self.reached()
        return asking

    def serves(self, wanted: Group) -> bool:
        """Whether each key answers as in this group."""
        for key, (factor, _) in wanted.keys.items():
            answer = self.ask(key)
            if answer.status_code == 503:  # its process is being started
                return False
            assert answer.status_code == 200, answer.text
            data = answer.json()["outputs"][0]["data"]
            assert data == [factor * each for each in ROWS[0]], (key, data)
        return digests(self.server).keys() == wanted.keys.keys()
