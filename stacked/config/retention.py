"""How long what is no longer needed is stored."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field

from stacked.config.fields import Duration, Frozen

# A group of 500 adapters of 8 MiB each: with less, the next update may not fit.
LOW_DISK_BYTES = 4 * 1024**3


class RetentionConfig(Frozen):
    """How long the server stores what is no longer needed.

    What is served, was served before that, or is named by a model or a retained group version stays
    whatever its age.
    """

    interval: Duration = Field(default=timedelta(minutes=1), ge=timedelta(seconds=1))
    """How often the server looks for what can be removed."""
    unused_content: Duration = Field(default=timedelta(days=1), ge=timedelta(minutes=1))
    """Adapters and bases that no record ever named, such as uploads, since their last use."""
    group_versions: int = Field(default=10, ge=1)
    """How many groups of one version history are stored; of groups without one, of one name."""
    deleted_records: Duration = timedelta(days=30)
    """The records of models, groups, histories and deployments that were deleted."""
    work_requests: Duration = timedelta(days=30)
    """Work requests that have ended, with their logs and errors."""
    usage: Duration = Field(default=timedelta(days=90), ge=timedelta(hours=1))
    """The counts of requests and tokens by credential and key."""
    engine_logs: int = Field(default=10, ge=1)
    """How many logs of engines are stored."""
    deployment_logs: Duration = timedelta(days=30)
    """Files of deployments' `access` and `predict` logs, since their last line."""
    engine_notes: Duration = timedelta(days=30)
    """Notes on an engine (its modules, adapters verified on it), since its last start."""
    low_disk_bytes: int = Field(default=LOW_DISK_BYTES, ge=0)
    """With less free space than this, `stacked status`, `stacked doctor` and the log warn."""
