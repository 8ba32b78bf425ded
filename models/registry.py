"""Which models exist: registry.json, checked, and resolved to one entry by (appliance, version).

Owns the meaning of a registry entry and its defaults. Refuses a file that is not strict JSON (NaN, duplicate
keys), does not fit registry.schema.json, or points outside its own folder. Loading is `models.loader`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import jsonschema
import jsonschema.exceptions

from models.appliances import APPLIANCES
from models.attribution import Attribution
from models.engines import Engine

PACKAGED_REGISTRY = Path(__file__).with_name("registry.json")
SCHEMA_PATH = Path(__file__).with_name("registry.schema.json")

DEFAULT_SAMPLE_PERIOD_S = 60.0
"""One-minute means: the period of the recordings, and of every registry written before the field existed."""


class RegistryError(Exception):
    """The registry cannot be used, or has no such model; the message says where and what exists."""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How mains become the network's input: clip to [0, clip_w] (None: not clipped), then z-score.

    `mean` and `std` are in the entry's `input_unit`; `clip_w` is always in W.
    """

    type: str
    mean: float
    std: float
    clip_w: float | None = None


@dataclass(frozen=True, slots=True)
class TrainingSource:
    """One recording a model learnt from. Dates are ISO 8601; `from` is a keyword, hence the underscore."""

    home: str
    from_: str
    to: str
    attribution: str


@dataclass(frozen=True, slots=True)
class RegistryEntry:
    """One version of one model. Powers in W; paths are relative to the registry's folder."""

    model_id: str
    model_version: str
    appliance_id: str
    architecture: str
    architecture_params: dict[str, Any]
    artifact_path: str
    artifact_sha256: str
    input_window_size: int
    preprocessing: Preprocessing
    is_active: bool
    sample_period_s: float
    input_unit: str
    """Unit of the mains before the z-score; the API always speaks kW."""
    output_unit: str
    output_sample_index: int
    """Which sample of the window (0 = oldest) the final output stands for; the samples after it are look-ahead."""
    provisional_sample_index: int
    """The same for the provisional output; registries written before it existed have one output for both."""
    max_power_w: float | None = None
    """Outputs are clamped to [0, max_power_w]; None: only to not negative."""
    on_threshold_w: float | None = None
    golden_path: str | None = None
    """None in registries written before golden outputs: the loader then skips that step and says so."""
    card_path: str | None = None
    training_data: tuple[TrainingSource, ...] = ()
    metrics: dict[str, Any] = field(default_factory=dict)
    engine: Engine = Engine.TORCH
    engine_evidence: dict[str, Any] | None = None
    """What both engines reach on the version's tests, see `models.engines`; None while the engine is torch."""

    @property
    def sample_indices(self) -> dict[Attribution, int]:
        """Which sample of the window each answer stands for."""
        return {
            Attribution.FINAL: self.output_sample_index,
            Attribution.PROVISIONAL: self.provisional_sample_index,
        }


@dataclass(frozen=True, slots=True)
class Registry:
    """All entries of one registry file, in its order."""

    entries: tuple[RegistryEntry, ...]
    root: Path
    """Folder of the file: what `artifact_path`, `golden_path` and `card_path` are relative to."""

    @property
    def sha256(self) -> str:
        """Equal for registries that say the same."""
        return hashlib.sha256(repr(self.entries).encode()).hexdigest()

    @classmethod
    def load(cls, path: Path | None = None) -> Registry:
        """Reads and checks `path` (default: the registry in this package). Raises `RegistryError`."""
        path = PACKAGED_REGISTRY if path is None else Path(path)
        document = _read_strict_json(path)
        _check_schema(document, path)
        rows = document["models"] if isinstance(document, dict) else document
        pointer = "/models" if isinstance(document, dict) else ""
        entries = tuple(_entry(row, f"{pointer}/{index}", path) for index, row in enumerate(rows))
        _check_together(entries, path)
        return cls(entries=entries, root=path.resolve().parent)

    def resolve(self, appliance_id: str, model_version: str) -> RegistryEntry:
        """The entry of that appliance and version. Raises `RegistryError` naming what exists."""
        versions = [entry for entry in self.entries if entry.appliance_id == appliance_id]
        for entry in versions:
            if entry.model_version == model_version:
                return entry
        raise RegistryError(
            f"there is no version {model_version!r} of appliance {appliance_id!r}; {self._what_exists(versions)}"
        )

    def active(self, appliance_id: str) -> RegistryEntry:
        """The one active entry of that appliance. Raises `RegistryError` when there is none."""
        versions = [entry for entry in self.entries if entry.appliance_id == appliance_id]
        for entry in versions:
            if entry.is_active:
                return entry
        raise RegistryError(f"appliance {appliance_id!r} has no active model; {self._what_exists(versions)}")

    def _what_exists(self, versions: list[RegistryEntry]) -> str:
        if versions:
            return f"its versions are {', '.join(entry.model_version for entry in versions)}"
        appliances = sorted({entry.appliance_id for entry in self.entries})
        return f"the registry has {', '.join(appliances) or 'no model at all'}"


def registry_text(entries: Iterable[RegistryEntry]) -> str:
    """registry.json for these entries, sorted. Raises `RegistryError` when they would not be a valid registry."""
    rows = [_row(entry) for entry in sorted(entries, key=lambda entry: (entry.appliance_id, entry.model_version))]
    text = json.dumps({"schema_version": 1, "models": rows}, indent=2, allow_nan=False) + "\n"
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / "registry.json"
        trial.write_text(text, encoding="utf-8")
        Registry.load(trial)
    return text


def _row(entry: RegistryEntry) -> dict[str, Any]:
    row = dataclasses.asdict(entry)
    row["training_data"] = [
        {"home": source.home, "from": source.from_, "to": source.to, "attribution": source.attribution}
        for source in entry.training_data
    ]
    if entry.engine is Engine.TORCH:
        # Registries without another engine stay readable for those who do not know the fields.
        del row["engine"], row["engine_evidence"]
    return row


def _read_strict_json(path: Path) -> Any:
    def refuse_constant(name: str) -> float:
        raise RegistryError(f"{path}: {name} is not JSON; a number must be finite")

    def finite_float(digits: str) -> float:
        # 1e999 is valid JSON and reads as infinity.
        value = float(digits)
        return value if math.isfinite(value) else refuse_constant(digits)

    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise RegistryError(f"{path}: the key {key!r} is given twice in one object")
            result[key] = value
        return result

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RegistryError(f"{path}: cannot be read: {error}") from error
    try:
        return json.loads(
            text,
            parse_constant=refuse_constant,
            parse_float=finite_float,
            object_pairs_hook=refuse_duplicates,
        )
    except (json.JSONDecodeError, RecursionError) as error:
        raise RegistryError(f"{path}: is not JSON: {error}") from error


def _check_schema(document: Any, path: Path) -> None:
    schema = json.loads(SCHEMA_PATH.read_text(encoding="utf-8"))
    # Checked against the branch the file uses: a failed `oneOf` would only say that neither branch fits.
    branch = {"$defs": schema["$defs"], **schema["oneOf"][1 if isinstance(document, list) else 0]}
    errors = jsonschema.Draft202012Validator(branch).iter_errors(document)
    error = jsonschema.exceptions.best_match(errors)
    if error is not None:
        pointer = "".join(f"/{part}" for part in error.absolute_path) or "/"
        raise RegistryError(f"{path}: at {pointer}: {error.message}")


def _entry(row: Mapping[str, Any], pointer: str, path: Path) -> RegistryEntry:
    window = int(row["input_window_size"])
    values = dict(row)
    values["preprocessing"] = Preprocessing(**row["preprocessing"])
    values["training_data"] = tuple(
        TrainingSource(source["home"], source["from"], source["to"], source["attribution"])
        for source in row.get("training_data", [])
    )
    values["engine"] = Engine(row.get("engine", Engine.TORCH))
    values.setdefault("sample_period_s", DEFAULT_SAMPLE_PERIOD_S)
    values.setdefault("input_unit", "W")
    values.setdefault("output_unit", "W")
    values.setdefault("output_sample_index", window - 1)
    values.setdefault("provisional_sample_index", values["output_sample_index"])
    known = APPLIANCES.get(row["appliance_id"])
    if known is not None:
        values.setdefault("max_power_w", known.max_power_w)
        values.setdefault("on_threshold_w", known.on_threshold_w)
    entry = RegistryEntry(**values)
    for name in ("output_sample_index", "provisional_sample_index"):
        if getattr(entry, name) >= window:
            raise RegistryError(
                f"{path}: at {pointer}/{name}: {getattr(entry, name)} is outside the window of {window} samples"
            )
    for name in ("artifact_path", "golden_path", "card_path"):
        target = getattr(entry, name)
        if target is not None and (PurePosixPath(target).is_absolute() or ".." in PurePosixPath(target).parts):
            raise RegistryError(f"{path}: at {pointer}/{name}: {target!r} leads outside the registry's folder")
    return entry


def _check_together(entries: tuple[RegistryEntry, ...], path: Path) -> None:
    seen: set[tuple[str, str]] = set()
    active: dict[str, str] = {}
    for entry in entries:
        key = (entry.appliance_id, entry.model_version)
        if key in seen:
            raise RegistryError(f"{path}: appliance {key[0]!r} has version {key[1]!r} twice")
        seen.add(key)
        if entry.is_active:
            if entry.appliance_id in active:
                raise RegistryError(
                    f"{path}: appliance {entry.appliance_id!r} has two active versions, "
                    f"{active[entry.appliance_id]} and {entry.model_version}"
                )
            active[entry.appliance_id] = entry.model_version
