"""A program whose children make LIVE updates in a registry until they are killed.

It forks one for every line on its input, since importing everything anew would take a second each.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from stacked.registry import DeployedMember, DeploymentState, MemberState, Registry, Shared
from tests.registry.samples import group, started


def main(deployment_id: str, where: Path | Shared) -> None:
    """Answers each line by `pid <n>`, the child's generations, and `dead` when it was reaped."""
    for _ in sys.stdin:
        pid = os.fork()
        if pid == 0:
            update_forever(where, deployment_id)
        say(f"pid {pid}")
        os.waitpid(pid, 0)
        say("dead")


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def update_forever(where: Path | Shared, deployment_id: str) -> None:
    """LIVE updates without end, telling each committed generation.

    Generation n serves a group named `n` of adapters n % 7 and n % 7 + 1.
    """
    with Registry(where) as registry:
        registry.recover()
        while True:
            generation = registry.deployments.get(deployment_id).generation + 1
            first = generation % 7
            made = registry.groups.create(
                group(first, first + 1, display_name=str(generation), custom_metadata=({"n": 1},))
            )
            request = started(registry)
            registry.deployments.set_state(deployment_id, DeploymentState.UPDATING)
            for percent in (20, 40, 60):
                registry.work_requests.advance(request, percent, f"step {percent}")
            states = [
                DeployedMember(model_id=m.model_id, key=m.key, state=MemberState.SUCCESS)
                for m in made.members
            ]
            registry.deployments.put_members(deployment_id, made.id, states)
            registry.deployments.commit(deployment_id, made.id, generation, request)
            say(str(generation))
            registry.work_requests.advance(request, 90, "draining")
            registry.work_requests.succeed(request)


if __name__ == "__main__":
    main(sys.argv[1], Shared(*sys.argv[2:]) if sys.argv[3:] else Path(sys.argv[2]))
