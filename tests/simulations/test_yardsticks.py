"""Laws of what the federation is measured against."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import accuracy_score, roc_auc_score
from torch import nn

from client.alone import train_alone
from client.config import SiteConfig
from client.dataset import Images
from client.evaluate import logits_of
from client.own_rounds import train_rounds
from client.site import Site
from common.metrics import METRICS
from common.models import FederatedModel
from common.study import Study
from server.initial_weights import initial_model
from simulations import yardsticks
from simulations.federation import find_hospitals, play
from simulations.run import read_summary

StudyOf = Callable[..., Study]
CPU = torch.device("cpu")


def sites_of(hospitals: Path) -> list[Site]:
    return [Site(SiteConfig.load(folder)) for folder in find_hospitals(hospitals)]


def trained_alone(study: Study, site: Site) -> FederatedModel:
    images = yardsticks._images(study, site, "train")
    start = initial_model(study).model
    return train_alone(start, images, study, site=site.config.name, device=CPU)


def measure(
    study: Study,
    sites: list[Site],
    start: FederatedModel,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    return yardsticks.judge(study, yardsticks.train_and_ask(study, sites, start, tell))


def counted_steps(model: FederatedModel) -> int:
    """Return the training batches that batch norm's own counter has seen."""
    (count,) = {
        int(module.num_batches_tracked)
        for module in model.modules()
        if isinstance(module, nn.BatchNorm2d) and module.num_batches_tracked is not None
    }
    return count


def close(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two models' figures are those of the same probabilities, but for rounding."""
    return all(one[name] == pytest.approx(other[name], abs=2e-3) for name in METRICS)


@pytest.mark.parametrize("epochs", [1, 2])
def test_alone_is_what_a_federation_of_one_would_be(
    small: Path, study_of: StudyOf, tmp_path: Path, epochs: int
) -> None:
    """A site alone makes the steps it makes in the federation, on the same batches."""
    study = study_of("spots", training={"local_epochs": epochs})
    folder = find_hospitals(small)[0]
    outcome = play(study, [folder], tmp_path / "run", threads=1).outcome
    (site,) = [Site(SiteConfig.load(folder))]
    model = trained_alone(study, site)
    federated = [record.training["hospital-1"]["steps"] for record in outcome.records[:-1]]
    assert counted_steps(model) == sum(step for step in federated if step)
    measured = measure(study, [site], initial_model(study).model)
    last = outcome.records[-1].tasks["spots"]["test"]["pooled"]
    assert last["accuracy"] == measured["alone"]["spots"]["accuracy"]
    assert close(last, measured["alone"]["spots"])


def test_pooled_makes_the_steps_of_all_sites(finished: Path, long_study: Study) -> None:
    """One model on everybody's images makes as many steps as all sites made in sum."""
    study = long_study
    sites = sites_of(finished.parent / "hospitals")
    parts = [yardsticks._images(study, site, "train") for site in sites]
    patients, model = yardsticks.pooled_patients(study, sites), initial_model(study).model
    assert train_rounds(model, patients, study, device=CPU).rounds == study.rounds
    alone = [counted_steps(trained_alone(study, site)) for site in sites]
    assert patients.steps is not None
    assert counted_steps(model) == sum(alone) == study.rounds * patients.steps
    assert {task: len(part) for task, part in patients.train.items()} == {
        task: sum(len(part[task]) for part in parts if task in part) for task in study.tasks
    }


def test_training_leaves_the_start_as_it_was(small: Path, study_of: StudyOf) -> None:
    """Every yardstick begins with the same weights: none changes those of the next."""
    study = study_of("spots")
    start = initial_model(study).model
    before = {name: value.clone() for name, value in start.state_dict().items()}
    measure(study, sites_of(small)[:1], start)
    assert all(torch.equal(value, before[name]) for name, value in start.state_dict().items())


def test_the_ensemble_of_one_site_is_that_site(small: Path, study_of: StudyOf) -> None:
    """The mean of one model's probabilities is those probabilities."""
    study = study_of("spots", "bars")
    sites = [site for site in sites_of(small) if site.config.name != "hospital-2"]
    found = measure(study, sites, initial_model(study).model)
    for task in study.tasks:
        assert found["ensemble"][task]["accuracy"] == found["alone"][task]["accuracy"]
        assert close(found["ensemble"][task], found["alone"][task])


def test_all_are_judged_on_the_same_patients(finished: Path) -> None:
    """Federated, alone, ensemble and pooled say the same numbers of patients and images."""
    summary = read_summary(finished)
    for task, found in summary["tasks"].items():
        judged = [found["pooled"]]
        for yardstick in summary["yardsticks"].values():
            judged += [yardstick[task], *yardstick[task].get("per_site", {}).values()]
        assert len({(one["n_patients"], one["n_images"]) for one in judged}) == 1
        patients = [found["patients"]["pooled"], *(one["patients"] for one in judged[1:])]
        assert {(one["n_patients"], one["n_images"]) for one in patients} == {
            (judged[0]["n_patients"],) * 2
        }


def test_alone_is_the_mean_over_the_sites(finished: Path) -> None:
    """The figures of alone are the means of the sites' own, which stand beneath."""
    for found in read_summary(finished)["yardsticks"]["alone"].values():
        for name in METRICS:
            values = [site[name] for site in found["per_site"].values()]
            defined = [value for value in values if value is not None]
            assert found[name] == (pytest.approx(np.mean(defined)) if defined else None)
        accuracies = [site["patients"]["accuracy"] for site in found["per_site"].values()]
        assert found["patients"]["accuracy"] == pytest.approx(np.mean(accuracies))


def test_figures_are_those_of_scikit_learn(finished: Path, long_study: Study) -> None:
    """Alone and ensemble, computed again from the models' own scores, agree with scikit-learn."""
    study, summary = long_study, read_summary(finished)["yardsticks"]
    sites = sites_of(finished.parent / "hospitals")
    test = yardsticks._merged([yardsticks._images(study, site, "test") for site in sites])
    scores: dict[str, list[Any]] = {task: [] for task in study.tasks}
    for site in sites:
        model = trained_alone(study, site)
        for task in site.prepare(study).tasks:
            logits = logits_of(model, test[task], task, device=CPU)
            scores[task].append(softmax(logits.astype(float), axis=1))
            check(
                summary["alone"][task]["per_site"][site.config.name], scores[task][-1], test[task]
            )
    for task in study.tasks:
        check(summary["ensemble"][task], np.mean(scores[task], axis=0), test[task])


def check(stated: dict[str, Any], probabilities: Any, images: Images) -> None:
    truth = images.labels.numpy()
    assert stated["accuracy"] == accuracy_score(truth, probabilities.argmax(axis=1))
    auroc = roc_auc_score(truth, probabilities[:, 1])
    assert abs(stated["auroc"] - auroc) <= stated["auroc_bound"] + 1e-9


def test_grey_and_colour_are_laid_together(small: Path, study_of: StudyOf) -> None:
    """Where one site has grey images and another colour, grey ones get three equal channels."""
    study = study_of()
    grey, colour = (
        yardsticks._images(study, site, "train")
        for site in (sites_of(small)[0], sites_of(small)[2])
    )
    merged = yardsticks._merged([grey, {"spots": colour["bars"]}])["spots"]
    first = merged.pixels[: len(grey["spots"])]
    assert merged.pixels.shape[1] == 3
    assert torch.equal(first, grey["spots"].pixels[:].expand(-1, 3, -1, -1))
    assert torch.equal(merged.pixels[len(first) :], colour["bars"].pixels[:])
    assert merged.patients == grey["spots"].patients + colour["bars"].patients


def test_each_site_has_its_place(small: Path, study_of: StudyOf) -> None:
    """The places of the sites cut the images laid together into what each site holds."""
    study = study_of("spots", rounds=1)
    sites = sites_of(small)[:2]
    asked = yardsticks.train_and_ask(study, sites, initial_model(study).model, lambda _: None)
    for site in sites:
        own = site.prepare(study).tasks["spots"].splits["test"]
        place = asked.places["spots"][site.config.name]
        assert asked.test["spots"].patients[place] == own.patients
        assert torch.equal(asked.test["spots"].pixels[place], own.pixels[:])
        model = trained_alone(study, site)
        said = logits_of(model, own, "spots", device=CPU)
        assert np.allclose(asked.alone["spots"][site.config.name][place], said, atol=1e-5)


def test_it_says_what_it_is_doing(small: Path, study_of: StudyOf) -> None:
    """Each training is announced, so that a long run does not look dead."""
    said: list[str] = []
    study = study_of("spots", rounds=1)
    measure(study, sites_of(small)[:2], initial_model(study).model, said.append)
    assert len(said) == 3
    assert "hospital-1" in said[0]
    assert "pooled" in said[-1]
