"""Tables as Markdown, put between two markers of a document whose prose stays as it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.bench.serving.tables import Table

BEGIN = "<!-- begin: written by make bench -->"
END = "<!-- end: written by make bench -->"


class MarkersMissing(Exception):
    """The document does not say where the tables go."""


def markdown(tables: Iterable[Table], facts: Mapping[str, str], remarks: Iterable[str]) -> str:
    """Remarks, tables, and the facts about machine and run."""
    parts = [f"**{remark}**" for remark in remarks]
    for table in tables:
        parts.append(f"### {table.title}")
        parts.append(table.note)
        parts.append(_table(table.columns, table.rows))
    parts.append("### Measured on")
    parts.append(_table(("", ""), list(facts.items())))
    return "\n\n".join(parts)


def replace_block(document: str, block: str) -> str:
    """The document with `block` between its markers. Raises MarkersMissing unless it has each once, in order."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in before or END in after:
        raise MarkersMissing(f"it must hold the lines {BEGIN!r} and {END!r} once, in this order")
    return f"{before}{BEGIN}\n\n{block}\n\n{END}{after}"


def write_block(path: Path, block: str) -> None:
    """Replace the generated part of a file. Raises MarkersMissing and OSError."""
    path.write_text(replace_block(path.read_text(encoding="utf-8"), block), encoding="utf-8")


def _table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
