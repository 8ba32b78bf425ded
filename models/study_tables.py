"""What many training runs say together: folds over seeds, architectures side by side, and more homes to learn from.

Reads the study file that `models.training.study` collects from run folders. A cell that no run fills is "-".
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import jsonschema.exceptions

from models.appliances import APPLIANCES
from models.attribution import Attribution
from models.figures import SEEN_HOME, UNSEEN_HOME

STUDY_SCHEMA_PATH = Path(__file__).with_name("study.schema.json")

HEADLINE_HOME = "uk-dale-2"
HEADLINE_TEACHERS = frozenset({"refit-2", "refit-20"})

Report = dict[str, Any]


class StudyError(Exception):
    """The study file is not one; the message is one sentence for the user."""


@dataclass(frozen=True, slots=True)
class StudyRun:
    """One training run. Homes that taught, and the one left out, are named as in `nilm train`."""

    appliance_id: str
    architecture: str
    training_homes: frozenset[str]
    test_home: str | None
    seed: int
    steps: int | None
    parameters: int
    train_minutes: float | None
    """None for an ensemble, which is not trained itself."""
    ms_per_window: float
    tests: tuple[dict[str, Any], ...]

    def test(self, *kinds: str) -> dict[str, Any] | None:
        """Its first test of these kinds."""
        return next((test for test in self.tests if test["kind"] in kinds), None)

    @property
    def final(self) -> Report | None:
        """The final answer on the home it never saw."""
        test = self.test(UNSEEN_HOME)
        return None if test is None else test[str(Attribution.FINAL)]


Study = tuple[StudyRun, ...]


def read_study(path: Path) -> Study:
    """Raises `StudyError`."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise StudyError(f"{path} cannot be read: {error}") from error
    schema = json.loads(STUDY_SCHEMA_PATH.read_text(encoding="utf-8"))
    wrong = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(document))
    if wrong is not None:
        raise StudyError(f"{path} is not a study file: at /{'/'.join(map(str, wrong.absolute_path))}: {wrong.message}")
    names = [field.name for field in dataclasses.fields(StudyRun)]
    runs = [
        StudyRun(
            **{name: run[name] for name in names if name not in ("training_homes", "tests")},
            training_homes=frozenset(run["training_homes"]),
            tests=tuple(run["tests"]),
        )
        for run in document["runs"]
    ]
    return tuple(sorted(runs, key=_order))


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON; a number must be finite")


def _order(run: StudyRun) -> tuple[int, str, str, int]:
    known = list(APPLIANCES)
    place = known.index(run.appliance_id) if run.appliance_id in known else len(known)
    return place, run.appliance_id, run.architecture, run.seed


def study_lines(study: Study, learning_curve_picture: str) -> list[str]:
    """The chapters of docs/models.md that a study gives, as Markdown lines."""
    return [*_folds(study), *_architectures(study), *_learning_curve(study, learning_curve_picture)]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; without rows, a sentence that says so."""
    if not rows:
        return ["Nothing measured yet.", ""]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    # A home may be called anything, and a bar would end its cell.
    return [*lines, *(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows), ""]


def spread(values: Sequence[float], digits: int) -> str:
    """Mean, and over several seeds the least and the most."""
    if not values:
        return "-"
    mean = f"{sum(values) / len(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _grouped(runs: Iterable[StudyRun], key: Callable[[StudyRun], Any]) -> dict[Any, list[StudyRun]]:
    groups: dict[Any, list[StudyRun]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return groups


def _name(appliance_id: str) -> str:
    return appliance_id.replace("_", " ")


def _folds(study: Study) -> list[str]:
    lines = [
        "## Leave one home out, several seeds",
        "",
        "Each fold trains on all homes but one. A cell is the mean over seeds, and in brackets the least and the most; "
        "with so few seeds, a difference inside the brackets is no evidence. Rows of homes it learnt from are of a "
        "later part of them and say what a new home costs.",
        "",
    ]
    folds = _grouped(study, lambda run: run.test_home)
    # The headline fold first, the one without a home left out last.
    for test_home in sorted(folds, key=lambda name: (name != HEADLINE_HOME, name is None, name or "")):
        title = f"Left out: {test_home}" if test_home else "No home left out, months kept aside"
        lines += [f"### {title}", ""]
        rows: list[list[str]] = []
        for (appliance_id, architecture), runs in _grouped(
            folds[test_home], lambda run: (run.appliance_id, run.architecture)
        ).items():
            most = max(len(run.training_homes) for run in runs)
            rows += _fold_rows(appliance_id, architecture, [run for run in runs if len(run.training_homes) == most])
        lines += table(
            (
                "appliance",
                "architecture",
                "tested on",
                "seeds",
                "F1 final",
                "MAE W final",
                "MAE W always off",
                "F1 provisional",
                "MAE W provisional",
            ),
            rows,
        )
    return lines


def _fold_rows(appliance_id: str, architecture: str, runs: list[StudyRun]) -> list[list[str]]:
    tested: dict[tuple[bool, str], list[dict[str, Any]]] = {}
    for run in runs:
        for test in run.tests:
            tested.setdefault((test["kind"] == SEEN_HOME, test["home"]), []).append(test)
    rows = []
    for (seen, home), tests in sorted(tested.items()):
        final, provisional = ([test[str(attribution)] for test in tests] for attribution in Attribution)
        rows.append(
            [
                _name(appliance_id),
                architecture,
                f"{home} (learnt from it)" if seen else home,
                str(len(tests)),
                spread([one["f1"] for one in final], 3),
                spread([one["mae_w"] for one in final], 2),
                spread([one["always_off_mae_w"] for one in final[:1]], 2),
                spread([one["f1"] for one in provisional], 3),
                spread([one["mae_w"] for one in provisional], 2),
            ]
        )
    return rows


def _headline(study: Study) -> list[StudyRun]:
    return [run for run in study if run.test_home == HEADLINE_HOME]


def _architectures(study: Study) -> list[str]:
    runs = [run for run in _headline(study) if run.training_homes == HEADLINE_TEACHERS]
    appliances = list(dict.fromkeys(run.appliance_id for run in runs))
    rows = []
    for architecture, same in sorted(_grouped(runs, lambda run: run.architecture).items()):
        cells = []
        for appliance_id in appliances:
            reports = [run.final for run in same if run.appliance_id == appliance_id and run.final is not None]
            f1 = spread([sum(one["f1"] for one in reports) / len(reports)], 3) if reports else "-"
            mae_w = spread([sum(one["mae_w"] for one in reports) / len(reports)], 2) if reports else "-"
            cells.append(f"{f1} / {mae_w} ({len(reports)})" if reports else "-")
        parameters = sorted({run.parameters for run in same})
        counts = f"{parameters[0]:,}" if len(parameters) == 1 else f"{parameters[0]:,} to {parameters[-1]:,}"
        milliseconds = sum(run.ms_per_window for run in same) / len(same)
        minutes = [run.train_minutes for run in same if run.train_minutes is not None]
        steps = [run.steps for run in same if run.steps is not None]
        effort = [
            f"{min(steps):,}" if steps else "-",
            spread([sum(minutes) / len(minutes)] if minutes else [], 0),
        ]
        rows.append([architecture, *cells, *effort, counts, f"{milliseconds:.2f}"])
    return [
        "## Architectures side by side",
        "",
        "The same two training homes, tested on UK-DALE House 2, which none of them saw: F1 / MAE in W of the "
        "final answer, mean over seeds, number of seeds in brackets. Steps: of the shortest training; minutes: the "
        "mean, on one core. Milliseconds are of one window on one core, in batches of 16. Seq2Point "
        "answers for the middle sample alone: its batches have cycles there, the others' anywhere.",
        "",
        *table(("architecture", *map(_name, appliances), "steps", "training min", "parameters", "ms per window"), rows),
    ]


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Runs of one appliance that learnt from so many homes, on the headline home. `f1` and `mae_w` (W): one a run."""

    appliance_id: str
    homes: int
    teachers: tuple[str, ...]
    f1: tuple[float, ...]
    mae_w: tuple[float, ...]
    always_off_mae_w: float


def learning_curve_points(study: Study) -> list[CurvePoint]:
    """One point for each set of training homes, of appliances and architectures that have one and two homes."""
    points: list[CurvePoint] = []
    for (appliance_id, _), same in _grouped(_headline(study), lambda run: (run.appliance_id, run.architecture)).items():
        by_teachers = _grouped(
            (run for run in same if run.final is not None and run.training_homes <= HEADLINE_TEACHERS),
            lambda run: tuple(sorted(run.training_homes)),
        )
        if {len(teachers) for teachers in by_teachers} != {1, 2}:
            continue
        for teachers, runs in sorted(by_teachers.items(), key=lambda item: (len(item[0]), item[0])):
            reports = [run.final for run in runs if run.final is not None]
            points.append(
                CurvePoint(
                    appliance_id=appliance_id,
                    homes=len(teachers),
                    teachers=teachers,
                    f1=tuple(one["f1"] for one in reports),
                    mae_w=tuple(one["mae_w"] for one in reports),
                    always_off_mae_w=reports[0]["always_off_mae_w"],
                )
            )
    return points


def _learning_curve(study: Study, picture: str) -> list[str]:
    points = learning_curve_points(study)
    lines = [
        "## One home to learn from, or two",
        "",
        "One training home against both, tested on UK-DALE House 2: whether more homes would "
        "help is read off the step from one to two. Mean over seeds, in brackets the least and the most.",
        "",
        *table(
            ("appliance", "homes", "learnt from", "seeds", "F1 final", "MAE W final", "MAE W always off"),
            [
                [
                    _name(point.appliance_id),
                    str(point.homes),
                    ", ".join(point.teachers),
                    str(len(point.f1)),
                    spread(point.f1, 3),
                    spread(point.mae_w, 2),
                    f"{point.always_off_mae_w:.2f}",
                ]
                for point in points
            ],
        ),
    ]
    return [*lines, f"![F1 and MAE with one and with two training homes]({picture})", ""] if points else lines
