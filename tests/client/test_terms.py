"""Laws of what a hospital is told before it approves a study."""

from collections.abc import Callable

from client.config import SiteConfig
from client.terms import lines_of, terms_of
from common.study import Study


def test_everything_that_matters_is_told(
    make_study: Callable[..., Study], make_hospital: Callable[..., SiteConfig]
) -> None:
    """Tasks, classes, rounds, epochs, sizes, weights, privacy, reports and digest are in it."""
    study, config = make_study(("ct", "mr")), make_hospital()
    terms = terms_of(study, config)
    text = "\n".join(f"{name} {value}" for name, value in lines_of(terms))
    for word in (
        "ct: CT, normal, gaucher",
        "mr: MR, none, mild, severe (no data here)",
        "test_resnet",
        "32 x 32",
        "start.safetensors",
        "3 rounds of 1 epochs",
        "batches of 4",
        "no differential privacy yet",
        "held-out patients, counted",
        "histograms",
        "change of every travelling array",
        study.digest(),
    ):
        assert word in text
    assert terms["most_trainings"] == study.rounds + config.limits.extra_rounds


def test_only_the_name_of_a_weights_file_is_told(
    make_study: Callable[..., Study], make_hospital: Callable[..., SiteConfig]
) -> None:
    """The folder of a weights file is the coordinator's own affair."""
    study = make_study(backbone={"weights": "/home/anna/start.safetensors"})
    assert terms_of(study, make_hospital())["weights"] == "start.safetensors"
