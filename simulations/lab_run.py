"""Runs a lab: trains what is not there yet, and gathers what each row says of the same patients.

A training is what one or several rows come of, at one seed. Its folder is named after the digest of
all that it depends on, and holds ``result.json`` once it is whole: a lab that was stopped goes on
where it was, and a lab that was changed has other trainings.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from client.classical_features import check_installed
from client.weighted_metrics import Cases
from common.errors import FederationError, OutputError, RarefedError
from common.file_lock import locked
from common.files import canonical_json, sha256_of, write_json
from common.study import Study
from common.versions import software_version
from simulations import lab_hospitals
from simulations.lab import Kind, Loaded
from simulations.lab_ask import Recipe, Trained, train_and_ask
from simulations.lab_figures import mean_figures
from simulations.lab_networks import with_networks
from simulations.lab_predictions import Held, alone_at_home, cases_of, joined, read, write
from simulations.lab_rows import Line, lines, with_seed

FORMAT = 1
"""Of a training's folder; part of its digest."""
RESULT, TRAININGS = "result.json", "trainings"
_LOCK_SECONDS = 1.0
_TRAINED: Mapping[Kind, Trained] = {
    "federated": "federated",
    "tuned": "tuned",
    "alone": "alone",
    "alone_at_home": "alone",
    "ensemble": "alone",
    "pooled": "pooled",
    "classical": "classical",
}
"""What a row of each kind is made of."""
Watch = Callable[[str, int, int], None]
"""Called with a word on what is done, and with how many of how many trainings are there."""


class Result(NamedTuple):
    """What a line says at one seed."""

    said: Mapping[str, Held]
    """By task; empty where it failed."""
    facts: Mapping[str, Any]
    """As ``lab_ask.Facts`` has them; empty of a vote, and where it failed."""
    reason: str = ""
    """Why it failed."""


class Found(NamedTuple):
    """What came of a lab."""

    lines: Sequence[Line]
    results: Mapping[str, Sequence[Result]]
    """By line, then seed, in their order; a vote across the seeds has one."""
    seeds: Sequence[int]
    sites: Sequence[str]
    hospitals: str
    """Digest of what they hold."""


def run(
    loaded: Loaded, out: Path, *, threads: int, watch: Watch, tell: Callable[[str], None]
) -> Found:
    """Train all that a lab's rows need and is not below ``out`` yet.

    A training that fails is told and tried again the next time; the others go on.

    Args:
        loaded: The lab.
        out: Folder for the hospitals, the trainings and the tables.
        threads: Torch threads; 0 is all cores.
        watch: Called before and during each training.
        tell: Called before all trainings with each row that cannot apply, and why.

    Raises:
        DataError: As ``lab_hospitals.hospitals_of``.
        OutputError: ``out`` cannot be written.
        ServiceError: Another process works in ``out``.
        FederationError: Not one row can apply, or has come to a result.
    """
    lab_hospitals.check_there(loaded)
    if any(row.features == "handcrafted" for row in loaded.lab.rows.values()):
        check_installed()
    planned, seeds = with_networks(lines(loaded), tell), loaded.lab.seeds
    try:
        out.mkdir(parents=True, exist_ok=True)
        with locked(out / ".lock", seconds=_LOCK_SECONDS):
            hospitals = lab_hospitals.hospitals_of(loaded, out)
            found = _gathered(planned, seeds, hospitals, out, threads, watch)
    except OSError as error:
        raise OutputError(
            f"Cannot write to {out}: {error.strerror}.", remedy="Give another --out."
        ) from error
    if not any(result.said for of in found.results.values() for result in of):
        told = {f"{name}: {of[0].reason}" for name, of in found.results.items()}
        raise FederationError(
            "No row of the lab has come to a result:\n"
            + "\n".join(f"  - {line}" for line in sorted(told)),
            remedy="Correct the rows; what is there stays.",
        )
    return found


def _gathered(
    planned: Sequence[Line],
    seeds: Sequence[int],
    hospitals: Sequence[Path],
    out: Path,
    threads: int,
    watch: Watch,
) -> Found:
    digest = lab_hospitals.digest_of(hospitals)
    trained = [line for line in planned if line.study is not None]
    total = len({_key(line, seed, digest) for line in trained for seed in seeds})
    done: dict[str, Result] = {}
    results: dict[str, list[Result]] = {line.name: [] for line in planned}
    for line in planned:
        if line.study is None and line.vote is None:
            results[line.name] = [Result({}, {}, line.reason)] * len(seeds)
    for seed in seeds:  # seed by seed, so that a lab that is stopped has all rows of some
        for line in trained:
            key = _key(line, seed, digest)
            if key not in done:

                def tell(text: str, name: str = f"{line.name}, seed {seed}") -> None:
                    watch(f"{name}: {text}", len(done), total)

                tell("reading")
                done[key] = _training(line, seed, key, hospitals, out, threads, tell)
            results[line.name].append(_as_kind(line.kind, done[key]))
    for line in planned:
        if line.vote is not None:
            results[line.name] = _votes(line, planned, results, len(seeds))
    watch("drawing", total, total)
    return Found(planned, results, seeds, [folder.name for folder in hospitals], digest)


def _training(
    line: Line,
    seed: int,
    key: str,
    hospitals: Sequence[Path],
    out: Path,
    threads: int,
    tell: Callable[[str], None],
) -> Result:
    """Return what a training came to, from its folder if it is there."""
    recipe = _recipe(line, seed)
    study = recipe.study
    if (folder := _finished(out / TRAININGS, key)) is not None:
        return _kept(folder, study)
    folder = out / TRAININGS / f"{_slug(line.name)}-seed{seed}-{key[:12]}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        asked = train_and_ask(recipe, hospitals, folder, threads=threads, tell=tell)
    except RarefedError as error:
        reason = f"{type(error).__name__}: {error.message}"
        write_json(folder / "failure.json", {"row": line.name, "seed": seed, "reason": reason})
        return Result({}, {}, reason)
    for task, held in asked.said.items():
        write(folder / f"predictions-{task}.csv", held, study.tasks[task].classes)
    told = {"format": FORMAT, "key": key, "row": line.name, "seed": seed}
    told |= _told(recipe) | {"study": json.loads(study.wire()), "facts": asked.facts.plain()}
    write_json(folder / RESULT, told | {"software": software_version()})
    return _kept(folder, study)


def _kept(folder: Path, study: Study) -> Result:
    """Return a finished training; also one of just now, so that what is told is what is kept."""
    told = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    said = {
        task: read(folder / f"predictions-{task}.csv", of.classes)
        for task, of in study.tasks.items()
    }
    return Result(said, told["facts"])


def _finished(folder: Path, key: str) -> Path | None:
    """Return the folder of a finished training, whatever its row was called."""
    for found in sorted(folder.glob(f"*-{key[:12]}/{RESULT}")):
        if json.loads(found.read_text(encoding="utf-8")).get("key") == key:
            return found.parent
    return None


def _key(line: Line, seed: int, hospitals: str) -> str:
    """Return the digest of all that a training depends on."""
    recipe = _recipe(line, seed)
    files = [member.backbone.weights_file for member in recipe.study.members]
    weights = [None if f is None or not f.is_file() else _sha256(f) for f in files]
    told = {
        "format": FORMAT,
        "software": software_version(),
        "study": recipe.study.digest(),
        "weights": weights if recipe.study.ensemble else weights[0],
        "hospitals": hospitals,
    }
    told |= _told(recipe)
    return hashlib.sha256(canonical_json(told)).hexdigest()


def _recipe(line: Line, seed: int) -> Recipe:
    assert line.study is not None  # noqa: S101 - of lines with a study alone
    study = with_seed(line.study, seed)
    return Recipe(_TRAINED[line.kind], study, line.rounds_after, line.classical)


def _told(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe without its study, as JSON has it."""
    told = {"trained": recipe.trained, "rounds_after": recipe.rounds_after}
    return told | ({} if recipe.classical is None else {"classical": recipe.classical._asdict()})


@cache
def _sha256(file: Path) -> str:
    return sha256_of(file)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-")[:60] or "row"


def _as_kind(kind: Kind, result: Result) -> Result:
    """Return what a row of a kind says, of what the sites' own models say."""
    if kind == "alone_at_home":
        return result._replace(said={t: alone_at_home(of) for t, of in result.said.items()})
    if kind == "ensemble":
        return result._replace(said={t: joined([of], [1.0]) for t, of in result.said.items()})
    return result


def _votes(
    line: Line, planned: Sequence[Line], results: Mapping[str, Sequence[Result]], seeds: int
) -> list[Result]:
    """Return what a vote says at each seed, or of all seeds at once."""
    assert line.vote is not None  # noqa: S101 - of votes alone
    studies = {other.name: other.study for other in planned}
    if not line.vote.across_seeds:
        by_seed = [[(name, results[name][i]) for name in line.vote.of] for i in range(seeds)]
    else:
        by_seed = [[(name, result) for name in line.vote.of for result in results[name]]]
    return [_vote(line, members, studies) for members in by_seed]


def _vote(
    line: Line, members: Sequence[tuple[str, Result]], studies: Mapping[str, Study | None]
) -> Result:
    failed = sorted({name for name, result in members if not result.said})
    if failed:
        return Result({}, {}, f"without a result of {', '.join(failed)} there is no vote")
    said = {}
    for task in members[0][1].said:
        weights = [1.0] * len(members)
        if line.vote is not None and line.vote.weights == "validation":
            weights = [_validation_auroc(studies[n], r.said[task], task) for n, r in members]
        try:
            said[task] = joined([result.said[task] for _, result in members], weights)
        except ValueError as error:
            return Result({}, {}, f"{task}: {error}")
    facts = [result.facts for _, result in members]
    total = {key: _total(facts, key) for key in ("trainable", "bytes_per_round", "seconds")}
    return Result(said, total)


def _validation_auroc(study: Study | None, held: Held, task: str) -> float:
    """Return what a member weighs; 0.5, that of chance, where AUROC is not defined."""
    assert study is not None  # noqa: S101 - members have been trained
    models: list[Cases] = cases_of(held, study.tasks[task], "validation")
    found = mean_figures(models)["auroc"] if models else None
    return 0.5 if found is None else float(np.clip(found, 1e-6, 1.0))


def _total(facts: Sequence[Mapping[str, Any]], key: str) -> float | None:
    known = [of[key] for of in facts]
    return None if None in known else sum(known)
