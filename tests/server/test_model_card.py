"""Laws of the model card: it says what the history says, and what is not known."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from common.attention import means
from common.study import Study
from server.card_facts import NOTICE, facts_of
from server.card_figures import figure_text, table
from server.history import RoundRecord
from server.model_card import markdown

HEADINGS = [
    "Model details", "Intended use", "Factors", "Metrics", "Evaluation data", "Training data",
    "Quantitative analyses", "Ethical considerations", "Caveats and recommendations",
]  # fmt: skip
COUNTED = {"patients": 30, "images": 40}


def make_study(**sections: Any) -> Study:
    values: dict[str, Any] = {
        "name": "lungs",
        "rounds": 2,
        "backbone": {"name": "test_resnet", "weights": "none", "image_size": 32},
        "tasks": {"lung": {"modality": "CT", "classes": ["no", "yes"], "positive": "yes"}},
    }
    return Study.parse(values | sections)


def figures(auroc: float | None, calibration: float = 0.1) -> dict[str, Any]:
    return {"auroc": auroc, "calibration_error": calibration, "n_patients": 9, "n_images": 12}


def point(threshold: float) -> dict[str, Any]:
    share = {"value": 0.9, "interval": [0.8, 0.95], "n": 40}
    names = ("sensitivity", "specificity", "ppv", "npv")
    return {"threshold": threshold, "probability": 0.6, **dict.fromkeys(names, share)}


@pytest.fixture
def records() -> list[RoundRecord]:
    """Two rounds and the last measurement; one site refuses once, another is silent."""
    found = [RoundRecord(n, n - 1, trained=n < 3, combined=n < 3) for n in (1, 2, 3)]
    for record in found:
        record.asked = ["north", "south", "west"]
        record.answered = ["north", "south"]
        record.declared = {
            site: {"lung": dict.fromkeys(("train", "validation", "test"), COUNTED)}
            for site in record.asked
        }
    found[0].refused = {"west": "budget"}
    found[1].silent = ["west"]
    found[2].answered = ["north", "south", "west"]
    found[2].each_image = {"south": ["lung"]}
    test = {
        "pooled": figures(0.9),
        "per_site": {"north": figures(0.95), "south": figures(0.8, 0.2), "west": figures(None)},
        "intervals": {"pooled": {"auroc": [0.85, 0.94]}, "per_site": {"north": {"auroc": None}}},
        "operating_points": {"yes": {"youden": point(0.4), "sensitivity": point(-0.2)}},
        "temperature": {
            "value": 1.7,
            "loss": {"before": 0.5, "after": 0.4},
            "calibration_error": {"before": 0.2, "after": 0.1},
        },
    }
    found[2].tasks = {"lung": {"test": test}}
    return found


def card_of(study: Study, records: list[RoundRecord], number: int = 2) -> dict[str, Any]:
    return {
        "study": study.name,
        "digest": study.digest(),
        "state": "finished",
        "round": number,
        "rounds": study.rounds,
        "model": "model.safetensors",
        "sha256": "ab" * 32,
        "arrays_sha256": "cd" * 32,
        "backbone": study.backbone.name,
        "image_size": study.backbone.image_size,
        "tasks": {name: task.model_dump(mode="json") for name, task in study.tasks.items()},
        "software": "1.0",
        "protocol": 1,
        **facts_of(study, records, number),
    }


def section(text: str, heading: str) -> str:
    return text.split(f"## {heading}\n")[1].split("\n## ", maxsplit=1)[0]


def test_the_card_has_the_headings_of_mitchell(records: list[RoundRecord]) -> None:
    """Every heading is there in its order, and the notice stands at the top and at the end."""
    study = make_study()
    text = markdown(card_of(study, records), study)
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == HEADINGS
    assert text.count(NOTICE) == 2
    assert NOTICE in text.split("## ")[0]


def test_the_card_says_how_the_study_ended(records: list[RoundRecord]) -> None:
    """Why it stopped early, whether its model is the best round's, or which were averaged."""
    plain = section(markdown(card_of(make_study(), records), make_study()), "Model details")
    assert "best" not in plain
    assert "mean" not in plain
    records[2].stopped = "Stopped early after round 2 of 9: nothing came of it."
    records[2].model_round = 1
    study = make_study(federation={"keep": "best"})
    card = card_of(study, records) | facts_of(study, records, 1)
    told = section(markdown(card, study), "Model details")
    assert f"- {records[2].stopped}\n" in told
    assert "- The model is that after round 1, the best on validation patients.\n" in told
    assert "Each site measured this model" in markdown(card, study)
    records[2].model_round, records[2].averaged = 2, [1, 2]
    told = section(markdown(card_of(make_study(), records), make_study()), "Model details")
    assert "- The model is the mean of those after rounds 1 to 2.\n" in told


def test_the_card_says_what_members_weigh(records: list[RoundRecord]) -> None:
    """By task, under the names of the networks; it says so where they weigh the same."""
    ensemble = [{}, {"name": "test_vit"}]
    study = make_study(ensemble=ensemble, federation={"votes": "validation"})
    card = card_of(study, records)
    assert "networks weigh" not in markdown(card, study)
    measured = records[2].tasks["lung"]
    measured["validation"] = measured["test"] | {"members": [{}, {}]}
    card = card_of(study, records)
    for votes, said in (
        ([0.75, 0.25], "0.750, test_vit 0.250"),
        ([0.5, 0.5], "0.500, test_vit 0.500"),
    ):
        told = markdown(card | {"votes": {"lung": votes}}, study)
        assert f"the networks weigh test_resnet {said}.\n" in told
    del measured["validation"]
    told = markdown(card_of(study, records) | {"votes": {"lung": [0.5, 0.5]}}, study)
    assert "weigh test_resnet 0.500, test_vit 0.500, for no scores of theirs were reported" in told


def test_figures_stand_with_their_intervals(records: list[RoundRecord]) -> None:
    """All sites and each site have a row; a figure that is undefined is a dash."""
    study = make_study()
    told = section(markdown(card_of(study, records), study), "Quantitative analyses")
    assert "| **all sites** | images | 9 | 12 | 0.900 (0.850 to 0.940) |" in told
    assert "| north | images | 9 | 12 | 0.950 |" in told
    assert "| west | images | 9 | 12 | - |" in told
    assert "auroc: 0.800 to 0.950 over 2 sites, standard deviation 0.106; worst at south" in told
    assert "calibration error: 0.100 to 0.200 over 3 sites, standard deviation 0.0" in told
    assert "Temperature 1.700. Test loss 0.500 before, 0.400 after." in told
    assert "| yes | youden | 0.400 | 0.600 | 0.900 (0.800 to 0.950) |" in told


def test_who_took_part_is_told(records: list[RoundRecord]) -> None:
    """Patients of every split as declared, rounds answered, refusals and silence, site by site."""
    study = make_study()
    card = card_of(study, records)
    text = markdown(card, study)
    assert "| west | lung | train | 30 | 40 |" in section(text, "Training data")
    assert "| north | lung | test | 30 | 40 |" in section(text, "Evaluation data")
    assert "south does not know the patients of lung" in text
    caveats = section(text, "Caveats and recommendations")
    assert "west: in 0 of 2 rounds; refused 1 times (budget); silent 1 times" in caveats
    assert "north" not in caveats
    assert card["sites_seen"]["north"]["rounds"] == 2


def test_operating_points_are_of_the_very_model(records: list[RoundRecord]) -> None:
    """A program gets temperature and threshold, but not those of an earlier round's model."""
    study = make_study()
    known = facts_of(study, records, 2)["operating"]["lung"]
    assert (known["temperature"], known["log_odds"], known["counted"]) == (1.7, 0.4, "images")
    earlier = card_of(study, records, 1)
    records[2].votes = {"lung": [0.5, 0.5]}
    weighed = card_of(study, records) | facts_of(study, records, 2, {"lung": [0.75, 0.25]})
    assert facts_of(study, records, 2, {"lung": [0.5, 0.5]})["operating"] != {}
    for other in (earlier, weighed):
        assert other["operating"] == {}
        text = markdown(other, study)
        assert "no temperature and no threshold are known" in text
        assert "not of the one exported" in section(text, "Metrics")


def test_patients_come_before_images(records: list[RoundRecord]) -> None:
    """Where patients have several images, the threshold is the one at which each counts once."""
    study, told = make_study(), records[2].tasks["lung"]["test"]
    told["patients"] = told | {"operating_points": {"yes": {"youden": point(1.1)}}}
    known = facts_of(study, records, 2)["operating"]["lung"]
    assert (known["log_odds"], known["counted"]) == (1.1, "patients")


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({}, ["no differential privacy", "added no noise"]),
        ({"privacy": {"epsilon": 8.0}}, ["epsilon at most 8.0", "not known here"]),
        (
            {
                "central_privacy": {"noise_multiplier": 1.5},
                "federation": {"weighting": "equal"},
            },
            ["epsilon 3.2 at delta 1e-05 after 1 combined rounds"],
        ),
    ],
)
def test_privacy_is_what_is_known(
    records: list[RoundRecord], sections: Mapping[str, Any], words: list[str]
) -> None:
    """Each kind of privacy is told as promised, and as spent where the coordinator knows."""
    study = make_study(**sections)
    records[1].central_privacy = {"epsilon": 3.2, "delta": 1e-5}
    told = section(markdown(card_of(study, records), study), "Ethical considerations")
    assert all(word in told for word in words)


@pytest.mark.parametrize(
    ("backbone", "words"),
    [
        ({"name": "test_resnet", "weights": "none", "image_size": 32}, "began as: random numbers"),
        (
            {"name": "resnet18", "weights": "/secret/a.safetensors", "sha256": "ab" * 32},
            "the file a.safetensors with the SHA-256",
        ),
        ({"name": "resnet18.a1_in1k", "weights": "pretrained"}, "licence of these weights: apache"),
    ],
)
def test_the_source_of_the_weights_is_named(backbone: Mapping[str, Any], words: str) -> None:
    """With its licence where timm knows it; of a file the name alone, never its folder."""
    study = make_study(backbone=backbone)
    text = markdown(card_of(study, []), study)
    assert words in section(text, "Model details")
    assert "secret" not in text


def test_without_a_history_the_card_says_so() -> None:
    """No figures, no patients and no sites: each is told as unknown."""
    study = make_study(
        backbone={
            "name": "resnet18",
            "weights": "a.safetensors",
            "image_size": 32,
            "normalisation": "local",
        }
    )
    text = markdown(card_of(study, []), study)
    assert "There are no figures." in text
    assert "Numbers of patients: not known here." in text
    assert "has not been measured" in text
    assert "Batch normalisation stayed at each site" in text


def test_cells_cannot_break_a_table() -> None:
    """A bar in a name stays within its cell; a table without rows is nothing."""
    assert table(("a", "b"), [("x|y", 1)]).splitlines()[2] == "| x\\|y | 1 |"
    assert table(("a",), []) == ""
    assert figure_text({"f1": 0.5}, {"f1": [0.25, 0.75]}, "f1") == "0.500 (0.250 to 0.750)"


def test_where_the_model_looks_is_told_where_sites_reported_it(records: list[RoundRecord]) -> None:
    """Each mean stands beside its patients and what an even map would have; else no word of it."""
    study = make_study()
    assert "where the model looks" not in markdown(card_of(study, records), study)
    pooled = means(np.array([[40, 8.0, 7.6], [0, 0, 0], [0, 0, 0], [12, 9, 1.2], [0, 0, 0]]))
    records[2].tasks["lung"]["test"]["attention"] = {"pooled": pooled, "per_site": {}}
    told = markdown(card_of(study, records), study)
    assert "### lung, where the model looks" in told
    assert "| share on the image's border | 40 | 0.200 | 0.190 |" in told
    assert "| highest point within the mask or box | 12 | 0.750 | 0.100 |" in told
    assert "burned in" not in told


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"federation": {"personal": "head"}}, ("without the heads of lung", "backbone alone")),
        ({"evaluation": {"normalisation": "adapted"}}, ("one linear head", "of single images")),
    ],
)
def test_figures_of_something_else_are_no_thresholds(
    sections: dict[str, Any], words: tuple[str, ...], records: list[RoundRecord]
) -> None:
    """Where the sites measured another network than the file holds, the card says so."""
    study = make_study(**sections)
    card = card_of(study, records)
    assert card_of(make_study(), records)["operating"]
    assert card["operating"] == {}
    assert card["figures"]
    assert all(word in markdown(card, study) for word in words)
