"""What one request, one caller, one inference key and the whole server may have."""

from __future__ import annotations

from pydantic import Field

from stacked.config.fields import Frozen


class LimitsConfig(Frozen):
    """The bounds of a server. None: no bound of ours. The defaults are above what clients send."""

    # Of a connection.
    connections: int = Field(default=8192, ge=1)
    """Open connections; never more than this process may open files, less a reserve."""
    connections_per_address: int | None = Field(default=None, ge=1)
    """Open connections of one client's address. Behind a proxy all are of the proxy's."""
    header_bytes: int = Field(default=64 * 1024, ge=1024)
    """Of a request's line and headers. Proxies allow 8 to 64 KiB; signatures and tokens are a few
    KiB."""
    headers: int = Field(default=128, ge=8)
    """Headers of a request. Browsers and proxies together send about 40."""
    idle_seconds: float = Field(default=60, gt=0)
    """How long a client may keep the server waiting: for the rest of its headers, the next part of
    its body, another request, or to take what was sent to it (at about 2 KB/s)."""
    body_seconds: float = Field(default=300, gt=0)
    """How long the first `server.max_body_bytes` of a body may take: 10 MiB at 35 KB/s."""
    total_seconds: float | None = Field(default=3600, gt=0)
    """How long a request to a model may take from its admission to its last byte. OpenAI's clients
    give up after 600 s."""

    # Of all requests to models.
    requests: int = Field(default=4096, ge=1)
    """Open at once, streams included. Engines run 256 to 1024 sequences; the rest waits."""
    sequences: int = Field(default=8192, ge=1)
    """Prompts, times `n`, of all requests that are admitted and not yet answered."""
    bodies_bytes: int = Field(default=256 * 1024**2, ge=1024)
    """Of the bodies of all open requests. Parsed and tokenized, a byte takes about five; one body
    of `server.max_body_bytes` always fits."""
    share: float = Field(default=0.5, gt=0, le=1)
    """The part of each of these three that one credential may hold, and of sequences also one
    inference key, so that nobody holds every place. A credential may have a `concurrency` of its
    own; where nobody is authenticated, all are one."""

    # Of one request to a model.
    prompt_characters: int = Field(default=4_000_000, ge=1)
    """Characters, and ids of tokens, of all prompts or messages. About 1M tokens of English; what
    is longer would occupy the tokenizer for seconds before vLLM finds that it does not fit."""
    sequences_per_request: int = Field(default=2048, ge=1)
    """Prompts (inputs, documents, texts) times `n`; as many as OpenAI's embeddings take."""
    n: int = Field(default=128, ge=1)
    """OpenAI's own bound."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Tokens of an answer, also where a request names no number; None: the base's context."""
    logprobs: int | None = Field(default=None, ge=0)
    """Of each token of an answer or a prompt; None: vLLM's `engine.max_logprobs`, which is 20."""
    messages: int = Field(default=4096, ge=1)
    """Messages of a chat; its template runs over each of them."""
    content_parts: int = Field(default=4096, ge=1)
    """Parts of the contents of all messages."""
    stop: int = Field(default=64, ge=1)
    """Stop strings; each is looked for after each token. OpenAI takes 4."""
    stop_characters: int = Field(default=1024, ge=1)
    """Of one stop string or bad word. A stream is held back by as much as the longest has."""
    token_choices: int = Field(default=4096, ge=1)
    """Entries of `logit_bias`, `allowed_token_ids`, `stop_token_ids`, `logprob_token_ids` or
    `bad_words`."""
    tools: int = Field(default=256, ge=1)
    """Tools of a request; OpenAI takes 128."""
    schema_bytes: int = Field(default=256 * 1024, ge=64)
    """Tools, a response format, a grammar or a template's arguments, each as JSON."""

    def share_of(self, most: int) -> int:
        """As much of `most` as one credential or inference key may hold."""
        return max(1, int(most * self.share))
