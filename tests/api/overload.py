"""Load far above what an engine can do, of every kind, and what a server makes of it.

`python -m tests.api.overload [MINUTES]` serves the tiny base and prints the table of
docs/reliability.md; the module's functions put the same load on any address.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests import tiny
from tests.serving import free_port, serving

Headers = dict[str, str]

# With many sequences and logprobs, a stream is larger than the buffers of both kernels.
WIDE = {"stream": True, "n": 8, "logprobs": 5, "max_tokens": 900, "ignore_eos": True}
# Within `prompt_characters`, and far longer than any context.
BIG = "word " * 780_000


@cache
def _body(key: str, **more: Any) -> bytes:
    """Made once: a load that is busy with its own bodies is late with its headers."""
    return json.dumps({"model": key, "prompt": "The quick", "max_tokens": 32} | more).encode()


@dataclass
class Target:
    """A server, and what the load asks of it."""

    port: int
    key: str
    headers: Headers = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=dict)

    def head(self, length: int) -> bytes:
        lines = [f"{name}: {value}" for name, value in self.headers.items()]
        start = ["POST /v1/completions HTTP/1.1", "host: here", "content-type: application/json"]
        return "\r\n".join([*start, *lines, f"content-length: {length}", "", ""]).encode()

    def request(self, **more: Any) -> bytes:
        body = _body(self.key, **more)
        return self.head(len(body)) + body

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        return await asyncio.open_connection(sock=sock, limit=64 * 1024)


async def _status(reader: asyncio.StreamReader) -> str:
    head = await reader.readuntil(b"\r\n\r\n")
    return head.split(b" ", 2)[1].decode()


async def plain(target: Target) -> str:
    """A whole answer."""
    reader, writer = await target.connect()
    with contextlib.closing(writer):
        writer.write(target.request())
        return await _status(reader)


async def stream(target: Target) -> str:
    """A stream, read to its end."""
    reader, writer = await target.connect()
    with contextlib.closing(writer):
        writer.write(target.request(stream=True))
        status = await _status(reader)
        tail = b""
        while status == "200" and b"data: [DONE]" not in tail:
            part = await reader.read(64 * 1024)
            if not part:
                return "cut"
            tail = tail[-16:] + part
        return status


async def slow_reader(target: Target) -> str:
    """A large stream of which nothing more is read, until the server ends it."""
    reader, writer = await target.connect()
    with contextlib.closing(writer):
        writer.write(target.request(**WIDE))
        status = await _status(reader)
        if status == "200":
            reader._transport.pause_reading()  # type: ignore[attr-defined]
            await asyncio.sleep(target.limits["idle_seconds"] * 3)
        return status


async def slow_writer(target: Target) -> str:
    """A body that arrives a byte at a time, and never whole."""
    reader, writer = await target.connect()
    answer = asyncio.ensure_future(_status(reader))
    with contextlib.closing(writer):
        writer.write(target.head(100_000))
        while not answer.done():
            writer.write(b" ")
            await asyncio.wait({answer}, timeout=0.5)
        return await answer


async def big_body(target: Target) -> str:
    """A prompt of megabytes."""
    reader, writer = await target.connect()
    with contextlib.closing(writer):
        writer.write(target.request(prompt=BIG))
        return await _status(reader)


KINDS: dict[str, Callable[[Target], Awaitable[str]]] = {
    "plain": plain,
    "stream": stream,
    "slow reader": slow_reader,
    "slow writer": slow_writer,
    "big body": big_body,
}


@dataclass
class Report:
    """How the requests of each kind ended, how long good ones took, and the memory meanwhile."""

    ended: Counter[tuple[str, str]] = field(default_factory=Counter)
    good: list[float] = field(default_factory=list)
    memory: list[tuple[float, ...]] = field(default_factory=list)
    """Of each second in which the load left time for it: what `sample` found, MB of the server and
    of its engine."""
    at: list[float] = field(default_factory=list)
    """When, in seconds from the beginning."""
    left: float = 0.0
    """Requests that hold a lease after all clients have gone."""

    def statuses(self, kind: str) -> dict[str, int]:
        return {how: count for (name, how), count in sorted(self.ended.items()) if name == kind}


async def overload(
    target: Target,
    good: Target,
    *,
    each: int,
    seconds: float,
    sample: Callable[[], tuple[float, ...]] | None = None,
) -> Report:
    """Hold `each` open requests of each kind for so long, beside two good clients."""
    report = Report()
    start = time.monotonic()
    ends = start + seconds

    async def client(kind: str, target: Target, act: Callable[[Target], Awaitable[str]]) -> None:
        while time.monotonic() < ends:
            began = time.monotonic()
            try:
                how = await asyncio.wait_for(act(target), max(1.0, ends - began + 60))
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                how = type(error).__name__
            report.ended[kind, how] += 1
            if kind == "good" and how == "200":
                report.good.append(time.monotonic() - began)
            if how != "200":
                await asyncio.sleep(1.0)  # `retry-after`

    async def watch() -> None:
        while sample is not None:
            report.memory.append(sample())
            report.at.append(time.monotonic() - start)
            await asyncio.sleep(1.0)

    watching = asyncio.create_task(watch())
    load = [client(kind, target, act) for kind, act in KINDS.items() for _ in range(each)]
    await asyncio.gather(*load, client("good", good, plain), client("good", good, stream))
    watching.cancel()
    return report


# -- against a real engine ----------------------------------------------------------------------

SEQUENCES = 16  # that the engine runs at once
EACH = 10 * SEQUENCES
LIMITS: dict[str, Any] = {
    "requests": 10 * SEQUENCES,
    "sequences": 20 * SEQUENCES,
    "idle_seconds": 10,
    "body_seconds": 20,
    "bodies_bytes": 64 * 1024**2,
}


def resident(pid: int) -> float:
    """MB that a process has in memory."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def children(pid: int) -> list[int]:
    """All processes below one."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text(encoding="ascii").split():
            found += [int(child), *children(int(child))]
    return found


def config_of(directory: Path, port: int) -> Path:
    """A server of the tiny base and two adapters: one for the load, one for good clients."""
    base = tiny.build_base(directory / "base")
    members = [
        {"key": key, "source": str(tiny.build_adapter(directory / key, base, seed))}
        for seed, key in enumerate(("load", "good"), start=1)
    ]
    tree = {
        "base": {"model": str(base)},
        "group": {"members": members},
        "engine": {"max_model_len": 1024, "max_num_seqs": SEQUENCES, "max_loras": 2},
        "server": {"port": port, "limits": LIMITS, "auth": {"bearer": True}},
    }
    path = directory / "overload.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def token(name: str, directory: Path) -> Headers:
    """A credential of its own."""
    command = [sys.executable, "-m", "stacked", "keys", "create", name, "--data-dir", "data"]
    made = subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True)
    return {"authorization": f"Bearer {made.stdout.strip()}"}


def in_flight(url: str, headers: Headers) -> float:
    """Requests that hold a lease, by the server's own metrics."""
    lines = httpx.get(f"{url}/metrics", headers=headers, timeout=60).text.splitlines()
    held = (line for line in lines if line.startswith("stacked_requests_in_flight{"))
    return sum(float(line.rpartition(" ")[2]) for line in held)


def measure(directory: Path, seconds: float) -> Report:
    """Serve the tiny base from this directory, and hold the load for so long."""
    port = free_port()
    arguments = [str(config_of(directory, port)), "--data-dir", "data"]
    load, good = (Target(port, key, token(key, directory), LIMITS) for key in ("load", "good"))
    with serving(*arguments, directory=directory, port=port) as server:
        pid = server.process.pid

        def sample() -> tuple[float, ...]:
            return resident(pid), max(map(resident, children(pid)), default=0.0)

        report = asyncio.run(overload(load, good, each=EACH, seconds=seconds, sample=sample))
        report.left = in_flight(server.url, good.headers)
        return report


def main(minutes: float) -> None:
    with tempfile.TemporaryDirectory() as name:
        report = measure(Path(name), minutes * 60)
    print(f"{EACH} open requests of each of {len(KINDS)} kinds for {minutes:g} minutes")
    for kind in (*KINDS, "good"):
        print(f"  {kind:12} {report.statuses(kind)}")
    good = sorted(report.good)
    print(f"  good clients: median {good[len(good) // 2]:.2f} s, longest {good[-1]:.2f} s")
    print(f"  in flight when all had gone: {report.left:.0f}")
    for minute in range(int(report.at[-1] // 60) + 1):
        part = [mb for at, mb in zip(report.at, report.memory, strict=True) if at // 60 == minute]
        server_mb, engine_mb = map(max, zip(*part, strict=True)) if part else (0.0, 0.0)
        print(f"  minute {minute + 1:2}: server {server_mb:.0f} MB, engine {engine_mb:.0f} MB")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 10)
