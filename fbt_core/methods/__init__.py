"""Distillation methods, one a file; the folder is scanned, so adding a file adds a method."""

from fbt_core.methods.registry import build_method, method_facts, method_names

__all__ = ["build_method", "method_facts", "method_names"]
