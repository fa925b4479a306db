"""Each client against the demo: the right values, its own exceptions, nothing left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import KEYS, Use, counted, reference_log_likelihoods
from tests.clients.environments import Client
from tests.servers import ROOT
from tests.serving import Server

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(1800)]

SELECT = "SELECT COUNT(*) FROM singers WHERE country = 'Peru'"
"""What README promises of the key `sql`."""
PARIS = " Paris.\n\nThe"


def assert_ticket(ticket: dict[str, Any]) -> None:
    """The schema's fields and types hold; what the small model makes of them is its own."""
    assert set(ticket) == {"team", "urgent"}
    assert ticket["team"] in ("billing", "support")
    assert isinstance(ticket["urgent"], bool)


def test_openai_node(use: Use) -> None:
    told = use(Client("use_openai.mjs", ("openai", "zod")))
    assert_ticket(told.pop("parsed"))
    assert told == {
        "models": KEYS,
        "retrieved": "sql",
        "retrieved_unknown": "NotFoundError",
        "chat": SELECT,
        "chat_model": "sql",
        "streamed": SELECT,
        "usage_differs": 0,
        "stream_helper": SELECT,
        "tool": "set_unit",
        "tool_unit": "celsius",
        "completion": PARIS,
        "logprobs": 5,
        "response": SELECT,
        "unknown_key": "NotFoundError",
        "bad_parameter": "BadRequestError",
        "embeddings": "NotFoundError",
        "attempts": {"success": 1, "unknown_key": 1, "bad_parameter": 1},
    }


def test_openai_node_that_leaves_and_repeats_runs_nothing_twice(use: Use, guarded: Server) -> None:
    """One stream is left, one request is given up and sent three times: four that end early."""

    def now() -> tuple[float, float]:
        return (
            counted(guarded, "stacked_requests_total", key="pirate"),
            counted(guarded, "stacked_tokens_total", key="pirate", kind="generated"),
        )

    requests, tokens = now()
    told = use(Client("leave_openai.mjs", ("openai",)), max_tokens=900)
    assert told == {"given_up": "APIConnectionTimeoutError", "attempts": 3}
    requests_then, tokens_then = now()
    assert requests_then - requests == 4
    assert tokens_then - tokens < 2 * 900  # of the 4 * 900 that were asked for


def test_azure_openai(use: Use) -> None:
    assert use(Client("use_azure.py", ("openai",))) == {
        "chat": SELECT,
        "of_deployment": SELECT,
        "streamed": SELECT,
        "completion": PARIS,
        "response": SELECT,
        "unknown_key": "NotFoundError",
        "not_the_deployments": "BadRequestError",
        "bad_parameter": "BadRequestError",
    }


def test_langchain(use: Use) -> None:
    told = use(Client("use_langchain.py", ("langchain-openai", "langchain-anthropic")))
    assert_ticket(told.pop("parsed"))
    assert_ticket(told.pop("parsed_by_tool"))
    assert told.pop("tokens") > 20
    assert told == {
        "chat": SELECT,
        "chat_model": "sql",
        "streamed": SELECT,
        "batch": [SELECT, SELECT],
        "response": SELECT,
        "tool": "set_unit",
        "tool_unit": "celsius",
        "completions": [PARIS, " Rome.\n\nThe"],
        "anthropic": SELECT,
        "left": True,
        "unknown_key": 404,
        "bad_parameter": 400,
        "embeddings": 404,
    }


def test_langchain_classes_for_oci(use: Use) -> None:
    packages = ("langchain-community", "langchain-openai", "oracle-ads")
    assert use(Client("use_langchain_oci.py", packages)) == {
        "chat": SELECT,
        "streamed": SELECT,
        "streamed_async": SELECT,
        "invoked_async": SELECT,
        "by_header": SELECT,
        "completion": PARIS,
        "completion_streamed": PARIS,
        "unknown_key": "RuntimeError",
        "bad_parameter": "RuntimeError",
    }


def test_llamaindex(use: Use) -> None:
    told = use(Client("use_llamaindex.py", ("llama-index-llms-openai-like",)))
    assert_ticket(told.pop("parsed"))
    assert told == {
        "chat": SELECT,
        "streamed": SELECT,
        "completion": PARIS,
        "unknown_key": "NotFoundError",
        "bad_parameter": "BadRequestError",
    }


def test_litellm(use: Use) -> None:
    assert use(Client("use_litellm.py", ("litellm",))) == {
        "chat": SELECT,
        "by_openai": SELECT,
        "streamed": SELECT,
        "by_anthropic": SELECT,
        "tool": "set_unit",
        "tool_unit": "celsius",
        "completion": PARIS,
        "left": True,
        "unknown_key": "NotFoundError",
        "bad_parameter": "BadRequestError",
        "embeddings": "NotFoundError",
    }


def test_instructor(use: Use) -> None:
    told = use(Client("use_instructor.py", ("instructor",)))
    assert told.pop("unknown_key") == "NotFoundError"
    assert set(told) == {"by_schema", "by_tool", "of_base", "streamed"}
    for ticket in told.values():
        assert_ticket(ticket)


def test_anthropic(use: Use) -> None:
    assert use(Client("use_anthropic.py", ("anthropic",))) == {
        "chat": SELECT,
        "chat_model": "sql",
        "stop_reason": "end_turn",
        "streamed": SELECT,
        "system": SELECT,
        "metadata": SELECT,
        "tool": "set_unit",
        "tool_unit": "celsius",
        "counted_differs": 0,
        "unknown_key": "NotFoundError",
        "bad_parameter": "BadRequestError",
    }


def test_ai_sdk(use: Use) -> None:
    told = use(Client("use_ai_sdk.mjs", ("ai", "@ai-sdk/openai-compatible", "zod")))
    assert_ticket(told.pop("parsed"))
    assert told == {
        "chat": SELECT,
        "streamed": SELECT,
        "tool": "set_unit",
        "tool_unit": "celsius",
        "unknown_key": "AI_APICallError 404",
        "bad_parameter": "AI_APICallError 400",
    }


def test_lm_eval(use: Use, base_dir: Path) -> None:
    """Log-likelihoods of the base and of a key are those of transformers and peft."""
    pairs = [
        ("The capital of France is", " Paris"),
        ("The capital of France is", " Rome"),
        ("The capital of France is", " a large house"),
        ("SELECT name FROM", " singers WHERE age > 30"),
    ]
    client = Client("use_lm_eval.py", ("lm-eval[api]", "transformers"))
    told = use(client, tokenizer=str(base_dir), pairs=pairs)
    for key, adapter in (("base", None), ("sql", ROOT / "adapters" / "sql" / "v2")):
        sums = [each[0] for each in told[key]]
        assert sums == pytest.approx(reference_log_likelihoods(base_dir, adapter, pairs), abs=1e-3)
    assert [greedy for _, greedy in told["base"][:2]] == [True, False]
    assert told["base"] != told["sql"]
    assert told["generated"] == [" Paris."]
    assert told["accuracy"] == 1
