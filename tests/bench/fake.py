"""A server that speaks as Stacked does, without an engine, and breaks one promise if it is told to.

Its answers are a pure function of adapter and prompt; it must not know how it is judged.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from stacked.steps import Phase, Silent, sentence
from tests.serving import free_port

BASE_ID = "ocid1.datasciencemodel.oc1..base"
TOKEN_SECONDS = 0.001


def digest_of(source: str) -> str:
    return f"sha256:{hashlib.sha256(source.encode()).hexdigest()}"


def tokens_of(digest: str, prompt: str, count: int) -> list[int]:
    return list(hashlib.sha256(f"{digest} {prompt}".encode()).digest()[:count])


class Untold(Silent):
    """A benchmark's Telling that nobody sees."""

    def begin(self, text: str) -> None: ...

    def fraction(self, done: float) -> None: ...


class FakeStacked:
    """`fault` is one of error, stale, wrong, mixed, cut, key, failed, or nothing.

    It shows in every third answer, and in no server whose group was never updated.
    """

    def __init__(self, tree: dict[str, Any], fault: str = "") -> None:
        members = tree["group"]["members"]
        self.fault = fault
        self.generation = 1
        self.live = {each["key"]: digest_of(each["source"]) for each in members}
        self.before = self.live
        self.groups: dict[str, dict[str, str]] = {}
        self.works: dict[str, dict[str, Any]] = {}
        self.asked = 0
        self.tasks: set[asyncio.Task[None]] = set()

    # -- the control plane ------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        models = [{"inferenceKey": key, "digest": digest} for key, digest in self.live.items()]
        return {
            "deploymentId": "d",
            "groupId": "g",
            "generation": self.generation,
            "models": models,
        }

    def register(self, body: dict[str, Any]) -> dict[str, Any]:
        source = next(i["value"] for i in body["customMetadataList"] if i["key"] == "source")
        digest = digest_of(source)
        return {"id": digest, "customMetadataList": [{"key": "digest", "value": digest}]}

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        entries = body["memberModelEntries"]["memberModelDetails"]
        keys = {e["inferenceKey"]: e["modelId"] for e in entries if e["modelId"] != BASE_ID}
        self.groups[body["displayName"]] = keys
        return {"id": body["displayName"]}

    def update(self, body: dict[str, Any]) -> str:
        details = body["modelDeploymentConfigurationDetails"]
        group = details["modelGroupConfigurationDetails"]["modelGroupId"]
        work: dict[str, Any] = {"status": "IN_PROGRESS", "lines": []}
        self.works[str(len(self.works))] = work
        task = asyncio.create_task(self._run(self.groups[group], work))
        self.tasks.add(task)
        return str(len(self.works) - 1)

    async def _run(self, keys: dict[str, str], work: dict[str, Any]) -> None:
        for phase in (Phase.PLAN, Phase.STAGE, Phase.SWITCH, Phase.DRAIN, Phase.DONE):
            if phase is Phase.SWITCH:
                if self.fault == "failed" and self.generation > 2:
                    work["status"] = "FAILED"
                    return
                self.before, self.live = self.live, keys
                self.generation += 1
            stamp = f"2026-01-01T00:00:{len(work['lines']):02}.000Z"
            line = {"message": sentence(phase, "it"), "step": phase.name, "timestamp": stamp}
            work["lines"].append(line)
            await asyncio.sleep(0.02)
        work["status"] = "SUCCEEDED"

    # -- vLLM's own endpoint ----------------------------------------------------------------

    def load(self, body: dict[str, Any]) -> Response:
        if body["lora_name"] in self.live:
            return refusal(400, "AlreadyLoaded")
        self.live = {**self.live, body["lora_name"]: digest_of(body["lora_path"])}
        return Response("Success")

    def unload(self, body: dict[str, Any]) -> Response:
        self.live = {key: value for key, value in self.live.items() if key != body["lora_name"]}
        return Response("Success")

    # -- answers ----------------------------------------------------------------------------

    async def complete(self, body: dict[str, Any]) -> Response:
        self.asked += 1
        fault = self.fault if self.generation > 1 and self.asked % 3 == 0 else ""
        key, generation, live = body["model"], self.generation, self.live
        if fault == "error":
            return refusal(500, "InternalError")
        if fault == "stale" and generation > 2 and key in (*self.before, "base"):
            generation, live = generation - 1, self.before
        digest = "base" if key == "base" else live.get(key)
        if digest is None:
            return refusal(404, "KeyUnknown")
        tokens = tokens_of(digest, body["prompt"], body["max_tokens"])
        if fault == "wrong":
            tokens = tokens_of(sorted({*live.values()} - {digest})[0], body["prompt"], len(tokens))
        if fault == "mixed":
            tokens[-1] = 999
        headers = {"model-digest": digest, "model-generation": str(generation), "model-key": key}
        if fault == "key":
            headers["model-key"] = "other"
        if body.get("stream"):
            events = self._events(tokens, cut=fault == "cut")
            return StreamingResponse(events, headers=headers, media_type="text/event-stream")
        await asyncio.sleep(TOKEN_SECONDS * len(tokens))
        return JSONResponse({"choices": [{"token_ids": tokens}]}, headers=headers)

    async def _events(self, tokens: list[int], *, cut: bool) -> AsyncIterator[str]:
        for token in tokens:
            await asyncio.sleep(TOKEN_SECONDS)
            yield f"data: {json.dumps({'choices': [{'token_ids': [token]}]})}\n\n"
        if not cut:
            yield "data: [DONE]\n\n"


def refusal(status: int, code: str) -> Response:
    return JSONResponse({"error": {"code": code, "message": "said the fake"}}, status)


def app_of(fake: FakeStacked) -> FastAPI:
    app = FastAPI()
    api = "/20190101"
    base = {"modelId": BASE_ID, "inferenceKey": "base"}
    group = {
        "modelGroupDetails": {"baseModelId": BASE_ID},
        "memberModelEntries": {"memberModelDetails": [base]},
    }

    async def models(request: Request) -> Response:
        return JSONResponse(fake.register(await request.json()))

    async def groups(request: Request) -> Response:
        return JSONResponse(fake.create(await request.json()))

    async def put(request: Request) -> Response:
        work = fake.update(await request.json())
        return Response(status_code=202, headers={"opc-work-request-id": work})

    async def complete(request: Request) -> Response:
        try:
            return await fake.complete(await request.json())
        except ClientDisconnect:  # it went away while it was still asking
            return Response(status_code=499)

    async def load(request: Request) -> Response:
        await asyncio.sleep(0.05)
        return fake.load(await request.json())

    async def unload(request: Request) -> Response:
        return fake.unload(await request.json())

    def get(path: str, answer: Callable[[Request], Response]) -> None:
        app.add_route(path, answer, methods=["GET"])

    get("/health", lambda _: Response())
    get("/metrics", lambda _: Response('vllm:prefix_cache_hits_total{a="b"} 7.0\n'))
    get("/stacked/status", lambda _: JSONResponse(fake.status()))
    get(api + "/modelGroups/{id}", lambda _: JSONResponse(group))
    get(api + "/workRequests/{id}", lambda r: JSONResponse(fake.works[r.path_params["id"]]))
    get(
        api + "/workRequests/{id}/logs",
        lambda r: JSONResponse(fake.works[r.path_params["id"]]["lines"]),
    )
    get(api + "/workRequests/{id}/errors", lambda _: JSONResponse([{"message": "it failed"}]))
    app.add_route(api + "/models", models, methods=["POST"])
    app.add_route(api + "/modelGroups", groups, methods=["POST"])
    app.add_route(api + "/modelDeployments/{id}", put, methods=["PUT"])
    app.add_route("/v1/completions", complete, methods=["POST"])
    app.add_route("/v1/load_lora_adapter", load, methods=["POST"])
    app.add_route("/v1/unload_lora_adapter", unload, methods=["POST"])
    if token := os.environ.get("STACKED_API_KEY"):
        app.add_middleware(_Guarded, token=token)
    return app


class _Guarded:
    """Refuses what comes without a token, as a server with credentials does."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._header = app, f"Bearer {token}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        allowed = Headers(scope=scope).get("authorization") == self._header
        await (self._app if allowed else Response(status_code=401))(scope, receive, send)


def serving_with(fault: str) -> Callable[..., Any]:
    """What stands for `stacked.bench.server.serving`: the same call, a fake behind the URL."""

    @contextmanager
    def serving(tree: dict[str, Any], directory: Path, data_dir: Path) -> Iterator[str]:
        port = free_port()
        config = uvicorn.Config(app_of(FakeStacked(tree, fault)), port=port, log_level="warning")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join()

    return serving
