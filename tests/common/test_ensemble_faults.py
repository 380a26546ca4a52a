"""Laws of what a study says of an ensemble: its digest, its files, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import StudyError
from common.study import Study

VOTES: dict[str, Any] = {"votes": "validation"}
OTHER: dict[str, Any] = {"name": "test_convnext", "seed": 7}


def study_of(ensemble: list[dict[str, Any]], **sections: Any) -> Study:
    """Return a study with the seed 3 of random members, its sections replaced."""
    values: dict[str, Any] = {
        "name": "voted",
        "rounds": 6,
        "seed": 3,
        "backbone": {"name": "test_resnet", "weights": "none"},
        "tasks": {"ct": {"modality": "CT", "classes": ["a", "b"]}},
        "ensemble": ensemble,
    }
    return Study.parse(values | sections)


def test_an_ensemble_is_part_of_the_digest() -> None:
    """Without one the digest is that of before; with one, defaults may be left out or not."""
    none = study_of([])
    assert "ensemble" not in none.wire()
    short, long = study_of([{}, OTHER]), study_of([{"name": "test_resnet", "seed": 3}, OTHER])
    assert short.digest() == long.digest() != none.digest()
    again = Study.parse(json.loads(short.wire()))
    assert again.digest() == short.digest()
    assert again.members == long.members
    others: list[list[dict[str, Any]]] = [
        [{}, {}],
        [{}, OTHER | {"seed": 8}],
        [{}, OTHER, {"seed": 9}],
        [OTHER, {"seed": 3}],
    ]
    assert len({study_of(other).digest() for other in others} | {short.digest()}) == 5


def test_paths_of_weights_stay_where_they_are(tmp_path: Path) -> None:
    """A member's relative path counts from the study file, and its folder never travels."""
    (tmp_path / "study.toml").write_text(
        'name = "v"\nrounds = 1\n[backbone]\nname = "test_resnet"\nweights = "w/a.safetensors"\n'
        '[[ensemble]]\n[[ensemble]]\nname = "test_vit"\nweights = "w/b.safetensors"\n'
        f'sha256 = "{"ab" * 32}"\n[tasks.t]\nmodality = "CT"\nclasses = ["a", "b"]\n'
    )
    study = Study.load(tmp_path / "study.toml")
    files = [member.backbone.weights_file for member in study.members]
    assert files == [tmp_path / "w/a.safetensors", tmp_path / "w/b.safetensors"]
    assert str(tmp_path) not in study.wire()
    (tmp_path / "w").mkdir()
    (tmp_path / "w/b.safetensors").write_bytes(b"other")
    with pytest.raises(StudyError, match=r"ensemble\.1\.sha256"):
        study.check_weights_file()


@pytest.mark.parametrize(
    ("ensemble", "sections", "where", "what"),
    [
        ([{}], {}, "ensemble", "one network is no ensemble"),
        ([{}] * 11, {}, "ensemble", "at most 10"),
        ([{}, {"seed": 3}], {}, "ensemble.1.seed", "begins as ensemble.0 does"),
        ([{}, {"nmae": "a"}], {}, "ensemble.1.nmae", "did you mean 'name'"),
        ([{}, {"weights": "a.pth"}], {}, "ensemble.1.weights", "none of the three forms"),
        ([{}, {"sha256": "ab" * 32}], {}, "ensemble.1.sha256", "no weights file"),
        ([{}, {}], {"training": {"train": "head"}}, "training.train", "frozen at random"),
        ([{}, {}], {"training": {"anchor_weight": 1.0}}, "training.anchor_weight", "random"),
        (
            [{}, {"name": "test_vit"}],
            {"backbone": {"name": "test_resnet", "weights": "a.safetensors"}},
            "ensemble.1.weights",
            "the file of another network",
        ),
        ([], {"federation": VOTES}, "federation.votes", "no members"),
        ([{}, {}], {"federation": VOTES | {"personal": "head"}}, "federation.votes", "own heads"),
        (
            [{}, {}],
            {"federation": VOTES, "split": {"validation": 0}},
            "federation.votes",
            "no patients are held out",
        ),
    ],
)
def test_what_cannot_be_an_ensemble_is_refused(
    ensemble: list[dict[str, Any]], sections: dict[str, Any], where: str, what: str
) -> None:
    """Each fault is told once, at its key."""
    with pytest.raises(StudyError) as refused:
        study_of(ensemble, **sections)
    lines = refused.value.message.splitlines()[1:]
    assert [line for line in lines if line.startswith(f"  - {where}: ") and what in line] == lines
    assert len(lines) == 1


def test_votes_are_part_of_the_digest() -> None:
    """Equal ones, written out or not, leave it as it was before there were others."""
    plain, equal = study_of([{}, {}]), study_of([{}, {}], federation={"votes": "equal"})
    weighed = study_of([{}, {}], federation=VOTES)
    assert plain.digest() == equal.digest() != weighed.digest()
    assert "votes" not in plain.wire()
    assert Study.parse(json.loads(weighed.wire())).federation.votes == "validation"
