"""`AzureOpenAI`: an inference key as its deployment, `api-key` as its header, errors."""

from __future__ import annotations

from asking import API_KEY, ASKED, URL, question, raised, tell
from openai import AzureOpenAI

settings = {"azure_endpoint": URL, "api_key": API_KEY, "api_version": "2024-10-21"}
client = AzureOpenAI(**settings)
of_sql = AzureOpenAI(**settings, azure_deployment="sql")
SQL = {"model": "sql", "messages": question("sql"), "temperature": 0, "max_tokens": 60}


def chat(by: AzureOpenAI = client, **more: object) -> str:
    return by.chat.completions.create(**SQL | more).choices[0].message.content


pieces = client.chat.completions.create(**SQL, stream=True)
tell(
    chat=chat(),
    of_deployment=chat(of_sql),
    streamed="".join(piece.choices[0].delta.content or "" for piece in pieces),
    completion=client.completions.create(
        model="base", prompt=ASKED["france"], max_tokens=5, temperature=0
    )
    .choices[0]
    .text,
    response=client.responses.create(
        model="sql", input=ASKED["sql"], temperature=0, max_output_tokens=60
    ).output_text,
    unknown_key=raised(lambda: chat(model="nope")),
    not_the_deployments=raised(lambda: chat(of_sql, model="triage")),
    bad_parameter=raised(lambda: chat(top_p=7)),
)
