"""The fused model and its adapter L2G."""

from fbt_core.fusion.fused import FusedModel, choose_direction
from fbt_core.fusion.l2g import L2G

__all__ = ["L2G", "FusedModel", "choose_direction"]
