"""`RegistrySource`: a registry from anywhere, fetched once a node; half a file, or a wrong one, is never placed."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import pickle
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from models import source as source_module
from models.loader import GoldenCheck, load_verified
from models.place import SourceError
from models.refusal import ArtifactRefusal, ArtifactRefused
from models.registry import PACKAGED_REGISTRY, Registry, RegistryError
from models.source import RegistrySource
from tests.unit.models.file_server import FileServer, changed, cut_off, cut_off_unannounced, drip, hang, serving

ROOT = Path(__file__).parents[3]
ARTIFACT = "/artifacts/kettle-cnnt/0.1.0/model.safetensors"
GOLDEN = "/artifacts/kettle-cnnt/0.1.0/golden.npz"
FETCH = """
import sys
from pathlib import Path
from models.source import RegistrySource

source = RegistrySource(sys.argv[1], Path(sys.argv[2]))
registry = source.registry()
print(source.fetch(registry.entries[0], registry))
"""


@pytest.fixture
def server(published) -> Iterator[FileServer]:
    with serving(published.root) as server:
        yield server


@pytest.fixture
def cache(tmp_path) -> Path:
    (tmp_path / "node").mkdir()
    return tmp_path / "node" / "cache"


def fetch(source: RegistrySource) -> Path:
    registry = source.registry()
    return source.fetch(registry.entries[0], registry)


def refusal(source: RegistrySource) -> ArtifactRefused:
    with pytest.raises(ArtifactRefused) as refused:
        fetch(source)
    return refused.value


def placed(cache: Path) -> set[str]:
    """The files of the cache, but for copies of registry.json; folders have no meaning."""
    return {file.name for file in cache.rglob("*") if file.is_file()} - {"registry.json"}


def start_fetch(uri: str, cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, uri, str(cache)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_packaged_registry_is_the_default():
    source = RegistrySource(None)
    assert source.registry() == Registry.load()
    assert fetch(source) == PACKAGED_REGISTRY.parent


@pytest.mark.parametrize("form", ["{}", "{}/registry.json", "file://{}", "file://localhost{}/registry.json"])
def test_on_this_machine_the_files_are_used_where_they_are(published, cache, form, tmp_path):
    folder = tmp_path / "with space"
    folder.symlink_to(published.root, target_is_directory=True)
    uri = form.format(str(folder).replace(" ", "%20") if form.startswith("file") else folder)
    source = RegistrySource(uri, cache)
    assert fetch(source) == source.registry().root == published.root
    assert not cache.exists()


def test_a_local_registry_that_is_missing(tmp_path):
    with pytest.raises(RegistryError, match="cannot be read"):
        RegistrySource(str(tmp_path / "nowhere")).registry()


@pytest.mark.parametrize("name", ["", "/", "/registry.json"])
def test_from_a_web_server_into_a_model_that_serves(server, cache, name):
    source = RegistrySource(server.url + name, cache)
    registry = source.registry()
    (entry,) = registry.entries
    folder = source.fetch(entry, registry)
    assert load_verified(entry, folder).golden is GoldenCheck.PASSED
    assert cache in folder.parents
    assert cache in registry.root.parents
    assert Registry.load(registry.root / "registry.json").entries == registry.entries
    assert placed(cache) == {"model.safetensors", "golden.npz"}
    # The registry may have changed, so it is read again; an artifact cannot have.
    assert fetch(source) == folder
    assert server.gets == {"/registry.json": 2, ARTIFACT: 1, GOLDEN: 1}


def test_an_entry_of_old_has_no_golden_outputs(published, cache):
    published.entry["golden_path"] = None
    published.write()
    with serving(published.root) as server:
        source = RegistrySource(server.url, cache)
        registry = source.registry()
        load_verified(registry.entries[0], source.fetch(registry.entries[0], registry))
        assert server.gets == {"/registry.json": 1, ARTIFACT: 1}


def test_a_name_that_is_encoded_in_the_uri(published, server, cache):
    published.path.rename(published.root / "the 1st registry.json")
    assert RegistrySource(f"{server.url}/the%201st%20registry.json", cache).registry().entries


def test_a_registry_that_changed_does_not_mix_files(published, server, cache):
    source = RegistrySource(server.url, cache)
    before = source.registry()
    old = source.fetch(before.entries[0], before)
    published.artifact.write_bytes(b"another model")
    published.rehash()
    after = source.registry()
    new = source.fetch(after.entries[0], after)
    assert (new / ARTIFACT.lstrip("/")).read_bytes() == b"another model"
    assert load_verified(before.entries[0], old).golden is GoldenCheck.PASSED
    # The old one is there although its source is gone.
    assert source.fetch(before.entries[0], before) == old
    assert server.gets[ARTIFACT] == 2


def test_two_versions_with_one_artifact_do_not_take_turns(published, server, cache):
    other = published.entry | {"model_version": "0.2.0", "is_active": False}
    other["golden_path"] = "artifacts/kettle-cnnt/0.2.0/golden.npz"
    (published.root / other["golden_path"]).parent.mkdir()
    (published.root / other["golden_path"]).write_bytes((published.root / GOLDEN.lstrip("/")).read_bytes())
    published.path.write_text(json.dumps({"models": [published.entry, other]}), encoding="utf-8")
    source = RegistrySource(server.url, cache)
    registry = source.registry()
    for entry in registry.entries * 2:
        assert load_verified(entry, source.fetch(entry, registry)).golden is GoldenCheck.PASSED
    assert server.gets[ARTIFACT] == 2


def test_two_registries_on_one_node_keep_their_golden_outputs_apart(published, server, cache):
    first = fetch(RegistrySource(server.url, cache))
    (published.root / GOLDEN.lstrip("/")).write_bytes(b"PK\x05\x06" + bytes(18))
    with serving(published.root) as other:
        assert fetch(RegistrySource(other.url, cache)) != first


@pytest.mark.parametrize("file", [ARTIFACT, GOLDEN])
@pytest.mark.parametrize("damage", ["flipped", "emptied", "gone"])
def test_what_is_damaged_on_this_node_is_fetched_anew(server, cache, file, damage):
    source = RegistrySource(server.url, cache)
    path = fetch(source) / file.lstrip("/")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flipped" else b"")
    registry = source.registry()
    folder = source.fetch(registry.entries[0], registry)
    assert load_verified(registry.entries[0], folder).golden is GoldenCheck.PASSED
    assert server.gets[file] == 2


@pytest.mark.parametrize(
    ("file", "fault", "reason"),
    [
        (ARTIFACT, 404, ArtifactRefusal.ARTIFACT_MISSING),
        (ARTIFACT, changed, ArtifactRefusal.SHA256_MISMATCH),
        (ARTIFACT, cut_off_unannounced, ArtifactRefusal.SHA256_MISMATCH),
        (GOLDEN, 404, ArtifactRefusal.GOLDEN_MISSING),
        (GOLDEN, cut_off_unannounced, ArtifactRefusal.GOLDEN_MISMATCH),
    ],
)
def test_a_file_that_is_not_the_one_the_entry_means(server, cache, file, fault, reason):
    server.faults[file] = fault
    source = RegistrySource(server.url, cache)
    refused = refusal(source)
    assert refused.reason is reason
    assert f"{server.url}{file}" in refused.detail
    assert placed(cache) == set()
    server.faults.clear()
    assert fetch(source).is_dir()


@pytest.mark.parametrize("file", ["/registry.json", ARTIFACT, GOLDEN])
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (403, "HTTP status 403"),
        (503, "HTTP status 503"),
        (cut_off, "ClientPayloadError"),
        (hang, "no answer in time"),
        (drip, "no answer in time"),
    ],
)
def test_a_server_that_fails_is_an_error_and_nothing_is_placed(server, cache, file, fault, message, monkeypatch):
    monkeypatch.setattr(source_module, "STALL_TIMEOUT_S", 0.4)
    if fault is drip:
        monkeypatch.setattr(source_module, "SLOWEST_BYTES_PER_S", 2**32)
    server.faults[file] = fault
    source = RegistrySource(server.url, cache)
    started = time.monotonic()
    with pytest.raises(SourceError, match=f"{server.url}{file} cannot be fetched: {message}"):
        fetch(source)
    assert time.monotonic() - started < 20
    assert placed(cache) == set()
    monkeypatch.undo()
    server.faults.clear()
    assert fetch(source).is_dir()


def test_a_registry_that_is_unreachable_is_not_the_one_read_before(server, cache):
    source = RegistrySource(server.url, cache)
    assert source.registry().entries
    server.faults["/registry.json"] = 404
    with pytest.raises(SourceError, match=rf"there is no {server.url}/registry\.json"):
        source.registry()
    with serving(Path("/nowhere")) as gone:
        pass
    with pytest.raises(SourceError, match="cannot be fetched: Connect call failed"):
        RegistrySource(gone.url, cache).registry()


def test_a_page_instead_of_a_registry_replaces_nothing(published, server, cache):
    source = RegistrySource(server.url, cache)
    good = source.registry()
    published.path.write_text("<html>please log in</html>", encoding="utf-8")
    with pytest.raises(RegistryError, match=rf"^{server.url}/registry\.json: is not JSON"):
        source.registry()
    assert Registry.load(good.root / "registry.json").entries == good.entries


@pytest.mark.parametrize(
    ("file", "limit"),
    [
        ("/registry.json", "MAX_REGISTRY_BYTES"),
        (ARTIFACT, "MAX_ARTIFACT_BYTES"),
        (GOLDEN, "MAX_GOLDEN_BYTES"),
    ],
)
def test_more_bytes_than_are_fetched(published, server, cache, file, limit, monkeypatch):
    size = (published.root / file.lstrip("/")).stat().st_size
    monkeypatch.setattr(source_module, limit, size - 1)
    source = RegistrySource(server.url, cache)
    for fault in (None, lambda handler, content: cut_off_unannounced(handler, 2 * content)):
        server.faults[file] = fault
        with pytest.raises(SourceError, match=f"has more than {size - 1} bytes"):
            fetch(source)
        assert placed(cache) == set()
    server.faults.clear()
    monkeypatch.setattr(source_module, limit, size)
    assert fetch(source).is_dir()


def test_a_cache_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SourceError, match=r"cache folder .*file cannot be used: Not a directory"):
        RegistrySource(server.url, tmp_path / "file").registry()


def test_two_processes_at_once_download_once(server, cache):
    both_have_read = threading.Event()

    def slow(handler, content: bytes) -> None:
        # Until the other one has the registry too, and then has had the time to ask for the artifact itself.
        while server.gets["/registry.json"] < 2:
            time.sleep(0.02)
        both_have_read.set()
        time.sleep(1.0)
        handler.answer(content)

    server.faults[ARTIFACT] = slow
    processes = [start_fetch(server.url, cache) for _ in range(2)]
    replies = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], replies
    assert both_have_read.is_set()
    assert replies[0][0] == replies[1][0]
    assert server.gets == {"/registry.json": 2, ARTIFACT: 1, GOLDEN: 1}


def test_a_process_killed_half_way_leaves_nothing_that_loads_and_the_one_that_waits_takes_over(server, cache):
    half = threading.Event()

    def half_then_nothing(handler, content: bytes) -> None:
        handler.answer(content[: len(content) // 2], length=len(content))
        del server.faults[ARTIFACT]
        half.set()
        server.closing.wait(60)

    server.faults[ARTIFACT] = half_then_nothing
    killed = start_fetch(server.url, cache)
    with ThreadPoolExecutor() as pool:
        assert half.wait(60)
        while not placed(cache):  # the bytes are on their way
            time.sleep(0.02)
        waits = pool.submit(fetch, RegistrySource(server.url, cache))
        time.sleep(0.5)
        assert not waits.done()
        killed.kill()
        killed.wait()
        killed.communicate()
        folder = waits.result(timeout=60)
    registry = RegistrySource(server.url, cache).registry()
    assert load_verified(registry.entries[0], folder).golden is GoldenCheck.PASSED
    # What the killed one had is gone.
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert server.gets[ARTIFACT] == 2


def test_what_a_killed_process_left_is_neither_used_nor_kept(server, cache):
    source = RegistrySource(server.url, cache)
    whole = fetch(source)
    # As after a kill between the two files: the artifact is right, the golden outputs are not there yet.
    left = whole.rename(whole.with_name("fetching"))
    (left / GOLDEN.lstrip("/")).rename(left / "stray")
    assert fetch(source) == whole
    assert placed(cache) == {"model.safetensors", "golden.npz"}
    assert server.gets[ARTIFACT] == 2
    assert not left.exists()


def test_a_process_that_was_stopped_is_not_waited_for_for_ever(server, cache, monkeypatch):
    server.faults[ARTIFACT] = hang
    monkeypatch.setattr(source_module, "LOCK_TIMEOUT_S", 0.3)
    stopped = start_fetch(server.url, cache)
    try:
        while not server.gets[ARTIFACT]:
            time.sleep(0.02)
        with pytest.raises(SourceError, match=r"another process has kept .* locked for 0\.3 s"):
            fetch(RegistrySource(server.url, cache))
    finally:
        stopped.kill()
        stopped.communicate()


@pytest.mark.parametrize("field", ["artifact_path", "golden_path"])
@pytest.mark.parametrize("path", ["{}/outside", "../../../outside", "a/../../../../outside"])
def test_an_entry_that_leads_outside_writes_nothing_there(server, cache, field, path):
    source = RegistrySource(server.url, cache)
    registry = source.registry()
    hostile = dataclasses.replace(registry.entries[0], **{field: path.format(cache.parent)})
    with pytest.raises(ArtifactRefused, match="leads outside"):
        source.fetch(hostile, registry)
    assert placed(cache) == set()
    assert {file.name for file in cache.parent.iterdir()} == {"cache"}


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "  ",
        "/models\nHost: secret",
        "https://host/secret\r\nX: y",
        "https:///secret",
        "https://user:secret",
        "https://user:sec/ret@host/",
        "https://user:12/secret@host/",
        "https://user:12#secret@host/",
        "https://[secret/registry.json",
        "file://elsewhere/secret",
        "file:///models?secret",
        "memory://secret",
        "local://secret",
        "sftp://user:secret@host/",
        "github://secret:models@main/",
        "simplecache::s3://secret/registry.json",
        "zip://registry.json::https://host/a.zip?secret",
        "s3://key:secret@bucket/models",
        "s3://secret@bucket/models",
        "s3://bucket/models?versionId=secret",
        "gs://bucket/models#secret",
        "s3://",
    ],
)
def test_an_address_that_is_no_place_is_refused_at_once_and_not_repeated(uri, cache):
    with pytest.raises(SourceError) as refused:
        RegistrySource(uri, cache)
    assert "secret" not in str(refused.value)
    assert "ret@" not in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_a_remote_registry_needs_a_cache():
    with pytest.raises(SourceError, match="needs a cache folder"):
        RegistrySource("https://host/models")


@pytest.mark.parametrize(("scheme", "module"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_a_library_that_is_not_installed_is_named_by_its_extra(cache, scheme, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    # An earlier test may have used it.
    monkeypatch.delitem(importlib.import_module("fsspec.registry")._registry, scheme, raising=False)
    with pytest.raises(SourceError, match=rf"^{scheme}:// needs .*: pip install 'nilm-serve\[{scheme}\]'$"):
        RegistrySource(f"{scheme}://bucket/models", cache).registry()


def test_credentials_of_the_uri_go_with_every_request_and_into_no_message(server, cache, monkeypatch):
    uri = f"http://bob:hush@{server.host}/?sig=quiet%2Bly"
    source = RegistrySource(uri, cache)
    said = [repr(source), str(fetch(source)), str(source.registry())]
    assert {query for query, _ in server.seen} == {"sig=quiet%2Bly"}
    assert {authorization for _, authorization in server.seen} == {"Basic Ym9iOmh1c2g="}
    monkeypatch.setattr(source_module, "STALL_TIMEOUT_S", 0.3)
    for file in ("/registry.json", ARTIFACT, GOLDEN):
        for fault in (404, 403, 500, hang, cut_off, cut_off_unannounced):
            server.faults = {file: fault}
            # Another cache, so that nothing is there yet.
            hidden = RegistrySource(uri, cache / hashlib.sha256(f"{file}{fault}".encode()).hexdigest())
            with pytest.raises((RegistryError, ArtifactRefused)) as failed:
                fetch(hidden)
            assert server.host in str(failed.value)
            said += [str(failed.value), *traceback.format_exception(failed.value)]
            assert str(pickle.loads(pickle.dumps(failed.value))) == str(failed.value)  # noqa: S301
    server.server_close()
    with pytest.raises(SourceError) as failed:
        source.registry()
    said += traceback.format_exception(failed.value)
    assert not [text for text in said if "hush" in text or "quiet" in text or "bob" in text]


def test_from_a_bucket(published, cache, monkeypatch):
    pytest.importorskip("s3fs", reason="needs nilm-serve[dev]")
    moto_server = pytest.importorskip("moto.server", reason="needs nilm-serve[dev]")
    boto3 = pytest.importorskip("boto3", reason="needs nilm-serve[dev]")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "hush",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        bucket = boto3.client("s3")
        bucket.create_bucket(Bucket="models")
        for file in published.root.rglob("*"):
            if file.is_file():
                bucket.upload_file(str(file), "models", f"live/{file.relative_to(published.root)}")
        source = RegistrySource("s3://models/live", cache)
        registry = source.registry()
        folder = source.fetch(registry.entries[0], registry)
        assert load_verified(registry.entries[0], folder).golden is GoldenCheck.PASSED

        bucket.delete_object(Bucket="models", Key=f"live{GOLDEN}")
        refused = refusal(RegistrySource("s3://models/live", cache.with_name("other")))
        assert str(refused) == f"golden_missing: there is no s3://models/live{GOLDEN}"
        for uri in ("s3://models/nothing", "s3://nobody/live"):
            with pytest.raises(SourceError, match=rf"there is no {uri}/registry\.json"):
                RegistrySource(uri, cache).registry()
    finally:
        server.stop()
