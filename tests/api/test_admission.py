"""Which model a request means, over a real server: every way to name it, and every wrong one."""

from __future__ import annotations

import concurrent.futures
import json
import re
from typing import Any

import httpx
import openai
import pytest

from stacked.core import MAX_KEY_LENGTH, header_form
from tests.conftest import KEYS, PROMPT, TinyModels, complete
from tests.serving import Server

pytestmark = pytest.mark.engine

GREEDY = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0}


def predict(client: httpx.Client, body: dict[str, Any], **headers: str) -> httpx.Response:
    return client.post("/predict", json=body, headers=headers)


def model_ids(client: httpx.Client) -> dict[str, str]:
    """key -> model id, as the answers' headers tell it."""
    ids = {}
    for key in ("base", *KEYS):
        ids[key] = predict(client, GREEDY, **{"model-key": key}).headers["model-ocid"]
    return ids


def test_key_is_taken_from_either_header_or_the_body(
    http: httpx.Client, answers: dict[str, str]
) -> None:
    ids = model_ids(http)
    for key in ("base", *KEYS):
        for name in (key, ids[key]):
            ways = [
                predict(http, GREEDY, **{"model-key": name}),
                predict(http, GREEDY, **{"Model-OCID": name}),
                predict(http, GREEDY | {"model": name}),
                http.post(f"/models/{name}/predict", json=GREEDY),
                http.post(f"/model/{name}/predict", json=GREEDY),
                http.post("/v1/completions", json=GREEDY, headers={"model-key": name}),
                http.post("/v1/completions", json=GREEDY | {"model": name}),
                http.post("/predict/v1/completions", json=GREEDY | {"model": name}),
            ]
            for response in ways:
                assert response.status_code == 200, response.text
                tree = response.json()
                assert tree["choices"][0]["text"] == answers[key]
                assert tree["model"] == key
                assert response.headers["model-key"] == key
                assert response.headers["model-ocid"] == ids[key]


def test_no_key_at_all_is_the_base(http: httpx.Client, answers: dict[str, str]) -> None:
    response = predict(http, GREEDY)
    assert response.json()["choices"][0]["text"] == answers["base"]
    assert response.headers["model-key"] == "base"
    assert complete(http, None) == answers["base"]
    assert predict(http, GREEDY | {"model": None}).headers["model-key"] == "base"


def test_member_without_a_key_is_reached_by_its_model_id(
    http: httpx.Client, answers: dict[str, str]
) -> None:
    listed = [row["id"] for row in http.get("/v1/models").json()["data"]]
    model_id = next(name for name in listed if name.startswith("ocid1."))
    response = predict(http, GREEDY, **{"model-ocid": model_id})
    assert response.json()["model"] == model_id
    assert "model-key" not in response.headers
    assert response.json()["choices"][0]["text"] not in answers.values()


def test_answer_headers_name_the_digest_and_the_generation(http: httpx.Client) -> None:
    headers = predict(http, GREEDY, **{"model-key": "a"}).headers
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", headers["model-digest"])
    assert int(headers["model-generation"]) >= 1
    assert predict(http, GREEDY).headers["model-digest"] == "base"
    assert "vary" not in headers, "vLLM's own CORS layer is there"


def test_request_id_is_returned_as_given_and_made_where_missing(http: httpx.Client) -> None:
    assert predict(http, GREEDY, **{"opc-request-id": "test-id"}).headers["opc-request-id"] == (
        "test-id"
    )
    made = {http.get("/health").headers["opc-request-id"] for _ in range(2)}
    assert len(made) == 2


@pytest.mark.parametrize("name", ["nope", "", "A", "a ", "ocid1.datasciencemodel.oc1..nope"])
def test_unknown_name_is_404_everywhere_and_never_the_base(http: httpx.Client, name: str) -> None:
    body = GREEDY | {"model": name}
    plain, openai = predict(http, body), http.post("/v1/completions", json=body)
    assert plain.status_code == openai.status_code == 404
    assert plain.json()["code"] == "KeyUnknown"
    assert openai.json()["error"]["code"] == "KeyUnknown"
    assert "choices" not in plain.text + openai.text


def test_too_long_a_key_is_refused_with_its_length(http: httpx.Client) -> None:
    response = predict(http, GREEDY, **{"model-key": "k" * (MAX_KEY_LENGTH + 1)})
    assert response.status_code == 400
    assert response.json()["code"] == "KeyTooLong"
    assert "33" in response.json()["message"]


def test_names_that_differ_are_a_conflict_and_names_that_agree_are_not(
    http: httpx.Client, answers: dict[str, str]
) -> None:
    ids = model_ids(http)
    agreeing = predict(http, GREEDY | {"model": "a"}, **{"model-key": "a", "model-ocid": ids["a"]})
    assert agreeing.json()["choices"][0]["text"] == answers["a"]
    for body, headers in [
        ({"model": "a"}, {"model-key": "b"}),
        ({"model": "base"}, {"model-key": "b"}),
        ({}, {"model-key": "a", "model-ocid": ids["b"]}),
    ]:
        response = predict(http, GREEDY | body, **headers)
        assert response.status_code == 400
        assert response.json()["code"] == "KeyConflict"
    twice = http.post("/predict", json=GREEDY, headers=[("model-key", "a"), ("model-key", "b")])
    assert twice.json()["code"] == "KeyConflict"
    path = http.post("/models/a/predict", json=GREEDY | {"model": "b"})
    assert path.json()["code"] == "KeyConflict"


@pytest.mark.parametrize("key", ["base", *KEYS])
def test_sagemakers_header_names_the_model(
    http: httpx.Client, answers: dict[str, str], key: str
) -> None:
    named = {"X-Amzn-SageMaker-Adapter-Identifier": key}
    for path in ("/invocations", "/v1/completions", "/predict"):
        response = http.post(path, json=GREEDY, headers=named)
        assert response.status_code == 200, response.text
        assert response.json()["choices"][0]["text"] == answers[key]
        assert response.headers["model-key"] == response.json()["model"] == key
    body = http.post("/invocations", json=GREEDY | {"model": key})
    assert body.json()["choices"][0]["text"] == answers[key]


def test_sagemakers_header_is_never_the_base_when_it_is_wrong(http: httpx.Client) -> None:
    unknown = {"X-Amzn-SageMaker-Adapter-Identifier": "nope"}
    assert http.post("/invocations", json=GREEDY, headers=unknown).status_code == 404
    other = {"X-Amzn-SageMaker-Adapter-Identifier": "a"}
    conflict = http.post("/invocations", json=GREEDY | {"model": "b"}, headers=other)
    assert conflict.json()["error"]["code"] == "KeyConflict"
    session = http.post("/invocations", json={"requestType": "NEW_SESSION"})
    assert session.status_code == 400
    assert session.json()["error"]["message"]
    held = {"X-Amzn-SageMaker-Session-Id": "s"}
    assert http.post("/invocations", json=GREEDY, headers=held).status_code == 400


def test_batches_and_other_items_are_answered_by_the_model_that_is_named(
    http: httpx.Client,
) -> None:
    messages = [[{"role": "user", "content": text}] for text in ("one", "two")]
    body = {"messages": messages, "max_tokens": 4, "temperature": 0}
    by_key = {}
    for key in ("base", "a"):
        tree = http.post("/v1/chat/completions/batch", json=body | {"model": key}).json()
        assert tree["model"] == key
        by_key[key] = [choice["message"]["content"] for choice in tree["choices"]]
    assert by_key["a"] != by_key["base"]
    header = {"X-Amzn-SageMaker-Adapter-Identifier": "a"}
    tree = http.post("/v1/chat/completions/batch", json=body, headers=header).json()
    assert [choice["message"]["content"] for choice in tree["choices"]] == by_key["a"]


def test_one_model_is_shown_by_key_or_id_and_an_unknown_one_is_openais_404(
    http: httpx.Client,
) -> None:
    rows = {row["id"]: row for row in http.get("/v1/models").json()["data"]}
    stamped = {"created", "permission"}
    for row in rows.values():
        for name in (row["id"], row["model_id"]):
            shown = http.get(f"/v1/models/{name}").json()
            assert {k: v for k, v in shown.items() if k not in stamped} == {
                k: v for k, v in row.items() if k not in stamped
            }
    unknown = http.get("/v1/models/nope")
    assert unknown.status_code == 404
    assert unknown.json()["error"]["code"] == "KeyUnknown"
    assert http.head("/v1/models/a").status_code == 200


def test_openais_client_finds_a_model_and_does_not_repeat_what_is_absent(server: Server) -> None:
    asked: list[str] = []

    def count(request: httpx.Request) -> None:
        asked.append(request.url.path)

    wire = httpx.Client(event_hooks={"request": [count]})
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", http_client=wire)
    with client:
        assert client.models.retrieve("a").id == "a"
        for call in (client.models.retrieve, client.models.delete):
            with pytest.raises(openai.APIStatusError) as refused:
                call("nope")
            assert refused.value.code in ("KeyUnknown", "MethodNotAllowed")
        with pytest.raises(openai.NotFoundError, match="nope"):
            client.completions.create(model="nope", prompt=PROMPT)
        with pytest.raises(openai.BadRequestError, match="best_of"):
            client.completions.create(model="a", prompt=PROMPT, best_of=3, max_tokens=2)
    assert len(asked) == 5


def test_a_key_with_a_slash_and_spaces_is_loaded_asked_and_removed(
    http: httpx.Client, tiny_models: TinyModels, answers: dict[str, str]
) -> None:
    key, coded = "meta-llama/Llama 3 (é)", "meta-llama%2FLlama%203%20(%C3%A9)"
    source = {"source": str(tiny_models.adapters["spare"])}
    loaded = http.post(f"/models/{coded}", json=source)
    assert loaded.json().get("key") == key, loaded.text
    texts = set()
    for name in (coded, "meta-llama/Llama%203%20(%C3%A9)"):
        assert http.get(f"/models/{name}/health").json()["model"] == key
        assert http.get(f"/v1/models/{name}").json()["id"] == key
        texts.add(http.post(f"/models/{name}/predict", json=GREEDY).json()["choices"][0]["text"])
    response = predict(http, GREEDY, **{"model-key": coded})
    texts.add(response.json()["choices"][0]["text"])
    assert response.headers["model-key"] == header_form(key)
    texts.add(complete(http, key))
    assert len(texts) == 1
    assert texts.isdisjoint(answers.values())
    assert f'key="{key}",status="2xx"' in http.get("/metrics").text
    assert http.delete(f"/models/{coded}").status_code == 200
    assert http.get(f"/v1/models/{coded}").status_code == 404


def test_the_header_route_and_the_path_choose_the_endpoint(http: httpx.Client) -> None:
    tokens = http.post("/predict/tokenize", json={"model": "a", "prompt": PROMPT}).json()
    routed = predict(http, {"prompt": PROMPT}, route="/tokenize", **{"model-key": "a"}).json()
    assert routed == tokens
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "model": "a"}
    with http.stream("POST", "/predictWithResponseStream/v1/chat/completions", json=chat) as got:
        assert got.headers["content-type"] == "text/event-stream"
        lines = [line for line in got.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert predict(http, chat, route="/v1/chat/completions").json()["model"] == "a"
    langchain = chat | {"early_stopping": False, "best_of": 1, "length_penalty": 1.0}
    assert predict(http, langchain).status_code == 200


def test_gateways_are_told_the_adapters_by_key(http: httpx.Client) -> None:
    body = GREEDY | {"model": "a", "max_tokens": 100, "ignore_eos": True, "stream": True}
    told: set[str] = set()
    with http.stream("POST", "/v1/completions", json=body) as response:
        for line in response.iter_lines():
            if line.startswith("data: {") and not told:
                told |= lora_info(http.get("/metrics").text)
    assert told == {"a"}
    complete(http, "base")
    assert "sha256:" not in http.get("/metrics").text


def lora_info(text: str) -> set[str]:
    lines = [line for line in text.splitlines() if line.startswith("vllm:lora_requests_info{")]
    assert len(lines) == 1, lines
    assert 'max_lora="4"' in lines[0]
    running = re.search(r'running_lora_adapters="([^"]*)"', lines[0])
    assert running
    return set(filter(None, running[1].split(",")))


def test_messages_are_chat_and_prompt_is_completion(http: httpx.Client) -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    assert predict(http, chat, **{"model-key": "a"}).json()["object"] == "chat.completion"
    assert predict(http, GREEDY, **{"model-key": "a"}).json()["object"] == "text_completion"


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        ("/predict", {"stream": True}, {}),
        ("/predict", {}, {"enable-streaming": "true"}),
        ("/predict", {"stream": False}, {"enable-streaming": "True"}),
        ("/predictWithResponseStream", {}, {}),
    ],
)
def test_streams_are_bare_event_streams_of_the_same_answer(
    http: httpx.Client,
    answers: dict[str, str],
    path: str,
    body: dict[str, Any],
    headers: dict[str, str],
) -> None:
    with http.stream(
        "POST", path, json=GREEDY | body, headers={"model-key": "b", **headers}
    ) as response:
        # The OCI SDK compares the whole value.
        assert response.headers["content-type"] == "text/event-stream"
        assert response.headers["model-key"] == "b"
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == answers["b"]
    assert {chunk["model"] for chunk in chunks} == {"b"}


def test_every_key_answers_for_itself_when_all_are_asked_at_once(
    http: httpx.Client, answers: dict[str, str]
) -> None:
    asked = ["base", *KEYS] * 12
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(lambda key: complete(http, key), asked))
    assert [(key, answers[key]) for key in asked] == list(zip(asked, texts, strict=True))


def test_models_are_listed_by_key_with_their_digest(http: httpx.Client) -> None:
    rows = http.get("/v1/models").json()["data"]
    assert rows[0]["id"] == "base"
    # In any order: what another file has removed and loaded again stands at the end.
    assert {row["id"] for row in rows} >= {"base", *KEYS}
    assert rows[0]["parent"] is None
    for row in rows[1:]:
        assert row["parent"] == "base"
        assert row["digest"] == row["root"]
        assert row["rank"] == 8
        headers = predict(http, GREEDY | {"model": row["model_id"]}).headers
        assert headers["model-digest"] == row["digest"]


def test_other_surfaces_of_vllm_take_the_key_too(http: httpx.Client) -> None:
    message = [{"role": "user", "content": "hi"}]
    chat = http.post(
        "/v1/chat/completions", json={"model": "a", "messages": message, "max_tokens": 3}
    )
    assert chat.json()["model"] == "a"
    anthropic = http.post(
        "/v1/messages", json={"messages": message, "max_tokens": 3}, headers={"model-key": "a"}
    )
    assert anthropic.status_code == 200, anthropic.text
    assert anthropic.json()["model"] == "a"
    response = http.post(
        "/v1/responses", json={"model": "a", "input": "hi", "max_output_tokens": 3}
    )
    assert response.json()["model"] == "a"
    tokens = http.post("/tokenize", json={"model": "a", "prompt": PROMPT}).json()
    assert tokens["count"] == len(tokens["tokens"]) > 0
    assert http.get("/metrics").text.count("vllm:") > 10
    assert http.get("/version").status_code == 200


def test_requests_are_counted_by_key_and_digest(http: httpx.Client) -> None:
    digest = predict(http, GREEDY, **{"model-key": "c"}).headers["model-digest"][7:19]
    http.post("/predict", json=GREEDY | {"max_tokens": 10**6}, headers={"model-key": "c"})
    text = http.get("/metrics").text
    for line in (
        f'stacked_requests_total{{digest="{digest}",key="c",status="2xx"}}',
        f'stacked_requests_total{{digest="{digest}",key="c",status="4xx"}}',
        f'stacked_first_byte_seconds_count{{digest="{digest}",key="c"}}',
        f'stacked_requests_in_flight{{digest="{digest}",key="c"}} 0.0',
        "stacked_adapters 4.0",
    ):
        assert line in text, line


def test_tokens_are_counted_by_key_streamed_or_not(http: httpx.Client) -> None:
    def counted() -> list[float]:
        lines = http.get("/metrics").text.splitlines()
        ours = [line for line in lines if line.startswith("stacked_tokens_total")]
        return [
            sum(float(line.split()[-1]) for line in ours if 'key="b"' in line and kind in line)
            for kind in ('kind="prompt"', 'kind="generated"')
        ]

    before = counted()
    body = {"model": "b", "prompt": PROMPT, "max_tokens": 5, "temperature": 0, "ignore_eos": True}
    usage = http.post("/v1/completions", json=body).json()["usage"]
    assert http.post("/v1/completions", json=body | {"stream": True}).status_code == 200
    asked, given = (now - was for now, was in zip(counted(), before, strict=True))
    assert (asked, given) == (2 * usage["prompt_tokens"], 2 * usage["completion_tokens"])


def test_server_says_what_it_planned_and_what_it_serves(server: Server) -> None:
    printed = server.printed()
    for said in ("4 slots of rank 16", "float32", "engine log", "inference keys", server.url):
        assert said in printed
