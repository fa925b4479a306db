"""What stands beside an adapter's two files: templates are kept, tokens compared, all is told."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from stacked.chat import stored_chat
from stacked.errors import (
    AdapterConfigInvalid,
    AdapterError,
    AdapterTooLarge,
    ChatTemplateInvalid,
    TokensDiffer,
)
from stacked.store import AdapterStore, BaseModules
from stacked.store.extras import chat_summary
from tests.store.small import write_adapter, write_base, write_json

TEMPLATE = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
SPECIAL = ["<s>", "</s>", "<unk>"]
TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [
        {"id": at, "content": text, "special": True} for at, text in enumerate(SPECIAL)
    ],
    "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
    "model": {
        "type": "BPE",
        "vocab": {text: at for at, text in enumerate([*SPECIAL, "a", "b", "ab"])},
        "merges": ["a b"],
    },
}
CONFIG = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": None}


def tokenizer(directory: Path, tree: dict[str, Any] | None = None, **config: Any) -> Path:
    """A tokenizer as transformers saves it; a config key that is given `...` is left out."""
    write_json(directory / "tokenizer.json", tree or TOKENIZER)
    told = {k: v for k, v in {**CONFIG, **config}.items() if v is not ...}
    write_json(directory / "tokenizer_config.json", told)
    return directory


def changed(*path: str, to: Any) -> dict[str, Any]:
    tree = copy.deepcopy(TOKENIZER)
    place = tree
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return tree


def with_token(text: str, at: int) -> dict[str, Any]:
    return changed("added_tokens", to=[*TOKENIZER["added_tokens"], {"id": at, "content": text}])


@pytest.fixture(scope="module")
def chatting(tmp_path_factory: pytest.TempPathFactory) -> BaseModules:
    directory = write_base(tmp_path_factory.mktemp("chatting") / "small")
    return BaseModules.read(tokenizer(directory, chat_template=TEMPLATE))


def kept(store: AdapterStore, adapter: Path, base: BaseModules) -> dict[str, Any] | None:
    """The store's tokenizer_config.json of an adapter, if it has one."""
    path = store.add(str(adapter), base=base).path / "tokenizer_config.json"
    return json.loads(path.read_text()) if path.exists() else None


def refused(error: type[AdapterError], store: AdapterStore, *at: Any, **more: Any) -> str:
    adapter, base = at
    with pytest.raises(AdapterError) as caught:
        store.add(str(adapter), base=base, **more)
    assert type(caught.value) is error, caught.value
    assert store.list() == []
    return str(caught.value)


def warned(store: AdapterStore, adapter: Path, base: BaseModules, **more: Any) -> str:
    return "; ".join(store.inspect(str(adapter), base=base, **more).warnings)


# Templates


def test_templates_and_the_tokens_that_they_read_are_kept_and_nothing_else(
    store: AdapterStore, adapter: Path, chatting: BaseModules
) -> None:
    tokenizer(adapter, chat_template=TEMPLATE + "!", padding_side="left", eos_token="<unk>")
    added = store.add(str(adapter), base=chatting)
    assert sorted(path.name for path in added.path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer_config.json",
    ]
    assert kept(store, adapter, chatting) == {
        "chat_template": TEMPLATE + "!",
        "eos_token": "<unk>",
    }
    store.verify(added.digest)
    assert store.get(added.digest) == added


def test_every_way_of_writing_a_template_is_one_content(
    store: AdapterStore, tmp_path: Path, chatting: BaseModules
) -> None:
    text = TEMPLATE + "?"
    ways = [write_adapter(tmp_path / name) for name in ("file", "text", "list", "both", "stored")]
    file, inline, rows, both, stored = ways
    for way in (file, both):
        (way / "chat_template.jinja").write_text(text)
    tokenizer(file)
    tokenizer(inline, chat_template=text)
    tokenizer(rows, chat_template=[{"name": "default", "template": text}])
    tokenizer(both, chat_template="which the file comes before")
    digests = {store.add(str(way), base=chatting).digest for way in ways[:4]}
    assert len(digests) == 1
    (digest,) = digests
    again = store.get(digest).path / "tokenizer_config.json"
    (stored / again.name).write_bytes(again.read_bytes())
    assert store.add(str(stored), base=chatting).digest == digest


def test_without_a_template_the_digest_is_that_of_the_two_files(
    store: AdapterStore, tmp_path: Path, chatting: BaseModules
) -> None:
    bare, beside = write_adapter(tmp_path / "bare"), write_adapter(tmp_path / "beside")
    tokenizer(beside)
    digest = store.add(str(bare), base=chatting).digest
    assert store.add(str(beside), base=chatting).digest == digest
    tokenizer(beside, chat_template=TEMPLATE)
    own = store.add(str(beside), base=chatting)
    assert own.digest != digest
    assert store.list() == sorted([own, store.get(digest)], key=lambda each: each.digest)


def test_more_templates_by_name(store: AdapterStore, adapter: Path, chatting: BaseModules) -> None:
    (adapter / "chat_template.jinja").write_text("chat")
    more = adapter / "additional_chat_templates"
    more.mkdir()
    (more / "tool_use.jinja").write_text("tools {{ bos_token }}")
    added = store.add(str(adapter), base=chatting)
    chat = stored_chat(added.path)
    assert chat is not None
    assert chat.templates == {"default": "chat", "tool_use": "tools {{ bos_token }}"}
    assert chat.tokens == {}  # no tokenizer came along: the base's
    assert [chat.chosen(None, tools=tools) for tools in (False, True)] == [
        "chat",
        "tools {{ bos_token }}",
    ]
    report = store.inspect(str(adapter), base=chatting)
    assert chat_summary(report.chat, chatting.directory) == "its own (default, tool_use)"


def test_what_the_tokenizer_says_of_a_token_is_kept(
    store: AdapterStore, adapter: Path, chatting: BaseModules
) -> None:
    template = "{{ bos_token }}{{ eos_token }}{{ image_token }}{{ sep_token }}{{ pad_token }}"
    tokenizer(
        adapter,
        chat_template=template,
        bos_token=None,
        eos_token={"__type": "AddedToken", "content": "<unk>"},
        extra_special_tokens={"image_token": "<s>"},
    )
    write_json(adapter / "special_tokens_map.json", {"sep_token": {"content": "</s>"}})
    assert kept(store, adapter, chatting) == {
        "chat_template": template,
        "bos_token": None,
        "eos_token": "<unk>",
        "image_token": "<s>",
        "sep_token": "</s>",
        "pad_token": None,
    }


def test_the_report_says_whose_template_it_is(
    store: AdapterStore, adapter: Path, chatting: BaseModules
) -> None:
    said = []
    for config in ({}, {"chat_template": TEMPLATE}, {"chat_template": "x"}):
        report = store.inspect(str(tokenizer(adapter, **config)), base=chatting)
        said.append(chat_summary(report.chat, chatting.directory))
    assert said == ["the base's", "its own, which is the base's", "its own"]


@pytest.mark.parametrize(
    ("template", "error", "said"),
    [
        ("{% for %}", ChatTemplateInvalid, "template 'default': line 1"),
        ("{{ 'x' * 99999999999 }}", ChatTemplateInvalid, "MiB"),
        ("{# " + "x" * 140_000 + " #}", AdapterTooLarge, "140,006 characters"),
        ([{"name": "rag", "template": "x"}], AdapterConfigInvalid, "rag"),
        ([{"name": "default"}], AdapterConfigInvalid, "neither"),
        ([{"name": "default", "template": 7}], AdapterConfigInvalid, "no text"),
        (7, AdapterConfigInvalid, "neither"),
    ],
)
def test_what_is_no_usable_template_is_refused_and_nothing_is_kept(
    store: AdapterStore,
    adapter: Path,
    chatting: BaseModules,
    template: Any,
    error: type[AdapterError],
    said: str,
) -> None:
    assert said in refused(error, store, tokenizer(adapter, chat_template=template), chatting)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "tokenizer.json", "added_tokens.json"])
@pytest.mark.parametrize("text", ["{", "[]", '"x"', "\xff", "[" * 100_000])
def test_a_damaged_file_is_refused_by_name(
    store: AdapterStore, adapter: Path, chatting: BaseModules, name: str, text: str
) -> None:
    (adapter / name).write_bytes(text.encode("latin-1"))
    assert name in refused(AdapterConfigInvalid, store, adapter, chatting)


@pytest.mark.parametrize("odd", [None, "5", 1.5, [], float("inf"), 10**400])
@pytest.mark.parametrize(
    "place", [("model", "vocab", "a"), ("added_tokens", 0, "id"), ("added_tokens", 0)]
)
def test_an_id_that_is_no_number_is_refused(
    store: AdapterStore, adapter: Path, chatting: BaseModules, place: tuple[str, ...], odd: Any
) -> None:
    tree = changed(*place, to=odd)
    if odd == 10**400 and len(place) == 3:
        refused(TokensDiffer, store, tokenizer(adapter, tree), chatting)
    else:
        refused(AdapterConfigInvalid, store, tokenizer(adapter, tree), chatting)


@pytest.mark.parametrize("number", ["9" * 5000, "²", "-1", "x", ""])
def test_a_number_that_is_no_id_is_passed_over(
    store: AdapterStore, adapter: Path, chatting: BaseModules, number: str
) -> None:
    added = {number: {"content": "x"}}
    store.add(str(tokenizer(adapter, added_tokens_decoder=added)), base=chatting)


def test_a_plain_chat_that_is_refused_is_a_warning(
    store: AdapterStore, adapter: Path, chatting: BaseModules
) -> None:
    tokenizer(adapter, chat_template="{{ raise_exception('tools alone') }}")
    assert "refuses a plain message by a user: tools alone" in warned(store, adapter, chatting)


def test_a_changed_template_in_the_store_is_damage(
    store: AdapterStore, adapter: Path, chatting: BaseModules
) -> None:
    added = store.add(str(tokenizer(adapter, chat_template="x")), base=chatting)
    file = added.path / "tokenizer_config.json"
    file.chmod(0o644)
    file.write_text(file.read_text().replace('"x"', '"y"'))
    with pytest.raises(AdapterError, match="has the content of"):
        store.verify(added.digest)
    assert store.add(str(adapter), base=chatting) == added
    store.verify(added.digest)


# Tokens


@pytest.mark.parametrize(
    "tree",
    [
        TOKENIZER,
        changed("padding", to={"strategy": {"Fixed": 8}}),
        changed("truncation", to={"max_length": 8}),
        changed("model", "merges", to=[["a", "b"]]),
        changed("model", "ignore_merges", to=False),
        changed("pre_tokenizer", to={"add_prefix_space": False, "type": "ByteLevel", "x": None}),
        changed("post_processor", to={"type": "TemplateProcessing"}),
        with_token("[PAD]", 6),
    ],
)
def test_what_changes_no_prompt_is_accepted_without_a_word(
    store: AdapterStore, adapter: Path, chatting: BaseModules, tree: dict[str, Any]
) -> None:
    more = {"pad_token": "[PAD]", "padding_side": "left", "model_max_length": 7}
    assert warned(store, tokenizer(adapter, tree, **more), chatting) == ""


@pytest.mark.parametrize(
    ("tree", "config", "said"),
    [
        (with_token("<|im_start|>", 6), {}, "1 token that the base's lacks"),
        (with_token("<|im_start|>", 6), {}, "'<|im_start|>' (6)"),
        (with_token("</s>", 9), {}, "'</s>' (9, the base's 1)"),
        (with_token("<|end|>", 6), {"pad_token": "<|end|>", "eos_token": "<|end|>"}, "'<|end|>'"),
        (changed("model", "vocab", to={"a": 0, "c": 9}), {}, "'c' (9)"),
    ],
)
def test_tokens_that_the_base_lacks_are_refused_by_name_unless_it_is_said(
    store: AdapterStore,
    adapter: Path,
    chatting: BaseModules,
    tree: dict[str, Any],
    config: dict[str, Any],
    said: str,
) -> None:
    tokenizer(adapter, tree, **config)
    sentence = refused(TokensDiffer, store, adapter, chatting)
    assert said in sentence
    assert "foreign_tokens: true" in sentence
    assert "They are lost" in warned(store, adapter, chatting, foreign_tokens=True)
    store.add(str(adapter), base=chatting, foreign_tokens=True)


def test_many_tokens_are_counted_and_the_first_are_named(
    store: AdapterStore, adapter: Path, chatting: BaseModules
) -> None:
    write_json(adapter / "added_tokens.json", {f"<{at}>": at for at in range(10, 1000)})
    said = refused(TokensDiffer, store, adapter, chatting)
    assert "990 tokens" in said
    assert "'<10>' (10)" in said
    assert len(said) < 1000


@pytest.mark.parametrize("whole", [True, False])
def test_added_tokens_are_told_without_a_tokenizer_json(
    store: AdapterStore, adapter: Path, tmp_path: Path, whole: bool
) -> None:
    """As older trainers and sentencepiece tokenizers leave them, on either side."""
    base = write_base(tmp_path / "base")
    tokenizer(base)
    if not whole:
        (base / "tokenizer.json").unlink()
    modules = BaseModules.read(base)
    decoder = {str(at): {"content": text} for at, text in enumerate(SPECIAL)}
    write_json(adapter / "tokenizer_config.json", {**CONFIG, "added_tokens_decoder": decoder})
    assert warned(store, adapter, modules) == ""
    decoder["6"] = {"content": "<|im_end|>"}
    write_json(adapter / "tokenizer_config.json", {**CONFIG, "added_tokens_decoder": decoder})
    assert "'<|im_end|>' (6)" in refused(TokensDiffer, store, adapter, modules)


def large(more: dict[str, int] | None = None) -> dict[str, Any]:
    """A vocabulary that is not parsed among requests."""
    words = {f"word number {at}": at for at in range(6, 8000)}
    return changed("model", "vocab", to={**TOKENIZER["model"]["vocab"], **words, **(more or {})})


def test_large_vocabularies_are_compared_alike(
    store: AdapterStore, adapter: Path, tmp_path: Path
) -> None:
    base = tokenizer(write_base(tmp_path / "base"), large())
    modules = BaseModules.read(base)
    assert warned(store, tokenizer(adapter, large()), modules) == ""
    assert '"stop"' in warned(store, tokenizer(adapter, large(), eos_token="<unk>"), modules)
    padded = changed("model", "vocab", to=large()["model"]["vocab"]) | {"padding": {"x": 1}}
    assert warned(store, tokenizer(adapter, padded), modules) == ""
    tokenizer(adapter, large({"new": 9000}))
    assert "1 token that the base's lacks or has under other ids: 'new' (9000)" in refused(
        TokensDiffer, store, adapter, modules
    )
    assert "They are lost" in warned(store, adapter, modules, foreign_tokens=True)
    (adapter / "tokenizer.json").write_text("[" * 200_000)
    assert "tokenizer.json: not what" in refused(AdapterConfigInvalid, store, adapter, modules)
    tokenizer(adapter, large())
    write_json(adapter / "added_tokens.json", {"<new>": 9000})
    assert "'<new>' (9000)" in refused(TokensDiffer, store, adapter, modules)


def test_other_rules_of_splitting_and_another_end_are_warnings(
    store: AdapterStore, adapter: Path, chatting: BaseModules
) -> None:
    tokenizer(adapter, changed("pre_tokenizer", "add_prefix_space", to=True), eos_token="<unk>")
    said = warned(store, adapter, chatting)
    assert "splits text by other rules" in said
    assert '"stop_token_ids": [2]' in said


def test_a_base_without_a_tokenizer_compares_nothing(
    store: AdapterStore, adapter: Path, base: BaseModules
) -> None:
    assert warned(store, tokenizer(adapter, with_token("<new>", 6)), base) == ""


def test_a_replaced_tokenizer_of_a_base_is_read_again(
    store: AdapterStore, adapter: Path, tmp_path: Path
) -> None:
    base = tokenizer(write_base(tmp_path / "base"))
    tokenizer(adapter, with_token("<new>", 6))
    refused(TokensDiffer, store, adapter, BaseModules.read(base))
    tokenizer(base, with_token("<new>", 6))
    assert warned(store, adapter, BaseModules.read(base)) == ""
