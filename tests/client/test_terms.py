"""Laws of what a hospital is told before it approves a study."""

from collections.abc import Callable

from client.config import SiteConfig
from client.terms import ATTENTION, lines_of, terms_of
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
        "no differential privacy",
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


def test_privacy_is_told_as_it_will_be(
    make_study: Callable[..., Study], make_hospital: Callable[..., SiteConfig]
) -> None:
    """The epsilon is the smaller of study and hospital, and no loss is said to be reported."""
    study, config = make_study(privacy={"epsilon": 8.0, "delta": 1e-3}), make_hospital()
    limits = config.limits.model_copy(update={"study_epsilon": 3.0, "delta": 1e-4})
    theirs = terms_of(study, config)
    ours = terms_of(study, config.model_copy(update={"limits": limits}))
    assert "epsilon 8 at delta 0.001" in theirs["privacy"]
    assert "epsilon 3 at delta 0.0001" in ours["privacy"]
    assert "mean training loss" not in " ".join(theirs["reported"])
    assert len(theirs["reported"]) == len(terms_of(make_study(), config)["reported"])


def test_the_coordinators_promise_is_told(
    make_study: Callable[..., Study], make_hospital: Callable[..., SiteConfig]
) -> None:
    """What it says it does with the changes, and that nobody but it can know."""
    federation, config = {"weighting": "equal"}, make_hospital()
    told = [
        terms_of(make_study(federation=federation, central_privacy=central), config)
        for central in (
            {"noise_multiplier": 2.5, "clip_norm": 0.75},
            {"noise_multiplier": 1.0, "clipping": "adaptive", "target_quantile": 0.9},
        )
    ]
    promises = [terms["central_privacy"] for terms in told]
    assert all("must be trusted for it" in promise for promise in promises)
    assert "shortens each site's change to 0.75" in promises[0]
    assert "2.5 times" in promises[0]
    assert "to 1 at first, then to what 90% of the sites keep to" in promises[1]
    assert ("central noise", promises[0]) in lines_of(told[0])
    assert terms_of(make_study(), config)["central_privacy"].startswith("none")


def test_attention_is_told_where_it_may_leave(
    make_study: Callable[..., Study], make_hospital: Callable[..., SiteConfig]
) -> None:
    """It is said to be reported where the study asks for it and the hospital lets it go."""
    config = make_hospital()
    lets = config.limits.model_copy(update={"attention": "report"})
    open_ = config.model_copy(update={"limits": lets})
    asked = make_study(evaluation={"attention": "hirescam"})
    assert ATTENTION in terms_of(asked, open_)["reported"]
    for study, site in ((asked, config), (make_study(), open_), (make_study(), config)):
        assert ATTENTION not in terms_of(study, site)["reported"]
