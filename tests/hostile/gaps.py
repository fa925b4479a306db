"""What a hostile grammar costs the streams next to it, on the real engine and the demo's base.

python -m tests.hostile.gaps DIRECTORY     a minute a grammar, twice: trusted, and bounded
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import yaml

from stacked.bases import default_data_dir, resolve
from tests.serving import Server, free_port, serving

WIDE = {f"p{number}": {"type": "string"} for number in range(1000)}
GRAMMARS: dict[str, dict[str, Any]] = {
    "none": {},
    "a plain schema": {"json": {"type": "object", "properties": {"a": {"type": "string"}}}},
    "(.{0,20}[a-z]{3}){0,8}": {"regex": "(.{0,20}[a-z]{3}){0,8}"},
    "((a{1,100}){1,100}){1,100}": {"regex": "((a{1,100}){1,100}){1,100}"},
    "(a*)*(a*)*(a*)*b": {"regex": "(a*)*(a*)*(a*)*b"},
    "1000 optional properties": {"json": {"type": "object", "properties": WIDE}},
}
STREAMS, SECONDS = 2, 20


class Stream(threading.Thread):
    """One stream after another until it is stopped; the gaps between their parts."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url, self.gaps, self.stopped = url, [0.0], False

    def run(self) -> None:
        body = {"prompt": "The sea", "max_tokens": 400, "ignore_eos": True, "stream": True}
        with httpx.Client(base_url=self.url, timeout=300) as http:
            while not self.stopped:
                with http.stream("POST", "/v1/completions", json=body) as answer:
                    last = time.monotonic()
                    for _ in answer.iter_lines():
                        now = time.monotonic()
                        self.gaps.append(now - last)
                        last = now
                        if self.stopped:
                            return


def measured(server: Server, grammar: dict[str, Any]) -> dict[str, Any]:
    streams = [Stream(server.url) for _ in range(STREAMS)]
    for stream in streams:
        stream.start()
    time.sleep(3)
    for stream in streams:
        stream.gaps = [0.0]
    body = {"prompt": "aaaa", "max_tokens": 64, "temperature": 0, "structured_outputs": grammar}
    if not grammar:
        del body["structured_outputs"]
    began, answered = time.monotonic(), "no answer within the time"
    try:
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=SECONDS)
        answered = f"{answer.status_code} in {time.monotonic() - began:.1f} s"
    except httpx.TimeoutException:
        pass
    time.sleep(max(0.0, SECONDS - (time.monotonic() - began)))
    for stream in streams:
        stream.stopped = True
    gaps = [gap for stream in streams for gap in stream.gaps]
    for stream in streams:
        stream.join(timeout=60)
    return {
        "answer": answered,
        "median gap, ms": round(1000 * statistics.median(gaps)),
        "worst gap, ms": round(1000 * max(gaps)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    base = resolve("smollm2-135m-instruct", default_data_dir())
    for trusted in (False, True):
        port = free_port()
        tree = {
            "base": {"model": str(base), "key": "base"},
            "group": {"members": []},
            "engine": {"max_model_len": 512},
            "server": {"port": port, "trust_request_grammars": trusted, "drain_seconds": 5},
        }
        config = directory / f"{trusted}.yaml"
        config.write_text(yaml.safe_dump(tree))
        arguments = (str(config), "--data-dir", str(directory / f"data-{trusted}"))
        with serving(*arguments, directory=directory, port=port) as server:
            for name, grammar in GRAMMARS.items():
                found = measured(server, grammar)
                print(json.dumps({"trusted": trusted, "grammar": name, **found}), flush=True)


if __name__ == "__main__":
    main()
