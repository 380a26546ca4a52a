"""The coordinator's command that hands a study's model on: export."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from common.command_line import err
from server.cli_sites import DEFAULT_FOLDER, Folder, Json, StudyId

out_console = Console()


def export(
    study: StudyId,
    out: Annotated[Path, typer.Argument(help="A new folder for the model, for example model.")],
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Write the network as ONNX too, compared with torch.")
    ] = False,
    images: Annotated[
        Path | None,
        typer.Option(help="Prepared images to compare on as well: a NumPy file, (N, C, S, S)."),
    ] = None,
    folder: Folder = DEFAULT_FOLDER,
    as_json: Json = False,
) -> None:
    """Write a study's model with its study file, history and cards into a new folder."""
    from server.config import ServerConfig
    from server.export import export as hand_on
    from server.studies import StudyFolder

    if images is not None and not onnx:
        raise typer.BadParameter("they are compared with ONNX: add --onnx", param_hint="--images")
    found = StudyFolder.find(ServerConfig.load(folder), study)
    with err.status("writing the model"):
        card = hand_on(found, out, onnx=onnx, images=images)
    if as_json:
        typer.echo(json.dumps(card))
        return
    _say(f"{out}: {card['study']} after {card['round']} of {card['rounds']} rounds.")
    _say(f"{card['model']}: SHA-256 {card['sha256']}")
    if onnx:
        made = card["onnx"]
        gap = f"{made['largest_difference']:.1e}"
        _say(f"{made['file']}: opset {made['opset']}, at most {gap} from torch.")
    _say(card["notice"])


def _say(line: str) -> None:
    out_console.print(line, highlight=False, soft_wrap=True, markup=False)
