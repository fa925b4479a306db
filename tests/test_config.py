"""One file to one tree: what is read, what is made absolute, and what is refused with its place."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from stacked.config import (
    Config,
    Design,
    Listener,
    TlsConfig,
    load,
    load_server,
    load_set,
    resolve_path,
)
from stacked.errors import ConfigInvalid
from stacked.fleet.replica import Timings
from stacked.fleet.shared import Mode

OCID = "ocid1.datasciencemodel.oc1..a"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "conf" / "served.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigInvalid) as refused:
        load(write(tmp_path, text))
    return str(refused.value)


def test_the_demo_file_is_valid_and_its_paths_are_absolute() -> None:
    root = Path(__file__).parent.parent
    shared = load(root / "configs" / "shared.yaml").server
    assert shared.auth.bearer
    assert isinstance(shared.metrics, Listener)
    (experiment,) = load(root / "configs" / "experiment.yaml").group.experiments
    assert (experiment.key, str(experiment)) == ("sql", "50/50")
    assert load_server(root / "configs" / "ray.yaml").ray.replicas == 3
    config = load(root / "configs" / "demo.yaml")
    sources = {member.key: member.source for member in config.group.members}
    assert config.base.model == "smollm2-135m-instruct"
    assert sources["sql"] == str(root / "adapters" / "sql" / "v2")
    assert list(sources) == ["sql", "sql-v1", "triage", "pirate"]
    assert config.server.host == "127.0.0.1"


def test_a_base_alone_is_enough(tmp_path: Path) -> None:
    config = load(write(tmp_path, "base: {model: smollm2-135m-instruct}"))
    assert config.base.key == "base"
    assert config.group.members == ()
    assert (config.server.host, config.server.port) == ("127.0.0.1", 8080)


@pytest.mark.parametrize("made", ["secret@", "[secret]", "{url: secret}"])
def test_the_address_of_a_database_is_never_shown(tmp_path: Path, made: str) -> None:
    text = f"base: {{model: m}}\nstorage: {{database: {made}}}"
    said = refusal(tmp_path, text) if made[0] in "[{" else repr(load(write(tmp_path, text)))
    assert "secret" not in said
    assert "database" in said


def test_an_address_that_is_refused_is_shown_without_its_secrets(tmp_path: Path) -> None:
    said = refusal(tmp_path, "server: {port: 'http://me:secret@host/x?token=secret'}")
    assert "http://host/x" in said
    assert "secret" not in said


def test_the_environment_names_a_database_where_the_file_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STACKED_DATABASE", "postgresql://environment/x")
    url = "postgresql://me:pw@file/x"
    config = load(write(tmp_path, f"base: {{model: m}}\nstorage: {{database: '{url}'}}"))
    assert config.storage.database_url == url
    alone = load(write(tmp_path, "base: {model: m}"))
    assert alone.storage.database_url == "postgresql://environment/x"
    monkeypatch.setenv("STACKED_DATABASE", "")
    assert alone.storage.database_url is None


def test_a_fleet_has_three_reports_in_a_lease(tmp_path: Path) -> None:
    assert load(write(tmp_path, "base: {model: m}")).fleet is None
    plain = load(write(tmp_path, "base: {model: m}\nfleet: {}")).fleet
    assert plain is not None
    assert plain.timings == Timings()
    assert plain.replica_name == socket.gethostname()
    text = "{mode: session, lease_seconds: 12, replica: gpu-1, on_partition: serve}"
    given = load(write(tmp_path, f"base: {{model: m}}\nfleet: {text}")).fleet
    assert given is not None
    assert (given.mode, given.replica_name) == (Mode.SESSION, "gpu-1")
    assert (given.timings.lease, given.timings.beat, given.timings.drift) == (12, 4, 2)


def test_the_tree_cannot_be_changed(tmp_path: Path) -> None:
    config = load(write(tmp_path, "base: {model: m}"))
    with pytest.raises(ValidationError):
        config.server.port = 1  # type: ignore[misc]


def test_paths_are_relative_to_the_file_not_to_the_process(tmp_path: Path) -> None:
    text = f"""
base: {{model: ./base}}
group: {{members: [{{source: ../adapters/a, id: {OCID}}}, {{source: org/name}}]}}
server: {{adapter_roots: [../adapters]}}
"""
    config = load(write(tmp_path, text))
    assert config.base.model == str(tmp_path / "conf" / "base")
    assert config.group.members[0].source == str(tmp_path / "adapters" / "a")
    assert config.group.members[1].source == "org/name"
    assert config.server.adapter_roots == (str(tmp_path / "adapters"),)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("org/name", "org/name"),
        ("smollm2-135m-instruct", "smollm2-135m-instruct"),
        ("https://example.com/a.zip", "https://example.com/a.zip"),
        ("s3://bucket/a", "s3://bucket/a"),
        ("/models/base", "/models/base"),
        ("./base", "{here}/base"),
        ("a/b/c", "{here}/a/b/c"),
        ("there", "{here}/there"),
        ("org/there", "{here}/org/there"),
    ],
)
def test_what_is_a_path_and_what_a_name(tmp_path: Path, text: str, meant: str) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "org" / "there").mkdir(parents=True)
    assert resolve_path(text, tmp_path) == meant.format(here=tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base: {model: m, modle: n}", ["base.modle", "unknown key", "model, key, id"]),
        ("base: {model: m}\ngrup: {}", ["grup", "unknown key", "base, group, engine, server"]),
        ("group: {}", ["base", "required"]),
        ("base: {model: ''}", ["base.model"]),
        ("base: {model: m}\nserver: {port: 70000}", ["server.port", "65535", "70000"]),
        ("base: {model: m}\nserver: {port: web}", ["server.port", "integer", "web"]),
        ("base: {model: m}\nfleet: {mode: some}", ["fleet.mode", "'global' or 'session'"]),
        ("base: {model: m}\nfleet: {replica: a b}", ["fleet.replica"]),
        ("base: {model: m}\nserver: {health_path: no slash}", ["server.health_path"]),
        ("base: {model: m}\nserver: {predict_endpoint: /v1/x}", ["server.predict_endpoint"]),
        (
            "base: {model: m}\ngroup: {members: [{source: a, kee: b}]}",
            ["group.members[0].kee", "source, key, id"],
        ),
        (
            f"base: {{model: m}}\ngroup: {{members: [{{source: a, key: {'k' * 33}}}]}}",
            ["group.members[0].key", "33 characters", "32"],
        ),
        ("base: {model: m, key: ' a'}", ["base.key", "a space"]),
        ("base: {model: m, id: x}", ["base.id", "not an OCID"]),
        ("base: {model: m}\nbase: {model: n}", ["appears twice", "line 2"]),
        ("base: [", ["not valid YAML"]),
        ("base: " + "[" * 5000, ["not valid YAML"]),
        ("engine: {x: " + "9" * 5000 + "}", ["not valid YAML"]),
        ("base: !!python/object/apply:os.getcwd []", ["not valid YAML"]),
        ("- a", ["expected a mapping"]),
        ("", ["expected a mapping"]),
    ],
)
def test_what_is_wrong_is_refused_with_its_place(
    tmp_path: Path, text: str, words: list[str]
) -> None:
    said = refusal(tmp_path, text)
    assert "served.yaml" in said
    for word in words:
        assert word in said


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    said = refusal(tmp_path, "base: {modle: m}\nserver: {port: -1}").splitlines()
    assert len(said) == 3
    assert all("served.yaml: " in line for line in said)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="cannot be read"):
        load(tmp_path / "none.yaml")


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigInvalid, match="cannot be read"):
        load(path)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    said = refusal(tmp_path, "base: !!python/object/apply:os.system ['true']")
    assert "not valid YAML" in said


def test_engine_options_are_passed_through_as_they_stand(tmp_path: Path) -> None:
    config = load(write(tmp_path, "base: {model: m}\nengine: {max_loras: 4, dtype: float32}"))
    assert isinstance(config, Config)
    assert config.engine == {"max_loras": 4, "dtype": "float32"}


def test_signed_requests_are_asked_for_with_paths_beside_the_file(tmp_path: Path) -> None:
    text = """
base: {model: m}
server:
  auth:
    directory: ../keys
    oci:
      clock_skew_seconds: 60
      keys: {t/u/f: bob.pem, t/u/g: "-----BEGIN PUBLIC KEY-----"}
"""
    auth = load(write(tmp_path, text)).server.auth
    oci = auth.oci
    assert oci is not None
    assert auth.directory == str(tmp_path / "keys")
    assert oci.clock_skew_seconds == 60
    assert oci.keys["t/u/f"] == str(tmp_path / "conf" / "bob.pem")
    assert oci.keys["t/u/g"].startswith("-----BEGIN")


@pytest.mark.parametrize("text", ["oci: true", "oci: {}"])
def test_signed_requests_may_be_asked_for_in_a_word(tmp_path: Path, text: str) -> None:
    config = load(write(tmp_path, f"base: {{model: m}}\nserver: {{auth: {{{text}}}}}"))
    oci = config.server.auth.oci
    assert oci is not None
    assert (oci.keys, config.server.auth.directory, oci.clock_skew_seconds) == ({}, None, 300)


def test_without_auth_nothing_is_asked_for(tmp_path: Path) -> None:
    auth = load(write(tmp_path, "base: {model: m}")).server.auth
    assert not auth.required
    assert not auth.none


def test_tls_has_its_files_beside_the_file(tmp_path: Path) -> None:
    text = "base: {model: m}\nserver: {tls: {cert: a.pem, key: ../a.key}}"
    tls = load(write(tmp_path, text)).server.tls
    assert tls == TlsConfig(cert=str(tmp_path / "conf/a.pem"), key=str(tmp_path / "a.key"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{tls: {cert: a.pem}}", "server.tls.key: Field required"),
        ("{metrics: closed}", "server.metrics"),
        ("{port: 80, metrics: {port: 80}}", "80 is the server's own port"),
        ("{health_port: 81, metrics: {port: 81}}", "81 is the server's own port"),
    ],
)
def test_listeners_that_cannot_be_meant_are_refused(tmp_path: Path, text: str, words: str) -> None:
    assert words in refusal(tmp_path, f"base: {{model: m}}\nserver: {text}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{oci: }", "expected true, or a mapping"),
        ("{oci: false}", "expected true, or a mapping"),
        ("{oci: true, none: true}", "set only one"),
        ("{bearer: true, none: true}", "set only one"),
        ("{bearer: {}}", "server.auth.bearer"),
        ("{oci: {keyz: {}}}", "expected one of: keys, clock_skew_seconds"),
        ("{oidc: {}}", "expected one of: bearer, oci, directory, none"),
        ("{oci: {clock_skew_seconds: 0}}", "server.auth.oci.clock_skew_seconds"),
        ("{oci: {clock_skew_seconds: 86400}}", "server.auth.oci.clock_skew_seconds"),
    ],
)
def test_auth_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, words: str) -> None:
    said = refusal(tmp_path, f"base: {{model: m}}\nserver: {{auth: {text}}}")
    assert "server.auth" in said
    assert words in said


def test_server_file_may_have_no_base(tmp_path: Path) -> None:
    path = tmp_path / "control.yaml"
    path.write_text("server: {port: 9000, adapter_roots: [adapters]}\nengine: {max_loras: 2}\n")
    found = load_server(path)
    assert not isinstance(found, Config)
    assert (found.server.port, found.engine) == (9000, {"max_loras": 2})
    assert found.server.adapter_roots == (str(tmp_path / "adapters"),)
    path.write_text("base: {model: m}\n")
    assert isinstance(load_server(path), Config)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("group: {members: [{source: a}]}", "needs a base"),
        ("{base: {model: m}, group: {kind: HETEROGENEOUS}}", "has no base"),
        ("group: {kind: HOMOGENEOUS}", "'STACKED' or 'HETEROGENEOUS'"),
        ("bass: {model: m}", "expected one of: base, group"),
        ("- server", "expected a mapping"),
    ],
)
def test_server_file_without_a_base_is_checked_too(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "control.yaml"
    path.write_text(text)
    with pytest.raises(ConfigInvalid, match=said):
        load_server(path)


def test_an_interpreter_of_models_is_the_link_that_is_named(tmp_path: Path) -> None:
    """A virtual environment's is a link to another, and knows itself by its own path."""
    link = tmp_path / "env" / "python"
    link.parent.mkdir()
    link.symlink_to(sys.executable)
    path = tmp_path / "control.yaml"
    path.write_text("models: {code: true, pythons: {a: env/python, b: /b/python}}")
    assert load_server(path).models.pythons == {"a": str(link), "b": "/b/python"}
    path.write_text("{}")
    assert not load_server(path).models.code
    for models, said in (("{cods: true}", "user, pythons"), ("{deadline_seconds: 0}", "greater")):
        path.write_text(f"models: {models}")
        with pytest.raises(ConfigInvalid, match=said):
            load_server(path)


# -- evaluation sets ------------------------------------------------------------------------


def test_a_gates_file_and_its_lines_are_read_with_the_group(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    shipped = load_set(root / "evals" / "sql.yaml")
    assert len(shipped.examples) == 100
    write(tmp_path, "")
    (tmp_path / "conf" / "lines.jsonl").write_text(
        '{"prompt": "a\u2028", "expected": "b", "max_tokens": 3}\n\n', encoding="utf-8"
    )
    (tmp_path / "conf" / "set.yaml").write_text(
        "{name: s, keys: [x], margin: 0.1, examples: lines.jsonl}"
    )
    text = "{base: {model: m}, group: {members: [{source: ./x, key: x}], gates: [set.yaml]}}"
    (gate,) = load(write(tmp_path, text)).group.gates
    assert gate.examples[0].model_extra == {"max_tokens": 3}
    metadata = Design(gates=(gate, shipped)).as_metadata()
    assert Design.of(metadata).gates == (gate, shipped)


@pytest.mark.parametrize(
    ("gates", "fault"),
    [
        ("[{name: s, keys: [x], examples: [{prompt: a}]}]", "set threshold, .* or margin"),
        ("[{name: s, margin: 0, examples: [{prompt: a}]}]", "keys is empty"),
        ("[{name: s, metrc: exact, examples: []}]", "expected one of: name, keys, metric"),
        ("[{name: s, examples: []}]", "at least 1 item"),
        ("[{name: s, examples: [{expected: b}]}]", "give messages, or a prompt"),
        ("[{name: s, examples: [{prompt: a, model: b}]}]", "model is not a parameter"),
        ("[{name: s, parameters: {n: 2}, examples: [{prompt: a}]}]", "n is not a parameter"),
        ("[{name: s, keys: [y], margin: 0, examples: [{prompt: a}]}]", "gates.0.keys: .* key 'y'"),
        ("[nowhere.yaml]", r"nowhere\.yaml: cannot be read"),
        ("[lines.yaml]", r"bad\.jsonl: line 2 is no JSON"),
        (
            f"[{{name: s, keys: [x], margin: 0, examples: [{{prompt: {'a' * 300_000}}}]}}]",
            "at most",
        ),
    ],
)
def test_gates_that_judge_nothing_are_refused(tmp_path: Path, gates: str, fault: str) -> None:
    write(tmp_path, "")
    (tmp_path / "conf" / "bad.jsonl").write_text('{"prompt": "a"}\nprompt', encoding="utf-8")
    (tmp_path / "conf" / "lines.yaml").write_text("{name: s, examples: bad.jsonl}")
    with pytest.raises(ConfigInvalid, match=fault):
        load(write(tmp_path, f"{{base: {{model: m}}, group: {{gates: {gates}}}}}"))


def test_an_unknown_key_of_a_set_is_refused_with_those_that_a_set_has(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="metrc: unknown key; expected one of: name, keys"):
        load_set(write(tmp_path, "{name: s, metrc: exact, examples: [{prompt: a}]}"))
