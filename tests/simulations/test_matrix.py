"""Laws of models across sites and of what each site gained: by hand, and on a run's own models."""

from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rich.console import Console
from sklearn.metrics import roc_auc_score

from client.bootstrap import Estimate, differences
from client.config import SiteConfig
from client.dataset import Images
from client.evaluate import logits_of
from client.final_model import final_model, shared_model
from client.local_figures import patient_cases
from client.site import Site
from client.store import FINAL, SiteStore
from common.metrics import METRICS
from common.seeds import stream
from common.study import Study
from server.checkpoint import MODEL
from simulations import across, benefit, matrix
from simulations.across import Across, Federated
from simulations.across_tables import across_tables
from simulations.federation import find_hospitals, play
from simulations.run import read_summary, run_simulation
from simulations.yardsticks import Asked, held_out

StudyOf = Callable[..., Study]
Floats = NDArray[np.float32]
CPU = torch.device("cpu")
SITES = ("a", "b", "c")
N = 20
"""Test patients of each of two hospitals; the third has none of the task."""
LABELS = np.arange(2 * N) % 2
GOOD, POOR, USELESS = 2.0, 0.8, 0.0


def said(strength: float, seed: int) -> Floats:
    """Return logits of all patients: noise, and as much more for the ill as ``strength``."""
    odds = np.random.default_rng(seed).normal(strength * LABELS)
    return np.stack([np.zeros_like(odds), odds], axis=1).astype(np.float32)


def asked_of(alone: dict[str, Floats], labels: NDArray[Any] = LABELS) -> Asked:
    """Return what yardsticks would say at two hospitals, their patients laid together."""
    n = len(labels)
    images = Images(
        torch.zeros((n, 1, 1, 1)), torch.from_numpy(labels), tuple(f"p{i:03d}" for i in range(n))
    )
    places = {"spots": {"a": slice(0, N), "b": slice(N, n)}}
    ensemble = {"spots": said(GOOD, 5).astype(float)}
    return Asked({"spots": images}, places, {"spots": alone}, ensemble, {"spots": said(GOOD, 6)})


def compared(
    study: Study,
    *,
    personal: dict[str, Floats] | None = None,
    labels: NDArray[Any] = LABELS,
    shared: Floats | None = None,
) -> Across:
    """Compare at two hospitals: alone is poor at a, and useless at b."""
    alone = {"a": said(POOR, 1), "b": said(USELESS, 2)}
    federated = Federated(
        {"spots": said(GOOD, 3) if shared is None else shared},
        {"spots": personal or {}},
        {"b": "why"} if personal and "b" not in personal else {},
    )
    return across.compare(study, SITES, asked_of(alone, labels), federated)


def row_of(found: Across, model: str, site: str | None = None) -> dict[str, Any]:
    rows = found.matrix["spots"]["rows"]
    (row,) = [row for row in rows if (row["model"], row["site"]) == (model, site)]
    return dict(row)


@pytest.fixture
def study(study_of: StudyOf) -> Study:
    """A study of one task of two classes."""
    return study_of("spots")


def test_auroc_is_that_of_scikit_learn(study: Study) -> None:
    """Each model at each site, and over all patients, has the AUROC of its own scores."""
    personal = {"a": said(GOOD, 7), "b": said(GOOD, 8)}
    found, parts = compared(study, personal=personal), {"a": slice(0, N), "b": slice(N, 2 * N)}
    known = {
        ("alone", "a"): said(POOR, 1), ("alone", "b"): said(USELESS, 2),
        ("personal", "a"): personal["a"], ("personal", "b"): personal["b"],
        ("global", None): said(GOOD, 3), ("ensemble", None): said(GOOD, 5),
        ("pooled", None): said(GOOD, 6),
    }  # fmt: skip
    for (model, site), logits in known.items():
        row, odds = row_of(found, model, site), logits[:, 1] - logits[:, 0]
        for place, part in parts.items():
            auroc = roc_auc_score(LABELS[part], odds[part])
            assert row["per_site"][place]["auroc"]["value"] == pytest.approx(auroc)
        assert row["pooled"]["auroc"]["value"] == pytest.approx(roc_auc_score(LABELS, odds))
    homes = {("alone_at_home", None), ("personal_at_home", None)}
    rows = found.matrix["spots"]["rows"]
    assert {(row["model"], row["site"]) for row in rows} == known.keys() | homes


def test_at_home_each_site_has_its_own_model(study: Study) -> None:
    """The row of models at home is the diagonal of the matrix."""
    found = compared(study, personal={"a": said(GOOD, 7), "b": said(GOOD, 8)})
    for model in ("alone", "personal"):
        home = row_of(found, f"{model}_at_home")
        for site in "ab":
            assert home["per_site"][site] == row_of(found, model, site)["per_site"][site]


def test_spread_is_over_the_sites(study: Study) -> None:
    """The worst site, the range and the standard deviation are those of the row's figures."""
    row = row_of(compared(study), "alone_at_home")
    values = {site: found["auroc"]["value"] for site, found in row["per_site"].items()}
    apart = row["spread"]["auroc"]
    assert values["b"] < values["a"]
    assert (apart["lowest"], apart["highest"]) == (values["b"], values["a"])
    assert apart["worst_site"] == "b"
    assert apart["std"] == pytest.approx(np.std(list(values.values()), ddof=1))


def test_sites_that_cannot_be_judged_are_named(study: Study) -> None:
    """A site without the task, or with one class alone, has words and never a number."""
    labels = np.where(np.arange(2 * N) < N, LABELS, 0)
    found = compared(study, labels=labels)
    table = found.matrix["spots"]
    assert table["left_out"] == {
        "b": "all of its 20 test patients have the class without",
        "c": "it has no images of this task",
    }
    assert table["sites"] == {"a": {"patients": N, "by_class": {"without": 10, "with": 10}}}
    assert all(list(row["per_site"]) == ["a"] for row in table["rows"])
    assert row_of(found, "global")["spread"]["auroc"] is None
    assert row_of(found, "global")["pooled"]["auroc"]["value"] is not None
    for site in "bc":
        of = found.benefit["spots"][site]
        assert of["figures"] == of["differences"] == of["verdicts"] == {}
        assert table["left_out"][site] in of["sentence"]


def test_a_site_without_test_patients_is_named(study: Study) -> None:
    """No test patients are said to be none."""
    asked = asked_of({"a": said(POOR, 1)[:N]}, LABELS[:N])
    asked = asked._replace(
        ensemble={"spots": said(GOOD, 5)[:N].astype(float)}, pooled={"spots": said(GOOD, 6)[:N]}
    )
    federated = Federated({"spots": said(GOOD, 3)[:N]}, {"spots": {}}, {})
    found = across.compare(study, SITES, asked, federated)
    assert found.matrix["spots"]["left_out"]["b"] == "it has no test patients"


def test_differences_are_paired(study: Study) -> None:
    """The difference at a site is that of both models on the same draws of its patients."""
    found = compared(study).benefit["spots"]["a"]
    images = asked_of({}).test["spots"]
    part = Images(images.pixels[:N], images.labels[:N], images.patients[:N])
    one, other = (
        patient_cases(logits[:N], part, study.tasks["spots"])
        for logits in (said(GOOD, 3), said(POOR, 1))
    )
    seed = stream(study.seed, "a", "bootstrap", "spots")
    expected = matrix.plain(differences(one, other, seed=seed))
    assert found["differences"]["global - alone"] == expected
    values = {model: of["auroc"]["value"] for model, of in found["figures"].items()}
    for pair, of in found["differences"].items():
        model = pair.split(" - ")[0]
        assert of["auroc"]["value"] == pytest.approx(values[model] - values["alone"])
    assert list(found["differences"]) == ["ensemble - alone", "global - alone"]


def test_a_site_gains_loses_or_cannot_be_told(study: Study) -> None:
    """What the interval leaves open is not called a gain; the number of patients is said."""
    assert benefit.verdict(Estimate(0.1, 0.01, 0.2)) == "gains"
    assert benefit.verdict(Estimate(-0.1, -0.2, -0.01)) == "loses"
    for low, high in ((-0.01, 0.2), (0.0, 0.1), (None, None)):
        assert benefit.verdict(Estimate(0.1, low, high)) == "cannot be told"
    gained = compared(study).benefit["spots"]["b"]
    assert gained["verdicts"]["global - alone"] == "gains"
    assert gained["sentence"].startswith("b gains by taking part: AUROC ")
    assert "global model" in gained["sentence"]
    assert "its 20 test patients" in gained["sentence"]
    lost = compared(study, shared=-said(GOOD, 3)).benefit["spots"]["a"]
    assert lost["sentence"].startswith("a loses by taking part: ")
    same = compared(study, shared=said(POOR, 1)).benefit["spots"]["a"]
    assert "cannot be told" in same["sentence"]
    assert "no draw tells the two apart" in same["sentence"]


def test_too_few_patients_of_a_class_tell_nothing(study: Study) -> None:
    """With four ill patients there is no interval, and so no verdict."""
    labels = np.where(np.arange(2 * N) < N, (np.arange(2 * N) < 4).astype(int), LABELS)
    found = compared(study, labels=labels).benefit["spots"]["a"]
    assert set(found["verdicts"].values()) == {"cannot be told"}
    assert "fewer than 5 patients" in found["sentence"]


def test_where_there_are_personal_models_they_are_what_a_site_gets(study: Study) -> None:
    """The sentence is about the personal model, and one that is missing is named."""
    found = compared(study, personal={"a": said(GOOD, 7)})
    assert "personal model" in found.benefit["spots"]["a"]["sentence"]
    assert "global model" in found.benefit["spots"]["b"]["sentence"]
    assert found.matrix["spots"]["no_personal"] == {"b": "why"}
    assert row_of(found, "personal_at_home")["pooled"] is None
    assert row_of(found, "personal", "a")["pooled"] is not None


def test_a_run_says_what_its_models_give(finished: Path) -> None:
    """The matrix' pooled figures are those of the yardsticks and the federation by patient."""
    summary = read_summary(finished)
    for task, table in summary["matrix"].items():
        rows = {row["model"]: row for row in table["rows"] if row["site"] is None}
        stated = {name: of[task]["patients"] for name, of in summary["yardsticks"].items()}
        stated = {
            "ensemble": stated["ensemble"], "pooled": stated["pooled"],
            "global": summary["tasks"][task]["patients"]["pooled"],
        }  # fmt: skip
        for model, figures in stated.items():
            found = rows[model]["pooled"]
            assert set(found) == set(METRICS) - {"auroc_bound"}
            assert found["accuracy"]["value"] == pytest.approx(figures["accuracy"])
            assert found["loss"]["value"] == pytest.approx(figures["loss"], rel=1e-5)
            bound = figures["auroc_bound"] + 1e-9
            assert abs(found["auroc"]["value"] - figures["auroc"]) <= bound
        sites = {**table["sites"], **table["left_out"]}
        assert sorted(sites) == summary["sites"]
        assert list(summary["benefit"][task]) == summary["sites"]


def test_personal_models_are_those_that_the_sites_keep(
    small: Path, study_of: StudyOf, tmp_path: Path
) -> None:
    """Global is what a newcomer would get, personal what each site has; one lost is named."""
    study = study_of("spots", rounds=1, backbone={"normalisation": "local"})
    folders = find_hospitals(small)[:2]
    play(study, folders, tmp_path / "run", threads=1)
    sites = [Site(SiteConfig.load(folder)) for folder in folders]
    test, places = held_out(study, sites, "test")
    found = across.ask(study, sites, test, places, tmp_path / "run" / MODEL)
    assert found.missing == {}
    for site in sites:
        own = final_model(site.config, study, device=CPU)
        logits = logits_of(own.model, test["spots"], "spots", device=CPU)
        assert np.array_equal(found.personal["spots"][site.config.name], logits)
        shared = shared_model(site.config, study, device=CPU)
        assert shared is not None
        logits = logits_of(shared.model, test["spots"], "spots", device=CPU)
        assert np.allclose(found.shared["spots"], logits, atol=1e-5)
    config = sites[1].config
    (SiteStore(config.state, study.digest())._folder / FINAL).unlink()
    found = across.ask(study, sites, test, places, tmp_path / "run" / MODEL)
    assert found.missing == {config.name: across.NO_PERSONAL}


@pytest.mark.parametrize(
    "sections",
    [{"federation": {"personal": "head"}}, {"evaluation": {"normalisation": "adapted"}}],
)
def test_models_are_asked_as_the_study_measures(
    small: Path, study_of: StudyOf, tmp_path: Path, sections: dict[str, Any]
) -> None:
    """The matrix agrees with the federation's own figures; without heads nothing is global."""
    study = study_of("spots", rounds=1, **sections)
    folders = find_hospitals(small)[:2]
    summary = run_simulation(study, folders, tmp_path / "run", threads=1, with_yardsticks=True)
    rows = {row["model"]: row for row in summary["matrix"]["spots"]["rows"] if row["site"] is None}
    assert (matrix.GLOBAL in rows) == ("federation" not in sections)
    measured = rows[matrix.GLOBAL if "evaluation" in sections else matrix.PERSONAL_AT_HOME]
    figures = summary["tasks"]["spots"]["patients"]["per_site"]
    assert set(figures) == set(measured["per_site"])
    for site, found in measured["per_site"].items():
        assert found["loss"]["value"] == pytest.approx(figures[site]["loss"], rel=1e-5)
    model = "global" if matrix.GLOBAL in rows else "personal"
    for said in summary["benefit"]["spots"].values():
        assert f"{model} model" in said["sentence"]


def test_tables_fit_a_terminal(study: Study) -> None:
    """No line is wider than 80 columns, no cell is cut, and every site and verdict is shown."""
    found = compared(study, personal={"a": said(GOOD, 7), "b": said(GOOD, 8)})
    summary = {"matrix": found.matrix, "benefit": found.benefit}
    console = Console(file=StringIO(), width=80)
    for table in across_tables(summary):
        console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for word in ("alone a", "personal, at home", "ensemble", "pooled data", "worst at", "std"):
        assert word in text
    assert "b gains by taking part" in " ".join(text.split())
    assert "it has no images of this task" in " ".join(text.split())
    assert not list(across_tables({"matrix": None, "benefit": None}))
