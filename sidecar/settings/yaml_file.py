"""A YAML file of settings, read strictly: what PyYAML would pass over in silence is a fault here.

No fault repeats what stands in the file, since a secret may stand in it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


class Unusable(Exception):  # noqa: N818 - the fault, in words for whoever wrote the file
    """The file cannot be read, or holds no settings."""


class _GivenTwice(yaml.MarkedYAMLError):
    """YAML forbids it, PyYAML takes the last one: half of somebody's settings would be gone without a word."""


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[object] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise _GivenTwice(problem="a key that was given before", problem_mark=key.start_mark)
                seen.add(key.value)
        return node


def read(file: Path) -> dict[object, object] | None:
    """The mapping in the file; None where the file is empty. Raises Unusable."""
    try:
        tree = yaml.load(file.read_text("utf-8"), _Loader)  # noqa: S506 - it is a SafeLoader
    except OSError as error:
        fault = f"cannot be read: {error.strerror}: takes the path of a YAML file"
    except yaml.MarkedYAMLError as error:
        # The text of other errors may quote the file.
        quotable = isinstance(error, _GivenTwice | yaml.scanner.ScannerError)
        problem = error.problem if quotable else "not valid YAML; a quote, a bracket or an indent may be missing"
        mark = error.problem_mark
        fault = f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else f"{problem}"
    except (yaml.YAMLError, ValueError, RecursionError):
        fault = "not YAML in UTF-8"
    else:
        if isinstance(tree, dict | None):
            return tree
        fault = "not a section: takes keys of its own, such as targets"
    raise Unusable(fault)
