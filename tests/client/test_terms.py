"""Laws of what a hospital is told before it approves a study."""

from collections.abc import Callable
from typing import Any

import pytest

from client.config import SiteConfig
from client.terms import ATTENTION, lines_of, terms_of
from client.training_terms import MEMBERS
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


@pytest.mark.parametrize(
    ("sections", "name", "said"),
    [
        ({}, "trains", "all layers, in all rounds"),
        ({"training": {"train": "last:1"}}, "trains", "the last stage and the heads, in all"),
        (
            {"rounds": 9, "training": {"train": "last:2", "phases": [
                {"rounds": 1, "train": "head"}, {"rounds": 3, "train": "last:1"}]}},
            "trains",
            "in round 1; the last stage and the heads in rounds 2 to 4; then the last 2 stages",
        ),
        ({"training": {"unfreeze_every": 2}}, "trains", "after every 2 rounds one more stage"),
        ({"training": {"unfreeze_every": 1}}, "trains", "after each round one more stage"),
        ({}, "stays here", "nothing of the network"),
        ({}, "commands here afterwards", "what the hospital likes"),
        (
            {"evaluation": {"classical": ["svm", "elm"], "tuned_rounds": 4}},
            "commands here afterwards",
            "svm, elm, fitted to this site's patients; it may be trained 4 rounds further. None",
        ),
        ({"federation": {"personal": "head"}}, "stays here", "the heads: each site"),
        ({"backbone": {"normalisation": "local"}}, "stays here", "batch normalisation: each site"),
        ({}, "discriminator", "none"),
        (
            {"training": {"adversarial_weight": 0.5, "adversarial_sites": 3}},
            "discriminator",
            "the coordinator and all sites could tell how this site's images differ",
        ),
        ({}, "images from elsewhere", "as much as this site's own"),
        (
            {"training": {"source_weighting": "similarity"}},
            "images from elsewhere",
            "by how like this site's own they are",
        ),
        ({}, "validation figures decide", "no figures: all rounds are made"),
        (
            {"rounds": 20, "federation": {"early_stopping": {"patience": 4}}},
            "validation figures decide",
            "ends early, after 4 rounds without a better figure",
        ),
        ({"federation": {"keep": "best"}}, "validation figures decide", "which round's model"),
        (
            {"rounds": 20, "training": {"schedule": {"kind": "plateau"}}},
            "validation figures decide",
            "when learning rates fall",
        ),
        (
            {"federation": {"average_last": 2}},
            "validation figures decide",
            "It ends with the mean of the last 2 rounds' models",
        ),
        (
            {"ensemble": [{}, {"seed": 1}], "federation": {"votes": "validation"}},
            "validation figures decide",
            "what each member of the ensemble weighs",
        ),
    ],
)  # fmt: skip
def test_the_way_of_the_training_is_told(
    sections: dict[str, Any],
    name: str,
    said: str,
    make_study: Callable[..., Study],
    make_hospital: Callable[..., SiteConfig],
) -> None:
    """What trains when, what stays, who is told apart, and what figures decide, in words."""
    terms = terms_of(make_study(**sections), make_hospital())
    assert said in dict(lines_of(terms))[name]


def test_members_figures_are_told(
    make_study: Callable[..., Study], make_hospital: Callable[..., SiteConfig]
) -> None:
    """They are said to be reported where they decide what the members weigh, and only there."""
    config, ensemble = make_hospital(), [{}, {"seed": 1}]
    weighed = make_study(ensemble=ensemble, federation={"votes": "validation"})
    assert MEMBERS in terms_of(weighed, config)["reported"]
    assert MEMBERS not in terms_of(make_study(ensemble=ensemble), config)["reported"]
