"""Changes single values in the text of a YAML file and leaves every other character of it.

Owns the text surgery: the parser that Serve itself reads the file with says where a value lies, and that part of the
text is replaced. A round trip through a YAML writer would break long lines anew and move comments.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode

TEXT_TAG = "tag:yaml.org,2002:str"
MERGE_TAG = "tag:yaml.org,2002:merge"
BREAKS = "\r\n\x85\u2028\u2029"
"""Where YAML 1.1 ends a line, and with it a comment."""
REST_OF_LINE = re.compile(rf"[ \t]*(?:#[^{BREAKS}]*)?(?P<break>\r\n|[{BREAKS}]|\Z)")
LAST_BREAK = re.compile(rf"(?:\r\n|[{BREAKS}])\Z")
COMMA = re.compile(r"[ \t]*,(?:[ \t]+(?=[^\s#]))?")
PLAIN_KEY = re.compile(r"[a-z][a-z0-9_]*")


class DuplicateKey(yaml.MarkedYAMLError):
    """A mapping names a key twice. PyYAML and Serve would take the last one without a word."""


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> MappingNode:  # PyYAML's stubs take it for a dict
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, ScalarNode):
                if (key.tag, key.value) in seen:
                    raise DuplicateKey(problem=f"the key {key.value} is there twice", problem_mark=key.start_mark)
                seen.add((key.tag, key.value))
        return node


@dataclass(frozen=True)
class Edit:
    """`replacement` takes the place of the characters from `start` to `end`."""

    start: int
    end: int
    replacement: str = ""

    def applied_to(self, text: str) -> str:
        """The text with this one change."""
        return text[: self.start] + self.replacement + text[self.end :]


def compose(text: str) -> Node | None:
    """The document's nodes, aliases not expanded. Raises `yaml.YAMLError`, and `RecursionError` for absurd depths."""
    loader = _Loader(text)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


def value_of(node: Node) -> object:
    """The node as plain Python values. Raises `yaml.YAMLError`, and `ValueError` for the 32nd of a month."""
    return _Loader("").construct_document(node)


def entries(node: Node | None) -> Iterator[tuple[object, Node, Node]]:
    """Name, key and value of a mapping's entries; none of anything else. A key that is no text has itself as name."""
    if isinstance(node, MappingNode):
        for key, value in node.value:
            yield (key.value if key.tag == TEXT_TAG else key), key, value


def child(node: Node | None, name: str) -> Node | None:
    """The value under this key, if the node is a mapping that has it."""
    return next((value for its, _, value in entries(node) if its == name), None)


def tree(node: Node) -> Iterator[Node]:
    """The node and all below it, each before what is in it."""
    yield node
    for part in node.value if isinstance(node, CollectionNode) else []:
        for one in part if isinstance(part, tuple) else (part,):
            yield from tree(one)


def is_shared(text: str, node: Node) -> bool:
    """Whether an edit here could change, or depend on, another part: an anchor, an alias, a merge key, or a tag.

    An alias is composed as the node of its anchor, so its text starts with & as well.
    """
    return text.startswith(("&", "!"), node.start_mark.index) or node.tag == MERGE_TAG


def next_edit(text: str, key: Node, node: Node, wanted: object) -> Edit | None:
    """One step from the value of this entry towards the wanted one; None when they are the same."""
    if not isinstance(node, MappingNode) or not isinstance(wanted, Mapping) or not (wanted or node.flow_style):
        return None if _same(value_of(node), wanted) else _rewritten(text, key, node, wanted)
    own = {name: (its_key, value) for name, its_key, value in entries(node)}
    # Additions before removals: a block mapping without any entry would be no mapping.
    for name in wanted:
        if name not in own:
            return _added(text, node, f"{_key(name)}: {flow_text(wanted[name])}")
    for name, (its_key, value) in own.items():
        edit = next_edit(text, its_key, value, wanted[name]) if name in wanted else None
        if edit is not None:
            return edit
    gone = next((place for place, name in enumerate(own) if name not in wanted), None)
    return None if gone is None else _removed(text, node, gone)


def flow_text(value: object) -> str:
    """The value on one line: texts in double quotes, so that no version is read as a number."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(name)}: {flow_text(part)}" for name, part in value.items()) + "}"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    style = '"' if isinstance(value, str) else None
    dumped: str = yaml.safe_dump([value], default_style=style, default_flow_style=True, width=math.inf)
    return dumped.strip()[1:-1]


def _key(name: str) -> str:
    return name if PLAIN_KEY.fullmatch(name) and yaml.safe_load(name) == name else flow_text(name)


def _same(one: object, other: object) -> bool:
    # To Python, True is 1; to the reader of a configuration it is not.
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _rewritten(text: str, key: Node, node: Node, wanted: object) -> Edit:
    start, end, new = node.start_mark.index, _end(text, node), flow_text(wanted)
    if isinstance(node, CollectionNode) and not node.flow_style:
        return Edit(key.end_mark.index, end, f": {new}")
    return Edit(start, end, new if end > start else f" {new}")  # nothing after the colon: null


def _added(text: str, node: MappingNode, entry: str) -> Edit:
    if not node.value:
        place = node.start_mark.index + 1
        return Edit(place, place, entry)
    place = _end(text, node.value[-1][1])
    if node.flow_style:
        return Edit(place, place, f", {entry}")
    rest = REST_OF_LINE.match(text, place)
    place = rest.start("break") if rest else place
    line_break = "\r\n" if "\r\n" in text else "\n"
    return Edit(place, place, line_break + " " * node.start_mark.column + entry)


def _removed(text: str, node: MappingNode, place: int) -> Edit:
    key, value = node.value[place]
    start, end = key.start_mark.index, _end(text, value)
    if node.flow_style:
        comma = COMMA.match(text, end)
        before = _end(text, node.value[place - 1][1]) if place else start
        if comma:
            end = comma.end()
        elif not re.search(f"[{BREAKS}]", text[before:start]):
            start = before
    line_start = max(text.rfind(one, 0, start) for one in BREAKS) + 1
    rest = REST_OF_LINE.match(text, end)
    if rest is None or text[line_start:start].strip(" "):
        return Edit(start, end)
    if not rest["break"] and (last := LAST_BREAK.search(text[:line_start])):
        line_start = last.start()  # a file that ends without a line break goes on to
    return Edit(line_start, rest.end())


def _end(text: str, node: Node) -> int:
    """Where the node's own text ends. PyYAML ends a block at the next key, after comments and blank lines."""
    if isinstance(node, CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(text, last[1] if isinstance(last, tuple) else last)
    start, end = node.start_mark.index, node.end_mark.index
    return start + len(text[start:end].rstrip())
