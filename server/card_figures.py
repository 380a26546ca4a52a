"""The figures of a model card in Markdown: tables with intervals, spread and operating points."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from common.held_out import HELD_OUT
from common.study import Study

SHOWN = (
    "auroc", "average_precision", "balanced_accuracy", "sensitivity", "specificity", "brier",
    "calibration_error",
)  # fmt: skip

_PLACES = {
    "border": "share on the image's border",
    "text": "share on text that is burned in",
    "outside": "share outside of the body or the retina",
    "pointing": "highest point within the mask or box",
    "energy": "share within the mask or box",
}


def figures(card: Mapping[str, Any], study: Study) -> str:
    """Return the tables of each task's figures, all sites together and site by site."""
    parts = [
        _task_figures(name, split, card["figures"][name][split], card["spread"])
        for name in study.tasks
        for split in reversed(HELD_OUT)
        if split in card["figures"].get(name, {})
    ]
    return "\n\n".join(parts) if parts else "There are no figures."


def _task_figures(
    name: str, split: str, figures: Mapping[str, Any], spread: Mapping[str, Any]
) -> str:
    counted = [("images", figures)]
    if "patients" in figures:
        counted.append(("patients", figures["patients"]))
    rows = [row for what, of in counted for row in _figure_rows(what, of)]
    names = [metric.replace("_", " ") for metric in SHOWN]
    told = table(("site", "counted", "patients", "images", *names), rows)
    lines = [
        f"{metric.replace('_', ' ')}: {one['lowest']:.3f} to {one['highest']:.3f} over "
        f"{one['sites']} sites, standard deviation {one['std']:.3f}; worst at {one['worst_site']}"
        for metric, one in spread.get(name, {}).get(split, {}).items()
    ]
    return "\n\n".join(
        part for part in (f"### {name}, {split} patients", told, bullets(lines)) if part
    )


def _figure_rows(counted: str, of: Mapping[str, Any]) -> Iterable[Sequence[Any]]:
    """Yield the row of all sites, then one for each site."""
    intervals = of.get("intervals", {})
    sites = intervals.get("per_site", {})
    told = [("**all sites**", of["pooled"], intervals.get("pooled", {}))]
    told += [(site, one, sites.get(site, {})) for site, one in sorted(of["per_site"].items())]
    for who, one, around in told:
        cells = [figure_text(one, around, metric) for metric in SHOWN]
        yield who, counted, one.get("n_patients", "-"), one.get("n_images", "-"), *cells


def attention(card: Mapping[str, Any]) -> str:
    """Return where the model looks, task by task; nothing where no site reported it."""
    parts = []
    for name, splits in card["figures"].items():
        pooled = splits.get("test", {}).get("attention", {}).get("pooled", {})
        rows = [
            (_PLACES[place], one["patients"], f"{one['mean']:.3f}", f"{one['even']:.3f}")
            for place, one in pooled.items()
        ]
        told = table(("of the class activation maps", "patients", "mean", "an even map"), rows)
        parts += [f"### {name}, where the model looks", told] if told else []
    return "\n\n".join(parts)


def operating(card: Mapping[str, Any]) -> str:
    """Return calibration and operating points, task by task."""
    parts = []
    for name, one in card["operating"].items():
        rows = [
            (
                *(label, rule, f"{point['threshold']:.3f}", f"{point['probability']:.3f}"),
                *(_share(point[what]) for what in ("sensitivity", "specificity", "ppv", "npv")),
            )
            for label, rules in one["points"].items()
            for rule, point in (rules or {}).items()
        ]
        columns = ("class", "rule", "log-odds", "probability", "sensitivity", "specificity")
        told = table((*columns, "PPV", "NPV"), rows)
        parts += [f"### {name}, calibration and operating points", _scaling(one["scaling"]), told]
    if not parts:
        return ""
    return "\n\n".join(part for part in parts if part) + (
        "\n\nTemperature and thresholds were chosen on validation patients, what they do was "
        "measured on test patients. Log-odds and probability are those before the temperature. PPV "
        "and NPV hold at the sites' own prevalence alone."
    )


def _scaling(scaling: Mapping[str, Any] | None) -> str:
    if scaling is None:
        return "No temperature could be fitted."
    told = [f"Temperature {scaling['value']:.3f}."]
    for what in ("loss", "calibration_error"):
        before, after = scaling[what]["before"], scaling[what]["after"]
        if before is not None and after is not None:
            told.append(f"Test {what.replace('_', ' ')} {before:.3f} before, {after:.3f} after.")
    return " ".join(told)


def _share(share: Mapping[str, Any]) -> str:
    return figure_text({"": share["value"]}, {"": share["interval"]}, "")


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table in Markdown, or nothing where it has no rows."""
    lines = [_row(cells) for cells in rows]
    head = [_row(columns), "|" + "---|" * len(columns)]
    return "\n".join([*head, *lines]) if lines else ""


def figure_text(figures: Mapping[str, Any], intervals: Mapping[str, Any], metric: str) -> str:
    """Return a figure with its interval, ``0.912 (0.881 to 0.938)``; a dash where there is none."""
    value, interval = figures.get(metric), intervals.get(metric)
    if value is None:
        return "-"
    return f"{value:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")


def bullets(lines: Iterable[str]) -> str:
    """Return a list in Markdown; nothing of no lines."""
    return "\n".join(f"- {line}" for line in lines)


def _row(cells: Iterable[Any]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
