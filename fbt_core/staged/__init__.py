"""Any timm network as stem, four stages and head."""

from fbt_core.staged.base import FeatureShape, StagedOutput, UnknownStructure
from fbt_core.staged.model import StagedModel, stage
from fbt_core.staged.network import NetworkError, build_network

__all__ = [
    "FeatureShape",
    "NetworkError",
    "StagedModel",
    "StagedOutput",
    "UnknownStructure",
    "build_network",
    "stage",
]
