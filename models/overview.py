"""docs/models.md: every registered version beside always-off and beside what we aimed at, written from the registry.

Needs neither torch nor the `tools` extra; the picture of the learning curve is drawn by `models.training.plots`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from models.attribution import Attribution
from models.card import EXAMPLE_DAY_NAME, RELIABILITY_NAME
from models.figures import HELD_OUT_MONTH, champions, has_both_answers, headline_test, obstacles
from models.registry import Registry, RegistryEntry
from models.study_tables import Study, study_lines, table

LEARNING_CURVE = "images/learning-curve.png"


@dataclass(frozen=True, slots=True)
class Aim:
    """What we want: F1 at least, MAE (W) at most, of the final answer on the headline test."""

    f1: float
    mae_w: float


AIMS = {
    "kettle": Aim(0.96, 3.5),
    "microwave": Aim(0.80, 3.2),
    "dishwasher": Aim(0.80, 14.0),
    "washing_machine": Aim(0.60, 6.0),
    "electric_shower": Aim(0.96, 8.0),
}


def overview(registry: Registry, study: Study | None, folder: Path) -> str:
    """The document as Markdown. `folder` is where it will lie: links are relative to it. `study`: None without one."""
    return "\n".join(
        [
            "# The models",
            "",
            "Written by `nilm models docs` from the registry; change the models, not this file.",
            "",
            "```sh",
            "nilm models list",
            "```",
            "",
            *_versions(registry, folder),
            *_aims(registry),
            *_pictures(registry, folder),
            *(study_lines(study, LEARNING_CURVE) if study is not None else []),
        ]
    )


def _versions(registry: Registry, folder: Path) -> list[str]:
    rows = []
    for entry in registry.entries:
        figures = version_figures(entry)
        name = f"{entry.model_id} {entry.model_version}"
        card = _link(registry, entry.card_path, folder)
        rows.append(
            (
                f"[{name}]({card})" if card else name,
                "active" if entry.is_active else "",
                figures.home,
                *figures.final,
                figures.always_off,
                *figures.provisional,
                figures.verdict,
            )
        )
    return [
        "## Every version, on a home it never saw",
        "",
        "F1 is of the state (always off has 0); MAE is of the power, and worth something only below the one of always "
        "off. `final` is the centred answer, `provisional` the one that comes minutes late; `-` was not measured.",
        "",
        *table(
            (
                "version",
                "",
                "tested on",
                "F1 final",
                "MAE W final",
                "MAE W always off",
                "F1 provisional",
                "MAE W provisional",
                "may be active",
            ),
            rows,
        ),
    ]


@dataclass(frozen=True, slots=True)
class VersionFigures:
    """A version's headline test as text; "-" for what was not measured. `final` and `provisional`: F1 and MAE in W."""

    home: str = "-"
    final: tuple[str, str] = ("-", "-")
    always_off: str = "-"
    provisional: tuple[str, str] = ("-", "-")
    verdict: str = "no: registered before both answers were measured"


def version_figures(entry: RegistryEntry) -> VersionFigures:
    """What tables say of one version. The verdict is of the figures alone; `nilm models verify` also loads it."""
    test = headline_test(entry)
    if test is None:
        measured = has_both_answers(entry)
        return VersionFigures(verdict=f"no: {' '.join(obstacles(entry))}") if measured else VersionFigures()
    final, provisional = (test[str(attribution)] for attribution in Attribution)
    home = f"{test['home']} (months kept aside)" if test["kind"] == HELD_OUT_MONTH else test["home"]
    reasons = obstacles(entry)
    return VersionFigures(
        home=home,
        final=(f"{final['f1']:.3f}", f"{final['mae_w']:.2f}"),
        always_off=f"{final['always_off_mae_w']:.2f}",
        provisional=(f"{provisional['f1']:.3f}", f"{provisional['mae_w']:.2f}"),
        verdict=f"no: {' '.join(reasons)}" if reasons else "yes",
    )


def _aims(registry: Registry) -> list[str]:
    of = {entry.appliance_id: entry for entry in champions(registry.entries)}
    rows = []
    for appliance_id, aim in AIMS.items():
        entry = of.get(appliance_id)
        test = None if entry is None else headline_test(entry)
        reached, verdict = ("-", "-"), "-"
        if test is not None:
            final = test[str(Attribution.FINAL)]
            reached = (f"{final['f1']:.3f}", f"{final['mae_w']:.2f}")
            verdict = aim_verdict(aim, final["f1"], final["mae_w"])
        name = appliance_id.replace("_", " ")
        rows.append((name, f"{aim.f1:.2f}", reached[0], f"{aim.mae_w:g}", reached[1], verdict))
    return [
        "## Beside what we aimed at",
        "",
        "An aim is what we want, not what is promised. The final answer of each appliance's active version, or "
        "of its latest one where none is active, on the home it never saw (electric shower: on months kept aside).",
        "",
        *table(("appliance", "F1 aim", "F1", "MAE W aim", "MAE W", ""), rows),
    ]


def aim_verdict(aim: Aim, f1: float, mae_w: float) -> str:
    """`met`, or by how much which of the two was missed."""
    missed = []
    if f1 < aim.f1:
        missed.append(f"{aim.f1 - f1:.3f} F1")
    if mae_w > aim.mae_w:
        missed.append(f"{mae_w - aim.mae_w:.2f} W")
    return f"missed by {' and '.join(missed)}" if missed else "met"


def _pictures(registry: Registry, folder: Path) -> list[str]:
    lines: list[str] = []
    for entry in champions(registry.entries):
        found = [
            (link, text)
            for name, text in ((EXAMPLE_DAY_NAME, "a typical day"), (RELIABILITY_NAME, "how honest its probability is"))
            if (link := _link(registry, str(Path(entry.artifact_path).with_name(name)), folder))
        ]
        if found:
            lines += [f"### {entry.model_id} {entry.model_version}", ""]
            for link, text in found:
                lines += [f"![{entry.model_id}: {text}]({link})", ""]
    if not lines:
        return []
    how = "The day with the median energy among the days in use; and, on the diagonal, 70 % means 7 times out of 10."
    return ["## Pictures", "", how, "", *lines]


def _link(registry: Registry, path: str | None, folder: Path) -> str | None:
    """From `folder` to a file of the registry; None when there is no such file."""
    if path is None or not (registry.root / path).is_file():
        return None
    return Path(os.path.relpath(registry.root / path, folder.resolve())).as_posix()
