"""Flux text to a tree of tuples, for the test server's interpreter: expressions, lambdas, calls and pipes.

Strict where the real one would let a mistake pass: a string literal that is no known name is an error, so that a value
written into a text instead of bound beside it shows. https://docs.influxdata.com/flux/v0/spec/
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<duration>(?:\d+(?:ns|us|ms|mo|[smhdwy]))+)(?![A-Za-z_])
    | (?P<number>\d+(?:\.\d+)?)
    | (?P<string>"(?:[^"\\]|\\.)*")
    | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<sign>\|>|=>|==|!=|<=|>=|[-+*/<>(){}\[\],.:=])
    )""",
    re.VERBOSE,
)
UNITS_NS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9, "d": 86400 * 10**9}
_DURATION = re.compile(r"(\d+)(ns|us|ms|[smhd])")


class FluxError(Exception):
    """The query is not acceptable; the message is what the server would say."""


@dataclass(frozen=True)
class Duration:
    """A length of time."""

    ns: int


@dataclass(frozen=True)
class Instant:
    """A point in time."""

    ns: int


class Parser:
    """One text, read once."""

    def __init__(self, text: str, known_strings: frozenset[str]) -> None:
        self._known_strings = known_strings
        self._tokens: list[tuple[str, str]] = []
        at = 0
        while at < len(text.rstrip()):
            found = _TOKEN.match(text, at)
            if found is None or found.lastgroup is None:
                raise FluxError(f"invalid: unexpected {text[at : at + 20]!r}")
            self._tokens.append((found.lastgroup, found.group(found.lastgroup)))
            at = found.end()
        self.names = {name for kind, name in self._tokens if kind == "name"}
        self._at = 0

    def parse(self) -> Any:
        """The tree of the whole text. Raises FluxError."""
        tree = self._pipe()
        if self._at != len(self._tokens):
            raise FluxError(f"invalid: unexpected {self._tokens[self._at][1]!r}")
        return tree

    def _peek(self) -> str:
        return self._tokens[self._at][1] if self._at < len(self._tokens) else ""

    def _take(self, expected: str | None = None) -> tuple[str, str]:
        if self._at >= len(self._tokens) or (expected is not None and self._peek() != expected):
            raise FluxError(f"invalid: expected {expected or 'more'}, got {self._peek()!r}")
        self._at += 1
        return self._tokens[self._at - 1]

    def _pipe(self) -> Any:
        tree = self._binary(0)
        while self._peek() == "|>":
            self._take()
            call = self._postfix()
            if call[0] != "call":
                raise FluxError("invalid: expected a call after |>")
            tree = ("call", call[1], call[2], tree)
        return tree

    _LEVELS = (("or",), ("and",), ("==", "!=", "<", "<=", ">", ">="), ("+", "-"), ("*", "/"))

    def _binary(self, level: int) -> Any:
        if level == len(self._LEVELS):
            return self._postfix()
        tree = self._binary(level + 1)
        while self._peek() in self._LEVELS[level]:
            operator = self._take()[1]
            tree = ("binary", operator, tree, self._binary(level + 1))
        return tree

    def _postfix(self) -> Any:
        tree = self._primary()
        while self._peek() in (".", "(", "["):
            sign = self._take()[1]
            if sign == ".":
                tree = ("member", tree, self._take()[1])
            elif sign == "[":
                tree = ("member", tree, self._string(self._take()[1]))
                self._take("]")
            else:
                tree = ("call", tree, self._named(")"), None)
        return tree

    def _named(self, end: str) -> dict[str, Any]:
        """The arguments of a call, or the properties of a record, up to its closing bracket."""
        values: dict[str, Any] = {}
        while self._peek() != end:
            kind, name = self._take()
            if kind != "name":
                raise FluxError("invalid: arguments and properties are named")
            self._take(":")
            values[name] = self._pipe()
            if self._peek() == ",":
                self._take()
        self._take(end)
        return values

    def _primary(self) -> Any:  # noqa: PLR0911 - one for each kind of token
        kind, text = self._take()
        if kind == "string":
            return ("value", self._string(text))
        if kind == "number":
            return ("value", float(text) if "." in text else int(text))
        if kind == "duration":
            return ("value", Duration(sum(int(n) * UNITS_NS[u] for n, u in _DURATION.findall(text))))
        if kind == "name":
            return ("value", text == "true") if text in ("true", "false") else ("name", text)
        if text == "-":
            return ("negative", self._postfix())
        if text == "[":
            return ("list", self._list())
        if text == "{":
            return ("record", self._named("}"))
        if text == "(":
            return self._lambda_or_group()
        raise FluxError(f"invalid: unexpected {text!r}")

    def _list(self) -> list[Any]:
        items: list[Any] = []
        while self._peek() != "]":
            items.append(self._pipe())
            if self._peek() == ",":
                self._take()
        self._take("]")
        return items

    def _lambda_or_group(self) -> Any:
        if self._tokens[self._at + 1 : self._at + 3] == [("sign", ")"), ("sign", "=>")]:
            name = self._take()[1]
            self._take(")")
            self._take("=>")
            return ("lambda", name, self._pipe())
        tree = self._pipe()
        self._take(")")
        return tree

    def _string(self, text: str) -> str:
        value = text[1:-1]
        if "${" in value or "\\" in value or value not in self._known_strings:
            raise FluxError(f"refused: the literal {text} is not a known name; values are bound, not written")
        return value
