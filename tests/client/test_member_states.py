"""Laws of what a site says of each member of an ensemble, and of what it is told they weigh."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from client.config import SiteConfig
from client.evaluate import logits_apart, logits_of, measured
from client.site import Site, respond
from common import metrics, metrics_wire
from common.arrays import digest
from common.held_out import SPLIT_OF
from common.layout import votes_group, votes_name
from common.messages import Order, Reply, order_to_record, reply_from_record
from common.models import FederatedModel, build_model
from common.study import Study
from common.weights import put, take

Make = Callable[..., Any]
CPU = torch.device("cpu")
VOTES: dict[str, Any] = {"votes": "validation"}
PAIR: list[dict[str, Any]] = [{}, {"name": "test_efficientnet", "weights": "other.safetensors"}]
MEMBERS = ("validation.0", "validation.1")
SPLITS = (*("train",) * 4, *("validation", "test") * 4)


@pytest.fixture
def study_of(make_study: Make) -> Callable[..., Study]:
    """Return the maker of a study of two members that vote by their scores."""

    def make(**sections: Any) -> Study:
        federation = VOTES | sections.pop("federation", {})
        study: Study = make_study(ensemble=PAIR, federation=federation, **sections)
        return study

    return make


@pytest.fixture
def config(make_hospital: Make) -> SiteConfig:
    made: SiteConfig = make_hospital(splits=SPLITS)
    return made


def answered(site: Site, order: Order) -> Reply:
    return reply_from_record(respond(site, order_to_record(order)))


def voting(order: Order, *votes: float) -> Order:
    """Return an order that says what the members weigh."""
    group = {votes_name("ct"): np.array(votes, np.float32)}
    return order._replace(groups={**order.groups, votes_group("ct"): group})


def alone(order: Order) -> list[FederatedModel]:
    """Return a network of each member by itself, as an order has it."""
    joined = build_model(order.study)
    assert order.base is not None
    for arrays in (order.base, *order.groups.values()):
        put(joined, arrays)
    whole, found = take(joined, joined.state_dict()), []
    for number, study in enumerate(order.study.members):
        single, inner = build_model(study), f".members.{number}."
        put(single, {name.replace(inner, "."): v for name, v in whole.items() if inner in name})
        found.append(single)
    return found


def test_each_member_is_measured_as_it_would_be_alone(
    config: SiteConfig, study_of: Make, make_order: Make
) -> None:
    """Its state is that of its own network on the validation patients, each counting once."""
    study = study_of()
    site, order = Site(config), make_order(study, "evaluate", number=4)
    reply = answered(site, order)
    assert set(reply.metrics) == {("ct", name) for name in (*SPLIT_OF, *MEMBERS)}
    images = site.prepare(study).tasks["ct"].splits["validation"]
    for name, single in zip(MEMBERS, alone(order), strict=True):
        logits = logits_of(single, images, "ct", device=CPU)
        state = measured(logits, images, study.tasks["ct"]).of_patients
        assert state is not None
        sent = metrics_wire.from_arrays(reply.metrics["ct", name], 2, 1)
        assert (sent.n_patients, sent.n_images) == (4, 4)
        assert np.array_equal(sent.confusion, state.confusion)
        assert sent.loss_sum == pytest.approx(state.loss_sum, rel=1e-4)
        assert not metrics.told(sent)


def test_members_that_are_scored_by_their_loss_tell_no_ranking(
    config: SiteConfig, study_of: Make, make_order: Make
) -> None:
    """All bins of their histograms are one; the loss is as it would be of full ones."""
    studies = [study_of(federation={"votes": "validation", "score": s}) for s in ("auroc", "loss")]
    by_auroc, by_loss = (
        answered(Site(config), make_order(study, "evaluate", number=4)) for study in studies
    )
    for name in MEMBERS:
        full, sent = (
            metrics_wire.from_arrays(reply.metrics["ct", name], 2, 1)
            for reply in (by_auroc, by_loss)
        )
        assert sent.loss_sum == full.loss_sum
        assert np.array_equal(sent.confusion, full.confusion)
        assert np.count_nonzero(full.histogram.any(axis=1)) > 1
        for table in (sent.histogram, sent.histogram_upper):
            assert np.count_nonzero(table.sum(axis=1)) == 1
        assert (sent.histogram != sent.histogram_upper).any()
        assert np.count_nonzero(sent.calibration[:, 0]) == 1
    whole = [
        metrics_wire.from_arrays(reply.metrics["ct", "validation"], 2, 1)
        for reply in (by_auroc, by_loss)
    ]
    assert np.array_equal(whole[0].histogram, whole[1].histogram)


@pytest.mark.parametrize(
    "sections",
    [
        {"training": {"train": "head"}},
        {"evaluation": {"normalisation": "adapted"}},
        {"backbone": {"normalisation": "local"}},
    ],
    ids=["kept features", "adapted", "local"],
)
def test_the_mean_of_the_members_is_what_the_network_says(
    sections: dict[str, Any], config: SiteConfig, study_of: Make, make_order: Make
) -> None:
    """Logits of each by itself, mixed by hand as they weigh, are those of the whole network."""
    study = study_of(**sections)
    site = Site(config)
    assert not answered(site, voting(make_order(study, "evaluate", number=4), 0.75, 0.25)).refusal
    prepared = site.prepare(study)
    images, features = prepared.tasks["ct"].splits["test"], prepared.features.in_round(4)
    assert (features is not None) == (study.training.train == "head")
    asked = {"device": CPU, "features": features, "adapted": study.evaluation.adapted}
    whole = _softmax(logits_of(prepared.model, images, "ct", **asked))
    each = _softmax(logits_apart(prepared.model, images, "ct", **asked))
    assert each.shape == (2, *whole.shape)
    np.testing.assert_allclose(0.75 * each[0] + 0.25 * each[1], whole, rtol=1e-5)


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    odds = np.exp(logits.astype(np.float64))
    found: NDArray[np.float64] = odds / odds.sum(axis=-1, keepdims=True)
    return found


def test_training_neither_gets_votes_nor_sends_any(
    config: SiteConfig, study_of: Make, make_order: Make
) -> None:
    """An order to train has them equal again; its reply has no change of them and no members."""
    study, site = study_of(), Site(config)
    votes = site.prepare(study).model.get_buffer(votes_name("ct"))
    answered(site, voting(make_order(study, "evaluate", number=4), 0.75, 0.25))
    assert votes.tolist() == [0.75, 0.25]
    order = make_order(study, number=1)
    reply = answered(site, order)
    assert votes.tolist() == [0.5, 0.5]
    assert set(reply.groups) == set(order.groups)
    assert votes_name("ct") not in {name for of in reply.groups.values() for name in of}
    assert set(reply.metrics) == {("ct", name) for name in SPLIT_OF}


@pytest.mark.parametrize("votes", [(0.9, 0.9), (1.5, -0.5), (float("nan"), 1.0), (0.0, 0.0)])
def test_votes_that_are_no_shares_are_refused(
    votes: tuple[float, float], config: SiteConfig, study_of: Make, make_order: Make
) -> None:
    """A coordinator that sends such gets a code, and the next good order is answered."""
    study, site = study_of(), Site(config)
    order = make_order(study, "evaluate", number=4)
    assert answered(site, voting(order, *votes)).refusal == "order"
    assert answered(site, voting(order, 1.0, 0.0)).refusal == ""


def test_an_order_to_train_with_votes_is_refused(
    config: SiteConfig, study_of: Make, make_order: Make
) -> None:
    """So is one that measures and has none."""
    study, site = study_of(), Site(config)
    assert answered(site, voting(make_order(study), 0.5, 0.5)).refusal == "order"
    order = make_order(study, "evaluate", number=4)
    groups = {name: arrays for name, arrays in order.groups.items() if name != votes_group("ct")}
    assert answered(site, order._replace(groups=groups)).refusal == "order"


@pytest.mark.parametrize("limits", [{"minimum_patients": 3}, {"histogram_patients": 2}])
def test_members_leave_as_the_ensemble_does(
    limits: dict[str, int], config: SiteConfig, study_of: Make, make_order: Make
) -> None:
    """Of too few patients neither leaves; where bins are merged, the members' are too."""
    study = study_of()
    strict = config.limits.model_copy(update=limits)
    reply = answered(
        Site(config.model_copy(update={"limits": strict})), make_order(study, "evaluate", number=4)
    )
    assert not reply.refusal
    if "minimum_patients" in limits:  # of each class there are two
        assert not reply.metrics
        return
    assert {name for _, name in reply.metrics} >= set(MEMBERS)
    for name in MEMBERS:
        state = metrics_wire.from_arrays(reply.metrics["ct", name], 2, 1)
        assert not np.any(state.histogram == 1)


def test_equal_votes_are_no_matter_of_orders_and_replies(
    config: SiteConfig, study_of: Make, make_order: Make
) -> None:
    """A study that leaves them equal asks for no state of a member, and has no such array."""
    study = study_of(federation={"votes": "equal"})
    order = make_order(study, "evaluate", number=4)
    assert votes_group("ct") not in order.groups
    reply = answered(Site(config), order)
    assert set(reply.metrics) == {("ct", name) for name in SPLIT_OF}
    assert digest(order.base) == digest(make_order(study_of(), "evaluate", number=4).base)
