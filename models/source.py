"""How the registry and its artifacts come to this node, wherever they lie: a path, or file, http(s), s3 and gs URIs.

Owns the node's cache of a remote registry. `<cache>/<key>/registry.json` is what was read last, for people to look at;
`<cache>/<key>/whole/` holds the files of one artifact, put there by one rename after its sha256 was checked. Nothing in
it is ever changed, and nothing is evicted: a folder may be deleted whenever no replica is loading.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.callbacks import Callback

from models.files import write_atomically
from models.place import HTTP, RemoteFolder, SourceError, place_of
from models.refusal import ArtifactRefusal, ArtifactRefused
from models.registry import PACKAGED_REGISTRY, Registry, RegistryEntry, RegistryError

MAX_REGISTRY_BYTES = 16 * 2**20
"""A version takes about 45 KB with its figures; this is hundreds of them."""
MAX_ARTIFACT_BYTES = 2 * 2**30
"""The loader holds the file and its tensors in memory at once; ours have 4 MB."""
MAX_GOLDEN_BYTES = 64 * 2**20
"""A few windows and what the model said of them; ours have 13 KB."""

STALL_TIMEOUT_S = 30.0
"""HTTP servers: to connect, and between two pieces of an answer. s3fs has 5 s and 15 s, with retries."""
SLOWEST_BYTES_PER_S = 4 * 2**20
"""A file may take `STALL_TIMEOUT_S` and the time of its kind's largest at this rate: 34 s, 46 s and 542 s."""
LOCK_TIMEOUT_S = 600.0
"""More than a process can take for an artifact and its golden outputs, so that only a stopped one is given up on."""
LOCK_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class RegistrySource:
    """Where the registry is; raises `SourceError` for a URI that cannot be one.

    `uri`: path or URI of a registry.json, or of its folder; a URI that does not end in .json is a folder's. None: the
    packaged one. A query (a signature for the whole folder) goes with every request. Credentials of buckets come from
    the environment. `cache`: this node's folder for remote ones, made when needed; its files stay on this node.
    """

    uri: str | None = field(repr=False)
    cache: Path | None = None

    def __post_init__(self) -> None:
        if isinstance(self._place(), RemoteFolder) and self.cache is None:
            raise SourceError("a remote registry needs a cache folder on this node")

    def registry(self) -> Registry:
        """Reads and checks it anew. Raises `RegistryError`: an unreachable registry is never one read earlier."""
        place = self._place()
        if isinstance(place, Path):
            return Registry.load(place)
        with self._cache_folder(place.shown_registry) as folder, tempfile.TemporaryDirectory(dir=folder) as work:
            read = Path(work) / PACKAGED_REGISTRY.name
            if not _download(place.scheme, place.registry_url, read, MAX_REGISTRY_BYTES, place.shown_registry):
                raise SourceError(f"there is no {place.shown_registry}")
            try:
                registry = Registry.load(read)
            except RegistryError as error:
                # Where people can look at it, not the name of the temporary file.
                raise RegistryError(str(error).replace(str(read), place.shown_registry)) from None
            write_atomically(folder / PACKAGED_REGISTRY.name, read.read_bytes())
            return dataclasses.replace(registry, root=folder.resolve())

    def fetch(self, entry: RegistryEntry, registry: Registry) -> Path:
        """The folder that holds the entry's artifact and golden outputs, for `load_verified(entry, folder)`.

        `registry` is what `registry` gave. Of any number of processes that ask at once, one downloads. Raises
        `ArtifactRefused` for files that are not there or not the ones the entry means, `SourceError` otherwise.
        """
        place = self._place()
        if isinstance(place, Path):
            return registry.root
        # The paths are part of the key, so that entries that share an artifact do not take turns in one folder. So is
        # the registry: golden outputs have no hash that would tell those of another one.
        paths = (entry.artifact_path, entry.golden_path or "")
        with self._cache_folder(place.shown_folder, entry.artifact_sha256, *paths) as folder, _alone(folder):
            whole, fetching = folder / "whole", folder / "fetching"
            if _is_whole(entry, whole):
                return whole
            # Of a process that was killed, or corrupt since.
            for leftover in (whole, fetching):
                shutil.rmtree(leftover, ignore_errors=True)
            try:
                _fetch_artifact(entry, place, fetching)
                os.rename(fetching, whole)
            finally:
                shutil.rmtree(fetching, ignore_errors=True)
            return whole

    def _place(self) -> Path | RemoteFolder:
        return PACKAGED_REGISTRY if self.uri is None else place_of(self.uri)

    @contextmanager
    def _cache_folder(self, *identity: str) -> Iterator[Path]:
        """The folder of the cache that belongs to `identity`. What its disk refuses inside is a `SourceError`."""
        assert self.cache is not None  # noqa: S101 - checked when this was made
        folder = self.cache / hashlib.sha256("\0".join(identity).encode()).hexdigest()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            yield folder
        except OSError as error:
            raise SourceError(f"the cache folder {self.cache} cannot be used: {error.strerror or error}") from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time in `folder`; the lock goes with the process, however that ends."""
    # The folder itself is locked, so that there is no lock file to take away.
    descriptor = os.open(folder, os.O_RDONLY)
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise SourceError(f"another process has kept {folder} locked for {LOCK_TIMEOUT_S:g} s") from None
            time.sleep(LOCK_POLL_S)
        yield
    finally:
        os.close(descriptor)


def _fetch_artifact(entry: RegistryEntry, place: RemoteFolder, folder: Path) -> None:
    """The entry's files into `folder`, checked, and on the disk whatever happens next."""
    missing = ArtifactRefusal.ARTIFACT_MISSING
    digest = _sha256(_fetch_file(place, entry.artifact_path, folder, MAX_ARTIFACT_BYTES, missing))
    if digest != entry.artifact_sha256:
        raise ArtifactRefused(
            ArtifactRefusal.SHA256_MISMATCH,
            f"{place.shown_folder}/{entry.artifact_path} has sha256 {digest}, "
            f"the registry says {entry.artifact_sha256}",
        )
    if entry.golden_path is not None:
        missing = ArtifactRefusal.GOLDEN_MISSING
        if not _is_whole_npz(_fetch_file(place, entry.golden_path, folder, MAX_GOLDEN_BYTES, missing)):
            detail = f"{place.shown_folder}/{entry.golden_path} is not a whole .npz file"
            raise ArtifactRefused(ArtifactRefusal.GOLDEN_MISMATCH, detail)


def _fetch_file(place: RemoteFolder, relative: str, folder: Path, max_bytes: int, missing: ArtifactRefusal) -> Path:
    # As the registry does, and the loader again: nothing is written outside the cache, whoever made the entry.
    if PurePosixPath(relative).is_absolute() or ".." in PurePosixPath(relative).parts:
        raise ArtifactRefused(missing, f"{relative!r} leads outside the registry's folder")
    target, shown = folder / relative, f"{place.shown_folder}/{relative}"
    target.parent.mkdir(parents=True, exist_ok=True)
    if not _download(place.scheme, place.url(relative), target, max_bytes, shown):
        raise ArtifactRefused(missing, f"there is no {shown}")
    with target.open("rb") as file:
        os.fsync(file.fileno())
    return target


def _is_whole(entry: RegistryEntry, folder: Path) -> bool:
    """Whether the files that were put there are there and unchanged."""
    try:
        if _sha256(folder / entry.artifact_path) != entry.artifact_sha256:
            return False
        return entry.golden_path is None or _is_whole_npz(folder / entry.golden_path)
    except OSError:
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_whole_npz(path: Path) -> bool:
    """The registry has no hash of golden outputs, but a .npz is a zip file: its end lists CRCs of all that is in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile):
        return False


def _download(scheme: str, url: str, target: Path, max_bytes: int, shown: str) -> bool:
    """Whether there is such a file; if so, it is `target` now. Raises `SourceError`, which says `shown`, not `url`."""

    def refuse_more(size: int | None, received: int) -> None:
        if max(size or 0, received) > max_bytes:
            raise SourceError(f"{shown} has more than {max_bytes} bytes, the most that is fetched for its kind")

    callback = Callback(hooks={"size": refuse_more})
    timeout_s = STALL_TIMEOUT_S + max_bytes / SLOWEST_BYTES_PER_S
    try:
        filesystem = _filesystem(scheme)
        filesystem.get_file(url, str(target), callback=callback, timeout=timeout_s)
    except FileNotFoundError:
        return False
    except SourceError:
        raise
    except ImportError:
        raise SourceError(f"{scheme}:// needs what is not installed: pip install 'nilm-serve[{scheme}]'") from None
    # Each library behind fsspec has exceptions of its own, and it may not be installed. Their texts, and so the chain
    # of causes, may hold the whole URL.
    except Exception as error:  # noqa: BLE001
        raise SourceError(f"{shown} cannot be fetched: {_why(error)}") from None
    return True


def _filesystem(scheme: str) -> Any:
    """A new one every time: fsspec would hand out one whose credentials or connections are of another day."""
    options = {}
    if scheme in HTTP:
        import aiohttp  # noqa: PLC0415 - only who reads from a web server needs it

        timeout = aiohttp.ClientTimeout(sock_connect=STALL_TIMEOUT_S, sock_read=STALL_TIMEOUT_S)
        options["client_kwargs"] = {"timeout": timeout}
    return fsspec.filesystem(scheme, skip_instance_cache=True, **options)


def _why(error: Exception) -> str:
    """What went wrong, without the error's own text."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return f"HTTP status {status}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__
