"""From a run folder to a registered version, and whether a version may be the active one.

Owns `registry.json` and `artifacts/` of a registry folder as far as they are written. A version never changes its
meaning: an existing one is refused, not replaced. Needs torch (to load what it registers) and nothing of training.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import zip_longest
from pathlib import Path

from models.card import EXAMPLE_DAY_NAME, RELIABILITY_NAME, SECTIONS, card
from models.figures import metrics_errors, obstacles
from models.files import write_atomically
from models.loader import load_verified
from models.refusal import ArtifactRefused
from models.registry import Registry, RegistryEntry, RegistryError, registry_text

REGISTRY_NAME = "registry.json"
CARD_NAME = "card.md"
PICTURES = (RELIABILITY_NAME, EXAMPLE_DAY_NAME)


class ReleaseRefused(Exception):
    """Nothing was registered and nothing changed; the message is for the user."""


def add(run_folder: Path, root: Path, version: str, active: bool = False) -> RegistryEntry:
    """Registers the run in `run_folder` as `version` in `<root>/registry.json`; `root` may not exist yet.

    The registry is written last: before that nothing points to the new files. `active` makes the appliance's other
    versions inactive, and is refused when `verify` refuses it. Raises `ReleaseRefused`.
    """
    try:
        return _add(run_folder, root, version, active)
    except (RegistryError, ArtifactRefused) as error:
        raise ReleaseRefused(str(error)) from error
    except OSError as error:
        raise ReleaseRefused(f"{error.filename or root}: {error.strerror or error}") from error


def _add(run_folder: Path, root: Path, version: str, active: bool) -> RegistryEntry:
    run = _only_entry(run_folder)
    incomplete = metrics_errors(run)
    if incomplete:
        raise ReleaseRefused(f"no card can be written for {run_folder}: {'; '.join(incomplete)}")
    with _folder(root), _alone(root):
        return _register(run, run_folder, root, version, active)


def _register(run: RegistryEntry, run_folder: Path, root: Path, version: str, active: bool) -> RegistryEntry:
    path = root / REGISTRY_NAME
    known = Registry.load(path).entries if path.exists() else ()
    if any(one.appliance_id == run.appliance_id and one.model_version == version for one in known):
        raise ReleaseRefused(f"{run.appliance_id} already has a version {version}, and versions never change")
    folder = f"artifacts/{run.model_id}/{version}"
    entry = dataclasses.replace(
        run,
        model_version=version,
        artifact_path=f"{folder}/{Path(run.artifact_path).name}",
        golden_path=run.golden_path and f"{folder}/{Path(run.golden_path).name}",
        card_path=f"{folder}/{CARD_NAME}",
        is_active=active,
    )
    others = [
        dataclasses.replace(one, is_active=one.is_active and not (active and one.appliance_id == entry.appliance_id))
        for one in known
    ]
    # Before any file is written: it checks the version, which becomes part of a path.
    try:
        registry = registry_text([*others, entry])
    except RegistryError as error:
        # Without the name of the trial file, which is gone.
        raise ReleaseRefused(f"{version!r} cannot be registered: {str(error).split(': ', 1)[-1]}") from error
    if (root / folder).exists():
        raise ReleaseRefused(f"{root / folder} exists but is not registered; move it away, then add again")
    staging = Path(tempfile.mkdtemp(dir=root, prefix=".adding-"))
    try:
        _copy(run, run_folder, entry, staging)
        load_verified(entry, staging)
        reasons = verify(entry, staging) if active else []
        if reasons:
            raise ReleaseRefused(
                f"{entry.model_id} {version} may not be active, so it was not added: {' '.join(reasons)}"
            )
        _put(staging / folder, root / folder, path, registry)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return entry


def set_engine(entry: RegistryEntry, root: Path) -> None:
    """Gives the registered version the engine that `entry` has, and its evidence. Nothing else of it changes.

    Loaded with it before. Raises `ReleaseRefused`.
    """
    path = root / REGISTRY_NAME
    try:
        with _alone(root):
            known = Registry.load(path)
            registered = known.resolve(entry.appliance_id, entry.model_version)
            changed = dataclasses.replace(registered, engine=entry.engine, engine_evidence=entry.engine_evidence)
            load_verified(changed, root)
            entries = [changed if one is registered else one for one in known.entries]
            write_atomically(path, registry_text(entries).encode())
    except (RegistryError, ArtifactRefused) as error:
        raise ReleaseRefused(str(error)) from error
    except OSError as error:
        raise ReleaseRefused(f"{error.filename or root}: {error.strerror or error}") from error


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    """`path` exists inside; after a failure, what had to be made for it and is empty is taken away again."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        raise


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """One `add` at a time: two that read the same registry would each write it without the other's version."""
    # The folder itself is locked, so that no lock file is left; the lock goes with the process.
    descriptor = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _only_entry(run_folder: Path) -> RegistryEntry:
    entries = Registry.load(run_folder / REGISTRY_NAME).entries
    if len(entries) != 1:
        raise ReleaseRefused(f"{run_folder} is not a run folder: its registry has {len(entries)} entries, not one")
    return entries[0]


def _copy(run: RegistryEntry, run_folder: Path, entry: RegistryEntry, staging: Path) -> None:
    """All files of the version, below `staging` as they will be below the registry's folder."""
    for source, target in ((run.artifact_path, entry.artifact_path), (run.golden_path, entry.golden_path)):
        if source is None or target is None:
            raise ReleaseRefused(f"{run_folder} has no golden outputs to check a replica with")
        write_atomically(staging / target, (run_folder / source).read_bytes())
    for name in PICTURES:
        write_atomically((staging / entry.artifact_path).with_name(name), (run_folder / name).read_bytes())
    write_atomically(staging / str(entry.card_path), card(entry).encode())


def _put(staged: Path, folder: Path, registry_path: Path, registry: str) -> None:
    """The finished folder into its place, then the registry; if that fails, the folder is taken away again."""
    with _folder(folder.parent):
        os.replace(staged, folder)
        try:
            write_atomically(registry_path, registry.encode())
        except BaseException:
            shutil.rmtree(folder)
            raise


def verify(entry: RegistryEntry, root: Path) -> list[str]:
    """Why this version may not be the active one, one sentence each; empty: it may. `root`: the registry's folder.

    An answer `provisional` that does not beat always-off is no reason: the card says so.
    """
    reasons = _artifact_reasons(entry, root)
    incomplete = metrics_errors(entry)
    if incomplete:
        # Neither the figures nor the card can be judged without them.
        return reasons + [f"{sentence}." for sentence in incomplete]
    return reasons + obstacles(entry) + _attribution_reasons(entry) + _card_reasons(entry, root)


def _artifact_reasons(entry: RegistryEntry, root: Path) -> list[str]:
    found = []
    if entry.golden_path is None:
        found.append("It has no golden outputs to check a replica with.")
    try:
        load_verified(entry, root)
    except ArtifactRefused as error:
        found.append(f"It does not load: {error}.")
    for name in PICTURES:
        picture = (root / entry.artifact_path).with_name(name)
        if not picture.is_file() or not picture.stat().st_size:
            found.append(f"Its picture {name} is missing.")
    return found


def _attribution_reasons(entry: RegistryEntry) -> list[str]:
    if not entry.training_data:
        return ["It names no home it learnt from."]
    # What comes after the semicolon is the way the recording came here, not whose it is.
    named = [(source.home, source.attribution.split(";")[0]) for source in entry.training_data]
    named += [(test["home"], test["attribution"]) for test in entry.metrics["tests"]]
    homes = dict.fromkeys(home for home, attribution in named if not attribution.strip())
    return [f"The recording of {home} has no attribution." for home in homes]


def _card_reasons(entry: RegistryEntry, root: Path) -> list[str]:
    """The card must be the one that the entry gives: figures are generated, never typed."""
    path = None if entry.card_path is None else root / entry.card_path
    if path is None or not path.is_file():
        return ["Its model card is missing."]
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        return [f"Its model card cannot be read: {error}."]
    found = [f"Its model card has no section {title!r}." for title in SECTIONS if f"## {title}" not in lines]
    for number, (is_there, expected) in enumerate(zip_longest(lines, card(entry).split("\n")), start=1):
        if is_there != expected:
            found.append(
                f"Its model card differs from the registry at line {number}: {is_there!r} should be {expected!r}."
            )
            break
    return found
