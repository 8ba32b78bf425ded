"""`homes.yaml`: what a household recording is, said by whoever owns it. Nothing about a file is guessed.

Refuses what it does not know: a misspelt key would otherwise be a silent default.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from models.appliances import APPLIANCES

HOMES_FILE = "homes.yaml"
MAINS = "mains"

Unit = Literal["W", "kW"]
UNITS: tuple[Unit, ...] = ("W", "kW")


class RecordingError(Exception):
    """A recording is missing or is not what it should be; the message is one sentence for the user."""


@dataclass(frozen=True, slots=True)
class Recording:
    """One file of one home, and how to read it."""

    home: str
    """What people call it: in tables, in model cards."""
    file_name: str
    """Relative to the data folder."""
    attribution: str
    home_id: str = ""
    unit: Unit = "W"
    timezone: str | None = None
    """IANA name for times without an offset; None: such times are UTC."""
    time_column: str | None = None
    """None: the time index of a parquet file, the first column of a CSV file."""
    columns: tuple[tuple[str, str], ...] = ()
    """(`mains` or an appliance id, column) pairs. Empty: the names of the DeviceScope files, those that are there."""


def one_line(text: str) -> str:
    """Folded to one line: it becomes part of a table or of a list in a model card."""
    return " ".join(text.split())


def time_zone(name: str) -> str:
    """Raises `ValueError` unless `name` is an IANA time zone, such as Europe/London."""
    try:
        ZoneInfo(name)
    except (ValueError, LookupError, OSError):  # not found, a path, a folder of zones
        raise ValueError(f"{name!r} is not an IANA time zone such as Europe/London") from None
    return name


def file_inside(name: str) -> str:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{name!r} must be a file inside the data folder")
    return name


def channel(name: str) -> str:
    if name != MAINS and name not in APPLIANCES:
        raise ValueError(f"{name!r} is neither mains nor one of {', '.join(sorted(APPLIANCES))}")
    return name


Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1), AfterValidator(one_line)]
Column = Annotated[str, StringConstraints(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class DeclaredHome(_Strict):
    """One entry of `homes`."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=64)]
    file: Annotated[str, StringConstraints(min_length=1), AfterValidator(file_inside)]
    unit: Unit
    columns: dict[Annotated[str, AfterValidator(channel)], Column]
    attribution: Text
    title: Text | None = None
    timezone: Annotated[str, AfterValidator(time_zone)] | None = None
    time_column: Column | None = None

    @model_validator(mode="after")
    def _columns_are_distinct(self) -> Self:
        if MAINS not in self.columns:
            raise ValueError("columns must name the mains")
        named = list(self.columns.values())
        twice = sorted({name for name in named if named.count(name) > 1 or name == self.time_column})
        if twice:
            raise ValueError(f"the column {twice[0]!r} is named twice")
        return self

    def recording(self) -> Recording:
        return Recording(
            home=self.title or self.name,
            file_name=self.file,
            attribution=self.attribution,
            home_id=self.name,
            unit=self.unit,
            timezone=self.timezone,
            time_column=self.time_column,
            columns=tuple(self.columns.items()),
        )


class HomesFile(_Strict):
    """The whole file."""

    homes: Annotated[list[DeclaredHome], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        # By their titles a model card says which homes taught and which were never seen.
        names = [name for home in self.homes for name in {home.name, home.title or home.name}]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two homes are named {twice[0]!r}")
        return self


class _NoDuplicates(yaml.SafeLoader):
    """YAML keeps the last of two equal keys; here the second is an error, as it hides what the first said."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice[0]!r} stands twice", node.start_mark)
        found: dict[object, object] = super().construct_mapping(node, deep)
        return found


def read_homes_file(path: Path) -> dict[str, Recording]:
    """The declared homes by name, in the order of the file. Raises `RecordingError`, one sentence.

    Does not look whether the recordings themselves exist: `load_home` does.
    """
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), _NoDuplicates)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise RecordingError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecordingError(f"{path} is not UTF-8 text") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: impossible dates
        raise RecordingError(f"{path} is not YAML: {one_line(str(error))}") from error
    if not isinstance(document, dict):
        raise RecordingError(f"{path} must have one key, homes, with a list of homes")
    try:
        declared = HomesFile.model_validate(document)
    except ValidationError as error:
        raise RecordingError(f"{path}: {_first_problem(error)}") from error
    return {home.name: home.recording() for home in declared.homes}


def _first_problem(error: ValidationError) -> str:
    """Where and what, of the first problem; the others are counted."""
    first = error.errors(include_url=False)[0]
    where = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"] if part != "[key]"
    ).removeprefix(".")
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    what = first["msg"].removeprefix("Value error, ")
    return f"{where}: {what}{more}" if where else f"{what}{more}"
