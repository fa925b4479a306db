"""`stacked update --live`, `rollback`, `experiment promote`: another group, followed to its end."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stacked.cli.sending import sent
from stacked.cli.shared import Url, brief, conclusions, fail, optional, server
from stacked.core import VERSIONED

if TYPE_CHECKING:
    from stacked.client import Client, Entry
    from stacked.config import Config, ControlConfig, Design
    from stacked.terminal import Terminal


def update(
    config: Annotated[Path, typer.Argument(help="A YAML file with the new group.")],
    live: Annotated[
        bool, typer.Option("--live", help="Under traffic, without a restart; required.")
    ] = False,
    gate: Annotated[
        list[Path] | None,
        optional(help="An evaluation set that the new adapters must pass; repeatable."),
    ] = None,
    url: Url = None,
) -> None:
    """Replace the served group by that of a file: all of it, or nothing.

    Local members are uploaded, except those that the server already has.

    Example:  stacked update --live configs/demo.yaml --gate evals/sql.yaml
    """
    from stacked.config import load_server
    from stacked.terminal import Terminal

    if not live:
        raise typer.BadParameter(
            "add --live; any other change is a restart of `stacked serve`", param_hint="--live"
        )
    tree = _gated(load_server(config), gate or ())
    with server(url) as client, Terminal() as progress:
        done = _update(client, tree, progress)
    raise typer.Exit(0 if done else 1)


def _gated(tree: ControlConfig, files: Sequence[Path]) -> ControlConfig:
    """The file's tree with these gates too. Raises ConfigInvalid."""
    from stacked.config import load_set

    gates = (*tree.group.gates, *map(load_set, files))
    return tree.model_copy(update={"group": tree.group.model_copy(update={"gates": gates})})


def rollback(url: Url = None) -> None:
    """Go back, LIVE, to the group that was served before this one.

    Example:  stacked rollback
    """
    from stacked.client import entries_of
    from stacked.terminal import Terminal

    with server(url) as client, Terminal() as progress:
        status = _served(client)
        if not status.get("previousGroupId"):
            fail("NoPreviousGroup", "no group was served before this one; see: stacked groups")
        _check_idle(status)
        served, previous = client.group(status["groupId"]), client.group(status["previousGroupId"])
        _show_changes(entries_of(served), entries_of(previous), _design(served), _design(previous))
        done = _go_live(client, progress, status, previous, entries_of(previous))
    raise typer.Exit(0 if done else 1)


def promote(
    key: Annotated[str, typer.Argument(help="The experiment's inference key.")],
    arm: Annotated[str, typer.Argument(help="The key of the arm that stays.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: Url = None,
) -> None:
    """Make one arm the only one, LIVE and without loading anything.

    The experiment's key goes on answering; `stacked rollback` brings the other arms back.

    Example:  stacked experiment promote sql sql-v2
    """
    from stacked.client import entries_of, metadata_of
    from stacked.config import Design
    from stacked.terminal import Terminal, out

    with server(url) as client, Terminal() as progress:
        status = _served(client)
        _check_idle(status)
        served = client.group(status["groupId"])
        metadata = metadata_of(served["modelGroupDetails"])
        before = Design.of(metadata)
        after = _promoted(before, key, arm)
        if after == before:
            progress.finish(f"Nothing to change: {arm!r} is the only arm of {key!r}")
            return
        for sentence in conclusions(client.experiment(key)["phase"]):
            out.print(sentence, markup=False)
        out.print(f"All of {key!r} will be answered by {arm!r}.", markup=False)
        if not yes:
            typer.confirm("Promote it?", abort=True)
        group = client.clone_group(served, {**metadata, **after.as_metadata()})
        done = _go_live(client, progress, status, group, entries_of(group))
        if done:
            progress.note(
                f"Before the next `stacked update --live`, write arms: [{{key: {arm}}}] into the "
                "file too. To bring the other arms back: stacked rollback"
            )
    raise typer.Exit(0 if done else 1)


def _promoted(design: Design, key: str, arm: str) -> Design:
    """The design with this arm as the only one of this experiment; ends the command without."""
    from stacked.config import ArmConfig

    found = [one for one in design.experiments if one.key == key]
    if not found:
        fail("ExperimentUnknown", f"no experiment {key!r} is served; see: stacked experiment list")
    arms = [each.key for each in found[0].arms]
    if arm not in arms:
        fail("ArmUnknown", f"{arm!r} is no arm of {key!r}; its arms are {', '.join(arms)}")
    alone = found[0].model_copy(update={"arms": (ArmConfig(key=arm),)})
    experiments = tuple(alone if one is found[0] else one for one in design.experiments)
    return design.model_copy(update={"experiments": experiments})


def _served(client: Client) -> dict[str, Any]:
    """The status of a server, whose engine must serve."""
    status = client.status()
    engine = status.get("engine") or {"state": "serving"}  # as of an older server that answers
    if engine["state"] != "serving":
        fail("NotReady", f"the engine does not serve: {engine['state']}, {engine['reason']}")
    return status


def _update(client: Client, tree: ControlConfig, progress: Terminal) -> bool:
    from stacked.client import Entry, entries_of, metadata_of
    from stacked.config import Config
    from stacked.errors import ConfigInvalid, UpdateNotLive

    status = _served(client)
    served = client.group(status["groupId"])
    details = served["modelGroupDetails"]
    recorded = entries_of(served)
    if not isinstance(tree, Config) and not tree.group.members:
        raise ConfigInvalid("the file declares no group; set base.model, or group.members")
    if details["type"] != tree.group.kind:
        raise UpdateNotLive(
            f"the file's group is {tree.group.kind}, and a {details['type']} one is served; that "
            "needs a restart"
        )
    bases = [each for each in recorded if each.model_id == details.get("baseModelId")]
    coming = list(bases)
    if isinstance(tree, Config):
        _check_base(client, tree, bases[0])
        coming = [replace(bases[0], key=_base_key(tree, bases[0]))]
    # A file without engine settings accepts the engine's.
    if tree.engine:
        client.check_engine(tree.engine)
    _check_idle(status)
    wanted = _register(client, tree, progress)
    live = [
        Entry(each["modelId"], each.get("inferenceKey"), each["digest"])
        for each in status["models"]
    ]
    # An adapter that was loaded alone is live, and in no group.
    named = {(each.model_id, each.key): each.weight for each in wanted}
    before = {(each.model_id, each.key): each.weight for each in recorded if each not in bases}
    same = named == before
    same = same and named.keys() == {(each.model_id, each.key) for each in live}
    if same and coming == bases and metadata_of(details) == tree.group.recorded_metadata:
        progress.finish(f"Nothing to change: group {served['displayName']!r} is served")
        return True
    _show_changes([*bases, *live], [*coming, *wanted], _design(served), tree.group)
    group = _create_group(client, tree, [*coming, *wanted], served)
    return _go_live(client, progress, status, group, wanted)


def _check_base(client: Client, tree: Config, base: Entry) -> None:
    """Refuse what is certainly another base before anything is sent."""
    from stacked.client import metadata_of
    from stacked.errors import UpdateNotLive

    given, held = tree.base, metadata_of(client.model(base.model_id)).get("source", "")
    differs = ""
    if given.id not in (None, base.model_id):
        differs = f"base.id is {given.id} in the file, and {base.model_id} is served"
    elif _other_place(given.model, held):
        differs = f"base.model is {given.model} in the file, and {held} is served"
    if differs:
        raise UpdateNotLive(f"{differs}; that needs a restart")


def _base_key(tree: Config, base: Entry) -> str | None:
    """The file's key for the base, if any; another key loads nothing, so the update can be LIVE."""
    return tree.base.key if "key" in tree.base.model_fields_set else base.key


def _check_idle(status: dict[str, Any]) -> None:
    """Refuse before anything is sent; the server also does, if another update came first."""
    from stacked.errors import UpdateInProgress

    if status.get("update"):
        raise UpdateInProgress(f"another update is under way ({status['update']}); wait for it")


def _other_place(given: str, held: str) -> bool:
    """Whether both are directories of this machine, and not the same."""
    there = os.path.isdir(given) and os.path.isdir(held)
    return there and not os.path.samefile(given, held)


def _register(client: Client, tree: ControlConfig, progress: Terminal) -> list[Entry]:
    group = tree.group
    sources = sent(client, group.members, progress, adapters=group.kind == "STACKED")
    found = []
    progress.begin(f"Registering {len(sources)} members")
    for each in sources:
        with each.errors_named():
            key, id = each.member.key, each.member.id
            made = client.register(each.registered, key=key, model_id=id)
        found.append(replace(made, weight=each.member.weight))
        progress.fraction(len(found) / len(sources))
    progress.done()
    return found


def _create_group(
    client: Client, tree: ControlConfig, entries: Sequence[Entry], served: dict[str, Any]
) -> dict[str, Any]:
    """The file's group as a record of the server, where the served one is."""
    items = [{"key": key, "value": value} for key, value in tree.group.recorded_metadata.items()]
    return client.create_group(
        tree.group.name,
        entries,
        kind=tree.group.kind,
        details={"customMetadataList": items},
        freeformTags=VERSIONED,
        compartmentId=served.get("compartmentId"),
        projectId=served.get("projectId"),
    )


def _design(group: dict[str, Any]) -> Design:
    """What a recorded group declares."""
    from stacked.client import metadata_of
    from stacked.config import Design

    return Design.of(metadata_of(group["modelGroupDetails"]))


def _show_changes(
    before: Sequence[Entry], after: Sequence[Entry], was: Design, now: Design
) -> None:
    """What callers will notice of each key, a line each, on standard output."""
    from stacked.experiments.changes import changes
    from stacked.groups.swap import diff
    from stacked.terminal import out, table

    old, new = ({each.label: each.content for each in group} for group in (before, after))
    rows = [list(each) for each in changes(was, now, old, new)]
    marks = {"added": "[green]+[/]", "removed": "[red]-[/]", "renamed": "[cyan]→[/]"}
    for each in diff(_members(before), _members(after)):
        detail = f"was {each.before_label}" if each.before_label else ""
        if each.kind == "changed":
            detail = f"{brief(each.before)} → {brief(each.after)}"
        rows.append([each.label, each.kind, detail or brief(each.after or each.before)])
    if rows:
        out.print(table(None, rows, [marks.get(row[1], "[yellow]~[/]") for row in rows]))
    else:
        out.print("every key keeps its adapter; ids, shares or metadata differ")


def _members(entries: Sequence[Entry]) -> list[Any]:
    """Entries for the diff, which only compares labels and contents."""
    from stacked.core import Adapter, Digest, Member, ModelId

    return [
        Member(ModelId(each.model_id), Adapter(Digest(each.content), Path(), 0, 0, ()), each.key)
        for each in entries
    ]


def _go_live(
    client: Client,
    progress: Terminal,
    status: dict[str, Any],
    group: dict[str, Any],
    entries: Sequence[Entry],
) -> bool:
    """Update to a group and follow it to its end; returns whether it is live."""
    from stacked.terminal import show_error

    progress.begin(f"Updating LIVE to group {group['displayName']!r}")
    work = client.update_live(status["deploymentId"], group["id"])
    ended = _follow(client, progress, work)
    if ended == "SUCCEEDED":
        now = client.status()
        progress.finish(f"Group {group['displayName']!r} is live, generation {now['generation']}")
        return True
    progress.done(mark="✗", style="red")
    labels = {each.model_id: each.label for each in entries}
    for each in client.work_errors(work):
        blamed = each.get("modelId")
        place = f"{labels.get(blamed, blamed)}: " if blamed else ""
        show_error(str(each.get("code")), f"{place}{each.get('message')}")
    progress.note(f"The update ended as {ended}; the previous group is still served.")
    return False


def _follow(client: Client, progress: Terminal, work_id: str) -> str:
    """Show an update's logs and percentage until it has ended; returns how it ended."""
    shown = 0
    try:
        for work, logs in client.follow(work_id):
            _note(progress, [str(each.get("message")) for each in logs[shown:]])
            shown = len(logs)
            progress.fraction(float(work["percentComplete"]) / 100)
        return str(work["status"])
    except KeyboardInterrupt:
        progress.note("The update continues without this command; see: stacked status")
        raise


def _note(progress: Terminal, lines: Sequence[str]) -> None:
    """New lines of a log; of many at once only the last one, which has the progress."""
    if len(lines) > 30:
        progress.note(f"… {len(lines) - 1} lines")
        lines = lines[-1:]
    for line in lines:
        progress.note(line)
