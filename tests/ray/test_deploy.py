from __future__ import annotations

from pathlib import Path

import pytest

from stacked.config import ControlConfig, MemberConfig, RayConfig, ScaleConfig
from stacked.errors import ConfigInvalid

pytest.importorskip("ray", reason="stacked[fleet] is not installed")

from stacked.ray.deploy import deploy, version_of

CONFIG = ControlConfig()


def test_replicas_are_started_again_for_settings_alone() -> None:
    version = version_of(CONFIG, Path("fleet.yaml"), Path("data"))
    member = MemberConfig(key="k", source="/somewhere")
    group = CONFIG.group.model_copy(update={"members": (member,)})
    for same in ({"group": group}, {"ray": RayConfig(replicas=3, copies=1)}):
        config = CONFIG.model_copy(update=same)
        assert version_of(config, Path("fleet.yaml"), Path("data")) == version
    other = CONFIG.model_copy(update={"engine": {"max_loras": 2}})
    assert version_of(other, Path("fleet.yaml"), Path("data")) != version
    assert version_of(CONFIG, Path("fleet.yaml"), Path("elsewhere")) != version


@pytest.mark.parametrize("replicas", [2, ScaleConfig(max=2)])
def test_several_servers_that_are_no_fleet_are_refused(replicas: int | ScaleConfig) -> None:
    config = CONFIG.model_copy(update={"ray": RayConfig(replicas=replicas)})
    with pytest.raises(ConfigInvalid, match="fleet"):
        deploy(Path("fleet.yaml"), config, Path("data"))
