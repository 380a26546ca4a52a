"""``rarefed-sim``: the researcher's commands."""

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from common import command_line
from common.command_line import err
from simulations import cli_lab

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Play a whole federation on one machine, with the real server and the real client.",
)
out_console = Console()

Json = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]
Seed = Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")]


@app.command(epilog="Example: rarefed-sim make hospitals --sites 6 --patients 40")
def make(
    out: Annotated[Path, typer.Argument(help="Folder for the hospitals.")],
    sites: Annotated[int, typer.Option(min=1, help="How many hospitals.")] = 6,
    patients: Annotated[int, typer.Option(min=4, help="Patients of each, on average.")] = 40,
    images: Annotated[int, typer.Option(min=1, help="Most images of a patient.")] = 3,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Make phantom hospitals: CT, MR and fundus studies with known lesions and masks."""
    from simulations import hospitals

    with err.status("drawing phantoms"):
        made = hospitals.make(out, sites=sites, patients=patients, images=images, seed=seed)
    _print_folders(made, as_json=as_json)


@app.command(
    epilog="Example: rarefed-sim deal ../shared/data/ct_iqoth hospitals --task lung --sites 4"
    " --skew dirichlet:0.5"
)
def deal(
    dataset: Annotated[Path, typer.Argument(help="Folder with labels.csv and its images.")],
    out: Annotated[Path, typer.Argument(help="Folder for the hospitals.")],
    task: Annotated[
        str, typer.Option(help="The study's name for the task; the data set's by default.")
    ] = "",
    sites: Annotated[int, typer.Option(min=1, help="How many hospitals.")] = 4,
    skew: Annotated[
        str, typer.Option(help="iid, dirichlet:ALPHA, size:POWER, scanner, or several with commas.")
    ] = "dirichlet:0.5",
    label: Annotated[str, typer.Option(help="Column of the labels.")] = "label",
    first: Annotated[int, typer.Option(min=1, help="Number of the first hospital.")] = 1,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Deal a real data set into hospitals, by patient or group, with label and size skew."""
    from simulations import hospitals

    with err.status("dealing"):
        made = hospitals.deal(
            dataset,
            out,
            sites=sites,
            task=task or dataset.resolve().name,
            skew=skew,
            seed=seed,
            label=label,
            first=first,
        )
    _print_folders(made, as_json=as_json)


@app.command(epilog="Example: rarefed-sim run study.toml --hospitals hospitals --out run")
def run(
    study: Annotated[Path, typer.Argument(help="The study file.")],
    hospitals: Annotated[Path, typer.Option(help="Folder of hospital folders.")],
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    engine: Annotated[str, typer.Option(help="inline (this process) or ray.")] = "inline",
    threads: Annotated[
        int, typer.Option(min=0, help="Torch threads of each site; 0: all cores, on Ray 1.")
    ] = 0,
    yardsticks: Annotated[
        bool,
        typer.Option(
            "--yardsticks", help="Also alone, ensemble and pooled, and every model at every site."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Play a study and write summary.json, history.jsonl, model.safetensors and curves.png."""
    if engine not in ("inline", "ray"):
        raise typer.BadParameter("use inline or ray", param_hint="--engine")
    from common.study import Study

    agreed = Study.load(study)
    from simulations.federation import find_hospitals  # seconds to load, so only now
    from simulations.run import run_simulation

    summary = run_simulation(
        agreed,
        find_hospitals(hospitals),
        out,
        engine="ray" if engine == "ray" else "inline",
        threads=threads,
        with_yardsticks=yardsticks,
        console=err,
    )
    _print_summary(summary, out, as_json=as_json)


@app.command(epilog="Example: rarefed-sim demo --out demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for hospitals and results.")] = Path("demo"),
    weights: Annotated[
        str, typer.Option(help="phantoms (in this repository) or pretrained (timm's hub).")
    ] = "phantoms",
    again: Annotated[bool, typer.Option("--again", help="Replace an earlier demo.")] = False,
    as_json: Json = False,
) -> None:
    """Make six phantom hospitals of three modalities and play a whole study on them."""
    if weights not in ("phantoms", "pretrained"):
        raise typer.BadParameter("use phantoms or pretrained", param_hint="--weights")
    from simulations import demonstration

    if again and (out / demonstration.MARK).exists():
        shutil.rmtree(out)
    summary = demonstration.run(out, weights=weights, console=err)
    _print_summary(summary, out / "run", as_json=as_json)


@app.command(epilog="Example: rarefed-sim rehearse --out rehearsal --images ../shared/data")
def rehearse(
    out: Annotated[Path, typer.Option(help="Folder for everything.")] = Path("rehearsal"),
    images: Annotated[
        Path | None, typer.Option(help="Folder of real data sets; phantoms without it.")
    ] = None,
    kill: Annotated[
        str,
        typer.Option(
            help="once: each kind of process; all: at each of three moments (an hour); none."
        ),
    ] = "once",
    separate: Annotated[
        bool,
        typer.Option(
            "--separate",
            help="As root: each hospital in a network namespace, one behind 4 Mbit/s and 1 % loss.",
        ),
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="Replace an earlier rehearsal.")] = False,
    as_json: Json = False,
) -> None:
    """Deploy a federation on this machine, kill its processes, and compare with the simulation.

    A coordinator and three hospitals run as separate processes on loopback, with TLS, keys, real
    enrolment and the front. Takes some minutes: Flower notices a dead process after a minute.
    """
    if kill not in ("once", "all", "none"):
        raise typer.BadParameter("use once, all or none", param_hint="--kill")
    from simulations import kills as killing
    from simulations import namespaces, rehearsal

    if again and (out / rehearsal.MARK).exists():
        shutil.rmtree(out)
    if separate and not namespaces.available():
        err.print("No network namespaces here: the hospitals share the machine's own network.")
        separate = False
    kills = {"once": killing.KILLS, "all": killing.ALL_KILLS, "none": ()}[kill]
    summary = rehearsal.run(
        out,
        images=images,
        kills=kills,
        separate=separate,
        epochs=10 if kill == "all" and images is None else 1,
        console=err,
    )
    _print_summary(summary, out, as_json=as_json)
    found = summary["rehearsal"]
    if not as_json:
        out_console.print(killing.table(found))
        same = "the same" if found["same_model"] and found["same_figures"] else "NOT the same"
        typer.echo(f"model and figures of the deployed study: {same} as the simulation's")
    if not (found["same_model"] and found["same_figures"]):
        raise typer.Exit(1)


cli_lab.register(app)


def _print_folders(folders: list[Path], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([str(folder) for folder in folders]))
    else:
        for folder in folders:
            typer.echo(f"made {folder}")  # not through rich: brackets in a path are no markup


def _print_summary(summary: dict[str, Any], run: Path, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(summary))
        return
    from simulations.across_tables import across_tables
    from simulations.tables import tables

    for table in (*tables(summary), *across_tables(summary)):
        out_console.print(table)
    for site, why in summary["refused"].items():
        typer.echo(f"{site} takes no part: {why}")
    typer.echo(
        f"normalisation: {summary['normalisation']}; initial weights: "
        f"{summary['weights']['source']}; {summary['seconds']['total']:.1f} s"
    )
    written = ("summary.json", "history.jsonl", "model.safetensors", "curves.png")
    names = ", ".join(name for name in written if (run / name).exists())
    typer.echo(f"written in {run}: {names}")


def main() -> None:
    """Run ``rarefed-sim``."""
    command_line.run(app, program="rarefed-sim")
