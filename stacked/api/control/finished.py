"""The kinds of things that work requests name, by the words that OCI's clients look for."""

from stacked.api.control.base import finished

__all__ = ["GROUP", "VERSION_SET", "finished"]

# Terraform's provider looks for a part of the first: `model-group`, the others without hyphens.
GROUP = ("data-science-model-group", "modelGroups")
VERSION_SET = ("data-science-modelversionset", "modelVersionSets")
