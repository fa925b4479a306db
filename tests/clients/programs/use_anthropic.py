"""The `anthropic` client on `/v1/messages`: whole, streamed, tools, counting, errors."""

from __future__ import annotations

import anthropic
from asking import API_KEY, ASKED, URL, question, raised, tell

client = anthropic.Anthropic(base_url=URL, api_key=API_KEY)
# This client has no `temperature` of its own any more; the server takes it.
SQL = {
    "model": "sql",
    "max_tokens": 60,
    "messages": question("sql"),
    "extra_body": {"temperature": 0},
}


def create(**more: object) -> anthropic.types.Message:
    return client.messages.create(**SQL | more)


with client.messages.stream(**SQL) as stream:
    streamed = "".join(stream.text_stream)
with client.messages.stream(**SQL | {"model": "pirate", "messages": question("pirate")}) as left:
    next(iter(left.text_stream))

whole = create()
tool = create(
    model="triage",
    max_tokens=120,
    messages=question("unit"),
    tools=[{"name": "set_unit", "input_schema": ASKED["unit_parameters"]}],
    tool_choice={"type": "tool", "name": "set_unit"},
)
used = next(block for block in tool.content if block.type == "tool_use")

tell(
    chat=whole.content[0].text,
    chat_model=whole.model,
    stop_reason=whole.stop_reason,
    streamed=streamed,
    system=create(system="You answer with SQL.", stop_sequences=[";"]).content[0].text,
    tool=used.name,
    tool_unit=used.input["unit"],
    counted_differs=client.messages.count_tokens(model="sql", messages=question("sql")).input_tokens
    - whole.usage.input_tokens,
    metadata=create(metadata={"user_id": "u"}).content[0].text,
    unknown_key=raised(lambda: create(model="nope")),
    bad_parameter=raised(lambda: create(extra_body={"top_p": 7})),
)
