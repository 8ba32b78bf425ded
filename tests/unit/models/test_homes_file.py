"""`homes.yaml` is parsed strictly: one sentence says where and what is wrong."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from models.training.homes_file import Recording, RecordingError, read_homes_file
from models.training.recordings import known_homes, load_home
from tests.unit.models.recording_files import frame

HOME: dict[str, Any] = {
    "name": "my-house",
    "file": "house.csv",
    "unit": "W",
    "columns": {"mains": "mains", "kettle": "kettle"},
    "attribution": "My own house, private",
}


def write(folder: Path, text: str) -> Path:
    path = folder / "homes.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def declare(folder: Path, **changes: Any) -> Path:
    """One home, with changed keys; None takes a key away."""
    home = {key: value for key, value in (copy.deepcopy(HOME) | changes).items() if value is not None}
    return write(folder, yaml.safe_dump({"homes": [home]}, sort_keys=False))


def test_a_declared_home_is_read(tmp_path: Path) -> None:
    declare(tmp_path, title="My\n house", timezone="Europe/London", time_column="time")
    recordings = known_homes(tmp_path)
    assert recordings == {
        "my-house": Recording(
            home="My house",
            file_name="house.csv",
            attribution="My own house, private",
            home_id="my-house",
            unit="W",
            timezone="Europe/London",
            time_column="time",
            columns=(("mains", "mains"), ("kettle", "kettle")),
        )
    }
    frame().to_csv(tmp_path / "house.csv", index=False)
    home = load_home(tmp_path, recordings["my-house"])
    assert home.valid.all()
    assert home.recording.home == "My house"


def test_a_declaration_replaces_the_known_names(tmp_path: Path) -> None:
    (tmp_path / "REFIT_House2_1min.parquet").touch()
    declare(tmp_path)
    assert list(known_homes(tmp_path)) == ["my-house"]


def test_the_order_of_the_file_is_kept(tmp_path: Path) -> None:
    homes = [HOME | {"name": name} for name in ("b", "a", "c")]
    assert list(read_homes_file(write(tmp_path, yaml.safe_dump({"homes": homes})))) == ["b", "a", "c"]


@pytest.mark.parametrize("key", ["name", "file", "unit", "columns", "attribution"])
def test_required_keys_are_required(key: str, tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=rf"homes\[0\]\.{key}: Field required"):
        read_homes_file(declare(tmp_path, **{key: None}))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"titel": "x"}, "homes[0].titel: Extra inputs are not permitted"),
        ({"name": "My House"}, "homes[0].name"),
        ({"name": "my-house\n"}, "homes[0].name"),
        ({"name": 7}, "homes[0].name: Input should be a valid string"),
        ({"unit": "w"}, "homes[0].unit: Input should be 'W' or 'kW'"),
        ({"unit": "VA"}, "homes[0].unit"),
        ({"file": "/etc/passwd"}, "must be a file inside the data folder"),
        ({"file": "../house.csv"}, "must be a file inside the data folder"),
        ({"file": "a/../../house.csv"}, "must be a file inside the data folder"),
        ({"file": "..\\house.csv"}, "must be a file inside the data folder"),
        ({"file": ["house.csv"]}, "homes[0].file"),
        ({"timezone": "Europe/Londn"}, "'Europe/Londn' is not an IANA time zone"),
        ({"timezone": "../../etc/passwd"}, "is not an IANA time zone"),
        ({"timezone": "Europe"}, "is not an IANA time zone"),
        ({"columns": {"kettle": "k"}}, "columns must name the mains"),
        ({"columns": {"mains": "m", "kettel": "k"}}, "'kettel' is neither mains nor one of dishwasher"),
        ({"columns": {"mains": "m", "kettle": "m"}}, "the column 'm' is named twice"),
        ({"columns": {"mains": "m"}, "time_column": "m"}, "the column 'm' is named twice"),
        ({"columns": {"mains": ""}}, "homes[0].columns.mains"),
        ({"columns": ["mains"]}, "homes[0].columns"),
        ({"attribution": "  "}, "homes[0].attribution"),
    ],
)
def test_wrong_declarations_are_one_sentence(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(RecordingError) as refused:
        read_homes_file(declare(tmp_path, **changes))
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "one key, homes"),
        ("- my-house", "one key, homes"),
        ("homes: []", "at least 1 item"),
        ("homes: {}", "homes: Input should be a valid list"),
        ("home: []", "Field required (and 1 more)"),
        ("homes: [", "is not YAML"),
        ("homes: []\nhomes: []", "the key 'homes' stands twice"),
        ("homes: !!python/object/apply:os.getcwd []", "is not YAML"),
        ("[" * 3000, "is not YAML"),
        ("\x00", "is not YAML"),
        ("homes: 2014-99-99", "is not YAML"),
    ],
)
def test_what_is_not_such_a_file_is_refused(text: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(RecordingError) as refused:
        read_homes_file(write(tmp_path, text))
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_two_homes_cannot_share_a_name_or_a_title(tmp_path: Path) -> None:
    for other in (HOME, HOME | {"name": "other", "title": "my-house"}):
        with pytest.raises(RecordingError, match="two homes are named 'my-house'"):
            read_homes_file(write(tmp_path, yaml.safe_dump({"homes": [HOME, other]})))


def test_a_file_that_is_not_text_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "homes.yaml"
    with pytest.raises(RecordingError, match="cannot be read"):
        read_homes_file(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecordingError, match="not UTF-8"):
        read_homes_file(path)


YAML_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([*HOME, "title", "timezone", "time_column", "extra"]), YAML_VALUES)
def test_any_value_is_accepted_or_refused_in_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: object
) -> None:
    folder = tmp_path_factory.mktemp("data")
    try:
        (recording,) = read_homes_file(write(folder, yaml.safe_dump({"homes": [HOME | {key: value}]}))).values()
    except RecordingError as error:
        refused = str(error)
    else:
        assert (folder / recording.file_name).resolve().is_relative_to(folder.resolve())
        return
    assert "\n" not in refused
