"""One YAML file as one frozen, validated tree; unknown keys are refused with their location."""

from stacked.config.auth import AuthConfig, OciAuth, is_loopback
from stacked.config.evaluations import EvaluationConfig, Example, GatesConfig
from stacked.config.experiments import (
    CARDS,
    ArmConfig,
    Design,
    ExperimentConfig,
    ShadowConfig,
    UnitKind,
)
from stacked.config.fairness import FairnessConfig
from stacked.config.fields import Duration, Key, Ocid
from stacked.config.fleet import FleetConfig
from stacked.config.group import BaseConfig, GroupConfig, MemberConfig
from stacked.config.limits import LimitsConfig
from stacked.config.models import ModelsConfig
from stacked.config.ray import RayConfig, ScaleConfig
from stacked.config.reading import load, load_server, load_set, parse, resolve_path, said_of
from stacked.config.retention import LOW_DISK_BYTES, RetentionConfig
from stacked.config.server import (
    CorsConfig,
    Listener,
    LogForm,
    PredictEndpoint,
    ServerConfig,
    TlsConfig,
    UnknownParameters,
)
from stacked.config.storage import StorageConfig
from stacked.config.supervision import SupervisionConfig
from stacked.config.tree import Config, ControlConfig
from stacked.config.trials import ExperimentsConfig, ShadowLimits

__all__ = [
    "CARDS",
    "LOW_DISK_BYTES",
    "ArmConfig",
    "AuthConfig",
    "BaseConfig",
    "Config",
    "ControlConfig",
    "CorsConfig",
    "Design",
    "Duration",
    "EvaluationConfig",
    "Example",
    "ExperimentConfig",
    "ExperimentsConfig",
    "FairnessConfig",
    "FleetConfig",
    "GatesConfig",
    "GroupConfig",
    "Key",
    "LimitsConfig",
    "Listener",
    "LogForm",
    "MemberConfig",
    "ModelsConfig",
    "OciAuth",
    "Ocid",
    "PredictEndpoint",
    "RayConfig",
    "RetentionConfig",
    "ScaleConfig",
    "ServerConfig",
    "ShadowConfig",
    "ShadowLimits",
    "StorageConfig",
    "SupervisionConfig",
    "TlsConfig",
    "UnitKind",
    "UnknownParameters",
    "is_loopback",
    "load",
    "load_server",
    "load_set",
    "parse",
    "resolve_path",
    "said_of",
]
