"""The rollouts of a serve_config.yaml: the `user_config` of its deployment `rollout`, read and edited in place.

Owns which part of the file that is, and the sentences about what is wrong with it. Refuses to edit what another part
of the file shares with it (anchors, aliases, merge keys), and to write over a file that somebody else has changed.
"""

from __future__ import annotations

import copy
import itertools
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from yaml.nodes import Node, ScalarNode, SequenceNode

from deployments.rollout_plan import PlanRefused, RolloutPlan, check_against, read_plans
from models.files import write_atomically
from models.registry import Registry
from serve_app.cli import yaml_edit

DEPLOYMENT = "rollout"
MAX_BYTES = 1_000_000
"""PyYAML takes 4 s for that much; the repository's file has 5 kB."""
MAX_EDITS = 1000
"""More keys than any rollout has: an edit that does not bring the file nearer to what is wanted must end."""


class RolloutFileError(Exception):
    """What is wrong with the file, for a person: a line each, "serve_config.yaml:97: kettle.canary: is missing"."""


@dataclass(frozen=True)
class _Section:
    """The text of the file, and where in it the rollouts are."""

    text: str
    application: str
    appliances: tuple[str, ...]
    key: Node
    node: Node
    user_config: dict[str, object]


@dataclass
class RolloutFile:
    """A serve_config.yaml whose rollouts can be changed: `read` it, `promote` or `replace`, then `write`."""

    path: Path
    _on_disk: bytes = field(repr=False)
    _section: _Section = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> RolloutFile:
        """Raises `RolloutFileError` when the file is absent, not YAML, or has no rollouts that can be edited."""
        content = _content(path)
        return cls(path, content, _parsed(path, content))

    @property
    def application(self) -> str:
        """Name of the application that has the rollout deployment."""
        return self._section.application

    @property
    def appliances(self) -> tuple[str, ...]:
        """`args.appliances` of that application."""
        return self._section.appliances

    @property
    def user_config(self) -> dict[str, object]:
        """What the file says now, edits included: a copy, as plain values, not checked."""
        return copy.deepcopy(self._section.user_config)

    def plans(self, registry: Registry) -> dict[str, RolloutPlan]:
        """The plan of every appliance. Raises `RolloutFileError` with a line for every fault."""
        try:
            plans = read_plans(self.user_config, self.appliances)
            check_against(registry, plans)
        except PlanRefused as refused:
            lines = [f"{self.path}:{self.line_of(fault.keys)}: {fault}" for fault in refused.faults]
            raise RolloutFileError("\n".join(lines)) from refused
        return plans

    def line_of(self, keys: Sequence[str]) -> int:
        """The line of this key, ("kettle", "canary", "percent"), or of the nearest one above it that is there."""
        line, node = _line(self._section.key), self._section.node
        for name in keys:
            found = next(
                ((key, value) for _, key, value in yaml_edit.entries(node)
                 if isinstance(key, ScalarNode) and key.value == name), None)  # fmt: skip
            if found is None:
                break
            line, node = _line(found[0]), found[1]
        return line

    def promote(self, appliance: str) -> str:
        """Make the canary's version the stable one and return it. Raises `RolloutFileError` without a canary."""
        wanted = self.user_config
        plan = wanted.get(appliance)
        canary = plan.get("canary") if isinstance(plan, dict) else None
        version = canary.get("version") if isinstance(canary, dict) else None
        if not isinstance(plan, dict) or not isinstance(version, str):
            keys = (appliance, "canary")
            raise RolloutFileError(f"{self.path}:{self.line_of(keys)}: {'.'.join(keys)}: there is no canary to promote")
        del plan["canary"]
        plan["stable"] = version
        self.replace(wanted)
        return version

    def replace(self, user_config: Mapping[str, object]) -> None:
        """Make the file say this, and touch only the keys that differ. Nothing is written yet.

        Raises `RolloutFileError`, and changes nothing, when the section is written in a way that cannot be edited.
        """
        section = self._section
        for _ in range(MAX_EDITS):
            edit = yaml_edit.next_edit(section.text, section.key, section.node, user_config)
            if edit is None:
                break
            try:
                section = _parsed(self.path, edit.applied_to(section.text).encode())
            except RolloutFileError as error:
                line = section.text.count("\n", 0, edit.start) + 1
                raise self._not_editable(line) from error
        if section.user_config != user_config:
            raise self._not_editable(_line(section.key))
        self._section = section

    def write(self) -> None:
        """Replace the file, with the same mode bits; readers see the old one or the new one.

        Raises `RolloutFileError` when the file has changed since it was read, cannot be written, or does not say
        afterwards what was meant; then it has its old content.
        """
        path = self.path.resolve()  # a link stays a link
        if _content(path) != self._on_disk:
            raise RolloutFileError(f"{self.path}: has changed since it was read; nothing is written")
        content = self._section.text.encode()
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            write_atomically(path, content, mode)
            try:
                written = RolloutFile.read(self.path)
                as_meant = written.user_config == self._section.user_config
            except RolloutFileError:
                as_meant = False
            if not as_meant:
                write_atomically(path, self._on_disk, mode)
                raise RolloutFileError(f"{self.path}: did not say what was meant after writing; it is as it was")
        except OSError as error:
            raise RolloutFileError(f"{self.path}: cannot be written: {error.strerror}") from error
        self._on_disk = content

    def _not_editable(self, line: int) -> RolloutFileError:
        return RolloutFileError(f"{self.path}:{line}: is written in a way that only a person can edit")


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RolloutFileError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise RolloutFileError(f"{path}: has more than {MAX_BYTES} bytes, which no configuration needs")
    return content


def _parsed(path: Path, content: bytes) -> _Section:
    try:
        text = content.decode()
        root = yaml_edit.compose(text)
        return _section(path, text, root)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RolloutFileError(f"{path}:{line}: is not UTF-8") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise RolloutFileError(f"{path}:{line}: is not YAML: there is an unprintable character") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else f"{path}"
        raise RolloutFileError(f"{where}: is not YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise RolloutFileError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise RolloutFileError(f"{path}: is nested too deeply") from None


def _section(path: Path, text: str, root: Node | None) -> _Section:
    found = list(_rollouts(root))
    if len(found) != 1:
        count = "more than one" if found else "no"
        raise RolloutFileError(f"{path}: {count} application has a deployment named {DEPLOYMENT}")
    way = found[0]
    application, deployment = way[2], way[-1]
    entry = next((pair for name, *pair in yaml_edit.entries(deployment) if name == "user_config"), None)
    if entry is None:
        raise RolloutFileError(f"{path}:{_line(deployment)}: the deployment {DEPLOYMENT} has no user_config")
    key, node = entry
    for one in itertools.chain(way, [key], yaml_edit.tree(node)):  # a loop of aliases is refused, not unrolled
        if yaml_edit.is_shared(text, one):
            raise RolloutFileError(f"{path}:{_line(one)}: the rollouts may use no anchor, alias, merge key or tag")
    user_config = yaml_edit.value_of(node)
    if not isinstance(user_config, dict):
        raise RolloutFileError(f"{path}:{_line(key)}: user_config is not a mapping of appliances")
    name = yaml_edit.child(application, "name")
    appliances = yaml_edit.child(yaml_edit.child(application, "args"), "appliances")
    names = yaml_edit.value_of(appliances) if appliances else None
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        raise RolloutFileError(f"{path}:{_line(application)}: the application's args.appliances is not a list of names")
    # Serve's own name for an application without one.
    return _Section(text, str(name.value) if name else "default", tuple(names), key, node, user_config)


def _rollouts(root: Node | None) -> Iterator[tuple[Node, ...]]:
    """The nodes on the way from the document to each rollout deployment, both ends included."""
    applications = yaml_edit.child(root, "applications")
    for application in _items(applications):
        deployments = yaml_edit.child(application, "deployments")
        for deployment in _items(deployments):
            name = yaml_edit.child(deployment, "name")
            if root and applications and deployments and isinstance(name, ScalarNode) and name.value == DEPLOYMENT:
                yield root, applications, application, deployments, deployment


def _items(node: Node | None) -> list[Node]:
    return node.value if isinstance(node, SequenceNode) else []


def _line(node: Node) -> int:
    return node.start_mark.line + 1
