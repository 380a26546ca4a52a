"""One run of the simulation: play, measure, write."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from client.config import SiteConfig
from client.site import Site
from common.errors import OutputError
from common.files import write_json
from common.study import Study
from server.checkpoint import MODEL
from server.history import HISTORY, RoundRecord
from simulations import across, yardsticks
from simulations.across import Across
from simulations.federation import Engine, Played, play
from simulations.pictures import check_can_draw, draw_curves
from simulations.summary import summarise


def run_simulation(
    study: Study,
    hospitals: Sequence[Path],
    out: Path,
    *,
    engine: Engine = "inline",
    threads: int = 0,
    with_yardsticks: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Play a study and write ``summary.json``, ``history.jsonl``, ``model.safetensors``, curves.

    Args:
        study: What is trained.
        hospitals: One folder a site.
        out: Where the results go; it must not hold those of another run.
        engine: ``inline`` or ``ray``.
        threads: Torch threads of each site; see ``federation.play``.
        with_yardsticks: Measure also alone, ensemble and pooled, and every model at every site.
        console: Where progress is shown, if it is a terminal.

    Returns:
        The content of ``summary.json``.

    Raises:
        OutputError: ``out`` holds another run or cannot be written.
        RarefedError: As ``federation.play`` says.
    """
    _check_output(out)
    check_can_draw()
    exchanges = study.rounds + 1
    with _progress(console) as bar:
        task = bar.add_task("reading weights and images", total=exchanges)

        def watch(record: RoundRecord) -> None:
            bar.update(task, advance=1, description=_headline(record))
            if not record.trained:
                bar.update(task, total=record.round)  # it may be fewer rounds than the study has

        played = play(study, hospitals, out, engine=engine, threads=threads, watch=watch)
        compared = None
        if with_yardsticks:
            bar.update(task, total=None)
            compared = _compared(
                study, played, hospitals, out, lambda text: bar.update(task, description=text)
            )
    measured, beside = compared or (None, None)
    summary = summarise(study, played, engine=engine, yardsticks=measured, across=beside)
    write_json(out / "summary.json", summary)
    draw_curves(played.outcome.records, out / "curves.png")
    return summary


def read_summary(run: Path) -> dict[str, Any]:
    """Return the summary of an earlier run."""
    content: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return content


def _compared(
    study: Study,
    played: Played,
    hospitals: Sequence[Path],
    out: Path,
    tell: Callable[[str], None],
) -> tuple[dict[str, Any], Across]:
    """Return the yardsticks' figures, and all models at all sites."""
    sites = played.sites or [Site(SiteConfig.load(path)) for path in hospitals]
    asked = yardsticks.train_and_ask(study, sites, played.start.model, tell)
    tell("every model at every site")
    federated = across.ask(study, sites, asked.test, asked.places, out / MODEL)
    names = [site.config.name for site in sites]
    return yardsticks.judge(study, asked), across.compare(study, names, asked, federated)


def _check_output(out: Path) -> None:
    if (out / HISTORY).exists() or (out / "summary.json").exists():
        raise OutputError(
            f"{out} holds the results of another run.",
            remedy="Give another --out, or remove that folder.",
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"Cannot make {out}: {error.strerror}.", remedy="Give another --out."
        ) from error


def _progress(console: Console | None) -> Progress:
    """A bar that shows itself on a terminal only."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=console is None or not console.is_terminal,
    )


def _headline(record: RoundRecord) -> str:
    scores = [
        f"{task} {auroc:.2f}"
        for task, splits in record.tasks.items()
        if "validation" in splits  # unless every site kept its figures to itself
        and (auroc := splits["validation"]["pooled"]["auroc"]) is not None
    ]
    return f"round {record.round}: validation AUROC {', '.join(scores) or 'undefined'}"
