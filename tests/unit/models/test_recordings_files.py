"""CSV, parquet and HDF5 give the same home; files that are broken or not what they say are refused in a sentence."""

from __future__ import annotations

from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pandas as pd
import pytest

from models.appliances import APPLIANCES
from models.signal import valid_mask
from models.training.data_report import Problem
from models.training.recordings import KNOWN_RECORDINGS, Home, RecordingError, inspect_home, known_homes, load_home
from tests.unit.models.recording_files import frame, inspect, recording

METERS = (("mains", "/building1/elec/meter1"), ("kettle", "/building1/elec/meter2"))


def numeric(rows: int = 120) -> pd.DataFrame:
    table = frame(rows=rows)
    return table.assign(mains=table["mains"].astype("float32"), kettle=table["kettle"].astype("float32"))


def meter(file: h5py.File, name: str, times: pd.Series, values: np.ndarray, **options: object) -> None:
    """A meter as pandas' `put(..., format="table")` leaves it, without its pickled attributes."""
    values = values.reshape(len(values), -1).astype("float32")
    rows = np.empty(len(values), dtype=[("index", "<i8"), ("values_block_0", "<f4", (values.shape[1],))])
    rows["index"] = pd.DatetimeIndex(times).as_unit("ns").asi8
    rows["values_block_0"] = values
    file.create_dataset(f"{name}/table", data=rows, chunks=True, **options)


def hdf5(path: Path, table: pd.DataFrame, **options: object) -> None:
    with h5py.File(path, "w") as file:
        for channel, name in METERS:
            meter(file, name, pd.to_datetime(table["time"]), table[channel].to_numpy(), **options)


def assert_same(home: Home, expected: Home) -> None:
    assert home.start == expected.start
    np.testing.assert_array_equal(home.aggregate_w, expected.aggregate_w)
    np.testing.assert_array_equal(home.valid, expected.valid)
    assert list(home.appliances_w) == list(expected.appliances_w)
    for name, power_w in home.appliances_w.items():
        np.testing.assert_array_equal(power_w, expected.appliances_w[name])


def test_every_format_gives_the_same_home(tmp_path: Path) -> None:
    table = numeric()
    expected, _ = inspect(tmp_path, table)
    assert expected.aggregate_w.dtype == np.float32

    table.to_parquet(tmp_path / "column.parquet")
    assert_same(load_home(tmp_path, recording("column.parquet", time_column="time")), expected)
    by_time = table.assign(time=pd.to_datetime(table["time"])).set_index("time")
    by_time.to_parquet(tmp_path / "index.parquet")
    assert_same(load_home(tmp_path, recording("index.parquet")), expected)
    assert_same(load_home(tmp_path, recording("index.parquet", time_column="time")), expected)
    hdf5(tmp_path / "home.h5", table)
    assert_same(load_home(tmp_path, recording("home.h5", columns=METERS)), expected)
    named = tuple((channel, f"{place}/table#1") for channel, place in METERS)
    assert_same(load_home(tmp_path, recording("home.h5", columns=named)), expected)


def test_a_csv_may_have_other_columns_any_order_and_a_byte_order_mark(tmp_path: Path) -> None:
    expected, _ = inspect(tmp_path, frame())
    table = frame().assign(note="a,b")[["kettle", "note", "mains", "time"]]
    table.to_csv(tmp_path / "house.csv", index=False, encoding="utf-8-sig")
    assert_same(load_home(tmp_path, recording(time_column="time")), expected)


@pytest.mark.parametrize("options", [hdf5plugin.Blosc(), hdf5plugin.BZip2()], ids=["blosc", "bzip2"])
def test_compressed_as_nilmtk_does(options: dict[str, object], tmp_path: Path) -> None:
    expected, _ = inspect(tmp_path, numeric())
    hdf5(tmp_path / "home.h5", numeric(), **options)
    assert_same(load_home(tmp_path, recording("home.h5", columns=METERS)), expected)


def test_meters_with_times_of_their_own_meet_on_the_minutes_of_the_mains(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "home.h5", "w") as file:
        mains_times = pd.Series(pd.date_range("2014-06-01 10:00:00", periods=600, freq="6s"))
        meter(file, METERS[0][1], mains_times, 200.0 + 5.0 * np.sin(np.arange(600)))
        # Begins ten minutes after the mains, ends ten after it, every 7 s: 1000 W in its sixth minute.
        kettle_times = pd.Series(pd.date_range("2014-06-01 10:10:03", periods=514, freq="7s"))
        kettle = np.where(kettle_times.dt.minute == 15, 1000.0, 0.0)
        meter(file, METERS[1][1], kettle_times, kettle)
    home, report = inspect_home(tmp_path, recording("home.h5", columns=METERS))
    assert len(home) == 60
    assert np.flatnonzero(home.appliances_w["kettle"]).tolist() == [15]
    assert home.appliances_w["kettle"][15] == 1000.0
    assert home.valid.tolist() == [False] * 10 + [True] * 50
    assert report.count(Problem.MINUTE_WITHOUT_APPLIANCE) == 10


def test_a_meter_with_two_columns_is_asked_for_by_number(tmp_path: Path) -> None:
    times = pd.to_datetime(frame()["time"])
    both = np.stack((np.full(120, 9.0), numeric()["mains"].to_numpy()), axis=1)
    with h5py.File(tmp_path / "home.h5", "w") as file:
        meter(file, "/m", times, both)

    def load(place: str) -> Home:
        return load_home(tmp_path, recording("home.h5", columns=(("mains", place),)))

    np.testing.assert_array_equal(load("/m#2").aggregate_w, numeric()["mains"].to_numpy())
    with pytest.raises(RecordingError, match="2 columns: write /m#1 to /m#2"):
        load("/m")
    for place in ("/m#0", "/m#3", "/m#x", "/m#-1"):
        with pytest.raises(RecordingError, match="has 2 columns, counted from 1"):
            load(place)


def test_a_meter_cannot_point_into_another_file(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    hdf5(tmp_path / "elsewhere" / "secret.h5", numeric())
    with h5py.File(tmp_path / "home.h5", "w") as file:
        file["linked"] = h5py.ExternalLink("elsewhere/secret.h5", "/building1")
        file["soft"] = h5py.SoftLink("/building1")
        file.create_dataset("plain", data=np.zeros(5))
    for place in ("/linked/elec/meter1", "/soft", "/plain", "/absent", "/", ""):
        with pytest.raises(RecordingError, match=r"home\.h5"):
            load_home(tmp_path, recording("home.h5", columns=(("mains", place),)))


def test_an_hdf5_file_needs_a_declaration(tmp_path: Path) -> None:
    hdf5(tmp_path / "home.h5", numeric())
    with pytest.raises(RecordingError, match=r"needs a homes\.yaml"):
        load_home(tmp_path, recording("home.h5", columns=()))


PARQUET = b"PAR1"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("house.csv", b"", "cannot be read as CSV"),
        ("house.csv", b"\n\n", "cannot be read as CSV"),
        ("house.csv", bytes(range(256)) * 40, "cannot be read as CSV"),
        ("house.csv", b"\x00" * 4096, "house.csv"),
        ("house.csv", b"time,mains,kettle\n2014-06-01 10:00,1,203.2,0,9\n", "cannot be read as CSV"),
        ("house.csv", b"time;mains;kettle\n2014-06-01 10:00;203,2;0\n", "has no column"),
        ("house.csv", b"mains,kettle\n200,0\n", "no time in its first column"),
        ("house.csv", b'time,mains,kettle\n2014-06-01 10:00,"1', "cannot be read as CSV"),
        ("house.parquet", b"", "cannot be read as parquet"),
        ("house.parquet", PARQUET + b"\x00" * 100, "cannot be read as parquet"),
        ("house.h5", b"", "cannot be read as HDF5"),
        ("house.h5", b"\x89HDF\r\n\x1a\n" + b"\x00" * 200, "cannot be read as HDF5"),
        ("house.xlsx", b"PK", "is none of .csv, .parquet"),
    ],
)
def test_hostile_files_are_refused_in_one_sentence(name: str, content: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecordingError) as refused:
        load_home(tmp_path, recording(name))
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["house.parquet", "house.h5"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.95])
def test_half_written_files_are_refused(name: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / name
    if name.endswith(".h5"):
        hdf5(path, numeric())
    else:
        numeric().to_parquet(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(RecordingError, match="cannot be read"):
        load_home(tmp_path, recording(name, time_column=None if name.endswith(".h5") else "time"))


def test_a_parquet_without_a_time_index_needs_its_time_column(tmp_path: Path) -> None:
    numeric().to_parquet(tmp_path / "house.parquet")
    with pytest.raises(RecordingError, match="declare its time_column"):
        load_home(tmp_path, recording("house.parquet"))


# DeviceScope: the files that are recognised without a declaration.


def devicescope(minutes: int = 300) -> pd.DataFrame:
    rng = np.random.default_rng(4)
    table = pd.DataFrame(
        {"Aggregate": rng.uniform(80, 400, minutes), "Kettle": 0.0, "Shower": 0.0},
        index=pd.date_range("2014-01-01 00:07", periods=minutes, freq="1min", name="Time"),
    ).astype("float32")
    table.iloc[50:60, 0] = 0.0
    table.iloc[100:190, 0] = 222.0
    table.iloc[200, 1] = np.nan
    return table.drop(index=table.index[240:260])


def as_before(table: pd.DataFrame) -> Home:
    """How recordings at one minute became homes when nothing else was read: the reference for the four files."""
    grid = pd.date_range(table.index[0], table.index[-1], freq="60s")
    table = table[~table.index.duplicated()].reindex(grid)
    aggregate_w = table["Aggregate"].to_numpy(dtype=np.float32)
    valid = valid_mask(aggregate_w, 60.0)
    appliances_w = {}
    for appliance in APPLIANCES.values():
        if appliance.column in table.columns:
            power_w = table[appliance.column].to_numpy(dtype=np.float32)
            valid &= np.isfinite(power_w)
            appliances_w[appliance.appliance_id] = np.nan_to_num(power_w, nan=0.0)
    return Home(KNOWN_RECORDINGS["refit-2"], grid[0], np.nan_to_num(aggregate_w, nan=0.0), valid, appliances_w)


def test_known_files_are_read_bit_for_bit_as_before_there_were_others(tmp_path: Path) -> None:
    table = devicescope()
    table.to_parquet(tmp_path / "REFIT_House2_1min.parquet")
    recordings = known_homes(tmp_path)
    assert list(recordings) == ["refit-2"]
    assert_same(load_home(tmp_path, recordings["refit-2"]), as_before(table))


def test_a_folder_without_homes_says_what_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"no homes\.yaml, nor any of UKDALE_House2_1min\.parquet"):
        known_homes(tmp_path)
    with pytest.raises(RecordingError, match="does not exist"):
        known_homes(tmp_path / "nowhere")
    with pytest.raises(RecordingError, match=r"has no REFIT_House2_1min\.parquet"):
        load_home(tmp_path, KNOWN_RECORDINGS["refit-2"])
