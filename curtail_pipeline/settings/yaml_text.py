"""YAML as people mean it: the core schema of YAML 1.2, and no key twice.

PyYAML reads YAML 1.1, where the region NO is false, 01500 is 832, 10:00 is 600 and the last of two equal keys wins
without a word. Here only true and false are booleans, numbers are decimal (or 0x, 0o), and all else is text, which the
settings then take or refuse.
"""

import re
from typing import Final

import yaml

_TAG: Final = "tag:yaml.org,2002:"
_RESOLVERS: Final = (
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE"), "tTfF"),
    ("null", re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    ("int", re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"), "-+0123456789"),
    (
        "float",
        re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
        "-+.0123456789",
    ),
    ("merge", re.compile(r"<<"), "<"),
)
"""Tag, what is of it, and what such a text begins with (https://yaml.org/spec/1.2.2/#103-core-schema)."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the resolvers of YAML 1.2."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        return int(text[2:] if base != 10 else text, base)


_Loader.yaml_implicit_resolvers = {}
for _name, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(f"{_TAG}{_name}", re.compile(rf"(?:{_pattern.pattern})\Z"), list(_first))
_Loader.add_constructor(f"{_TAG}int", _Loader.construct_yaml_int)


def parse_yaml(text: str) -> object:
    """What a YAML text holds.

    Raises:
        yaml.YAMLError: it is none, or a key is there twice.
    """
    loader = _Loader(text)
    node = loader.get_single_node()
    if node is None:
        return None
    _require_single_keys(node, set())
    return loader.construct_document(node)


def _require_single_keys(node: yaml.Node, seen: set[int]) -> None:
    if id(node) in seen:  # an alias
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _require_single_keys(item, seen)
    elif isinstance(node, yaml.MappingNode):
        names: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != f"{_TAG}merge":
                if key.value in names:
                    raise yaml.composer.ComposerError(
                        None, None, f"the key {key.value!r} is there twice; keep one", key.start_mark
                    )
                names.add(key.value)
            _require_single_keys(value, seen)
