"""What the address of a registry means: a file on this machine, or a folder that a web server or a bucket has.

Refuses addresses that are more than a place. Never repeats the user, password or query of a URI: they may be secrets.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from models.registry import PACKAGED_REGISTRY, RegistryError

HTTP = ("http", "https")
BUCKETS = ("s3", "gs")


class SourceError(RegistryError):
    """The registry or a file of it cannot be had: a bad URI, or nothing that answers. The message has no secret."""


@dataclass(frozen=True, slots=True)
class RemoteFolder:
    """A registry that is not on this machine's disk. What is `shown` has no secret in it."""

    scheme: str
    folder_url: str
    shown_folder: str
    file_name: str
    """As in the URI: percent-encoded in HTTP."""
    query: str

    @property
    def registry_url(self) -> str:
        return f"{self.folder_url}/{self.file_name}{self.query}"

    @property
    def shown_registry(self) -> str:
        return f"{self.shown_folder}/{self.file_name}"

    def url(self, relative: str) -> str:
        # The registry's schema allows no character in a path that would mean something in a URL.
        return f"{self.folder_url}/{relative}{self.query}"


def place_of(uri: str) -> Path | RemoteFolder:
    """Raises `SourceError`, which repeats no part of a URI that was not understood: it may be a secret."""
    if not uri.strip() or not uri.isprintable():
        raise SourceError("the registry's address is empty or holds a control character")
    if "://" not in uri:
        return _registry_file(Path(uri))
    try:
        parts = urlsplit(uri)
        _ = parts.port  # raises where it is no number
    except ValueError:
        raise SourceError("the registry's address is not a valid URI") from None
    # Both are what a password with "/" or "#" in it leaves in the rest of the URI, which would be shown.
    if parts.fragment or (parts.scheme in HTTP and "@" in parts.path):
        raise SourceError("the registry's URI has # or @ after its host; write %23 or %40 where it belongs to a name")
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and not parts.query:
        return _registry_file(Path(unquote(parts.path)))
    if parts.scheme not in HTTP + BUCKETS:
        raise SourceError("a registry lies at a path or a URI that starts with file:///, http(s)://, s3:// or gs://")
    if not parts.hostname:
        raise SourceError(f"the registry's {parts.scheme} URI names no host or bucket")
    host = parts.netloc.rpartition("@")[2]
    if parts.scheme in BUCKETS and ("@" in parts.netloc or ":" in parts.netloc or parts.query):
        raise SourceError(f"a registry's {parts.scheme} URI is bucket and name only: credentials are the environment's")
    folder, _, name = parts.path.rpartition("/") if parts.path.endswith(".json") else (parts.path, "", "")
    folder = folder.rstrip("/")
    return RemoteFolder(
        scheme=parts.scheme,
        folder_url=f"{parts.scheme}://{parts.netloc}{folder}",
        shown_folder=f"{parts.scheme}://{host}{folder}",
        file_name=name or PACKAGED_REGISTRY.name,
        query=f"?{parts.query}" if parts.query else "",
    )


def _registry_file(path: Path) -> Path:
    return path / PACKAGED_REGISTRY.name if path.is_dir() else path
