"""Laws of the lab file: what it may say, what it refuses, and what its rows become."""

import copy
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.errors import FederationError, MissingFolderError, StudyError
from common.study import Study
from simulations import lab, lab_reading, lab_rows
from simulations.lab import LABS, Lab, Loaded, changed
from simulations.lab_networks import with_networks

NAMED = ("federated", "rare-disease", "small-sample", "strategies", "transfer-gain")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "lab.md"
BASE = {
    "name": "base",
    "rounds": 1,
    "backbone": {"name": "test_resnet", "weights": "none", "image_size": 32},
    "tasks": {"spots": {"modality": "other", "classes": ["no", "yes"], "positive": "yes"}},
}

LabOf = Callable[..., Loaded]


@pytest.fixture
def lab_of(tmp_path: Path) -> LabOf:
    """A function that writes a lab of rows, a grid and other keys to a file, and loads it."""

    def make(*, quickly: bool = False, weights: Path | None = None, **values: Any) -> Loaded:
        whole = {"name": "a-lab", "study": BASE, "hospitals": {"folder": "h"}} | values
        file = tmp_path / "lab.toml"
        file.write_text(toml(whole), encoding="utf-8")
        return lab_reading.load(file, quick=quickly, weights=weights)

    return make


def toml(value: Any) -> str:
    """Return values as TOML, tables inline below the first level."""
    return "".join(f"{quoted(key)} = {inline(of)}\n" for key, of in value.items())


def inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quoted(k)} = {inline(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(inline, value)) + "]"
    return json.dumps(value)


def quoted(text: str) -> str:
    return f'"{text}"'


def test_dots_and_tables_change_the_same_key() -> None:
    """A change in dots and one in tables give the same study; what is not named stays."""
    dotted = changed(BASE, {"training.train": "head", "training.batch_size": 4})
    nested = changed(BASE, {"training": {"train": "head", "batch_size": 4}})
    assert dotted == nested == BASE | {"training": {"train": "head", "batch_size": 4}}
    deeper = changed(nested, {"training.batch_size": 8, "backbone.image_size": 64})
    assert deeper["training"] == {"train": "head", "batch_size": 8}
    assert deeper["backbone"] == BASE["backbone"] | {"image_size": 64}


def test_changes_leave_the_base_as_it_was() -> None:
    """Rows do not see one another's changes."""
    before = copy.deepcopy(BASE)
    changed(BASE, {"backbone.name": "test_vit", "tasks.spots.augmentation": {}})
    assert before == BASE


def test_a_grid_is_the_product_of_its_axes(lab_of: LabOf) -> None:
    """Each row stands at each point, in the order of the file; one without the grid stands once."""
    loaded = lab_of(
        grid={
            "training.train": ["all", "last:1"],
            "loss": {"ce": {}, "focal": {"training.loss": "focal"}},
        },
        study=changed(BASE, {"backbone.weights": "w.safetensors"}),
        rows={
            "small": {"study": {"training.batch_size": 4}},
            "alone": {"kind": "alone", "grid": False},
        },
    )
    found = lab_rows.lines(loaded)
    assert [line.name for line in found] == [
        "all / ce / small", "all / focal / small", "last:1 / ce / small", "last:1 / focal / small",
        "alone",
    ]  # fmt: skip
    studies = [line.study for line in found if line.study is not None]
    assert [study.training.train for study in studies] == ["all", "all", "last:1", "last:1", "all"]
    assert [study.training.loss for study in studies][1:4:2] == ["focal", "focal"]
    assert [study.training.batch_size for study in studies] == [4, 4, 4, 4, 16]


def test_a_grid_alone_has_a_row_at_each_point(lab_of: LabOf) -> None:
    """Numbers are called by their key, texts by themselves."""
    found = lab_rows.lines(lab_of(grid={"training.batch_size": [4, 8], "training.loss": ["focal"]}))
    assert [line.name for line in found] == ["batch_size 4 / focal", "batch_size 8 / focal"]


def test_every_fault_is_listed_at_once(lab_of: LabOf) -> None:
    """Unknown keys, wrong types and impossible combinations of the lab come together."""
    with pytest.raises(StudyError) as caught:
        lab_of(
            seeds=[1, 1],
            hospitals={"folder": "h", "phantoms": {"sitez": 3}},
            rows={
                "one": {"kind": "nothing"},
                "two": {"kind": "vote"},
                "three": {"of": ["one"], "rounds_after": 0},
            },
        )
    told = str(caught.value)
    for where in (
        "seeds:", "hospitals:", "hospitals.phantoms.sitez:", "rows.one.kind:", "rows.two.of:",
        "rows.three.of:", "rows.three.rounds_after:",
    ):  # fmt: skip
        assert f"- {where}" in told, where
    assert "did you mean 'sites'?" in told
    assert "Remedy:" in told


def test_the_rows_studies_are_looked_at_beside_other_faults(lab_of: LabOf) -> None:
    """What is wrong elsewhere in the lab hides no fault of a row, nor one of the base study."""
    with pytest.raises(StudyError) as caught:
        lab_of(
            seeds=[1, 1],
            hospitals={"phantoms": {"pacients": 3}},
            study=changed(BASE, {"backbone.image_sise": 64}),
            rows={
                "one": {"study": {"training.trian": "head"}},
                "two": {"kind": "vote", "of": ["nobody"]},
            },
        )
    told = str(caught.value)
    for where in (
        "seeds:", "hospitals.phantoms.pacients:", "study.backbone.image_sise:",
        "rows.one: training.trian:", "rows.two.of:",
    ):  # fmt: skip
        assert f"- {where}" in told, where
    assert "has 5 faults" in told


@pytest.mark.parametrize("part", ["rows", "grid"])
def test_a_row_that_is_wrong_itself_brings_no_second_fault(part: str, lab_of: LabOf) -> None:
    """A vote of a row that could not be read is not told to be of nobody."""
    wrong: dict[str, Any] = {"rows": {"one": {"kind": "nothing"}}, "grid": {"training.loss": 3}}
    rows = {"one": {}, "two": {}, "voted": {"kind": "vote", "of": ["* / one", "one"]}}
    given = (
        {"rows": rows | wrong["rows"]} if part == "rows" else {"rows": rows, "grid": wrong[part]}
    )
    with pytest.raises(StudyError) as caught:
        lab_of(**given)
    assert all(f"- {part}." in line for line in caught.value.message.splitlines()[1:])


def test_a_base_study_that_is_missing_is_one_fault_of_several(lab_of: LabOf) -> None:
    """Alone it is an error of its own; beside others it is listed with them."""
    with pytest.raises(StudyError, match=r"no-study\.toml"):
        lab_of(study="no-study.toml", rows={"one": {}})
    with pytest.raises(StudyError) as caught:
        lab_of(study="no-study.toml", rows={"one": {}}, seeds=[1, 1])
    assert "- seeds:" in caught.value.message
    assert "- study: " in caught.value.message


def test_a_row_that_contradicts_itself_is_no_fault_beside_a_slip(lab_of: LabOf) -> None:
    """With a wrong key in the base study only that is told: the row would stand in the table."""
    soft = {"study": {"training.loss": "focal", "training.label_smoothing": 0.1}}
    with pytest.raises(StudyError) as caught:
        lab_of(study=changed(BASE, {"rounds": 0}), rows={"plain": {}, "soft": soft})
    assert caught.value.message.count("\n  - ") == 1
    _, found = lab_rows.lines(lab_of(rows={"plain": {}, "soft": soft}))
    assert "softened labels" in found.reason


def test_faults_of_rows_are_listed_with_the_row(lab_of: LabOf) -> None:
    """A key that a study does not have is a fault; what all rows have wrong is told once."""
    with pytest.raises(StudyError) as caught:
        lab_of(
            study=changed(BASE, {"rounds": 0}),
            rows={
                "one": {"study": {"training.trian": "head"}},
                "two": {"study": {"federation.quorum": "many"}},
                "three": {"study": {"seed": 3, "tasks.spots.classes": ["a", "b"]}},
                "four": {"kind": "vote", "of": ["nobody*"]},
            },
        )
    told = str(caught.value)
    for text in (
        "study.rounds:", "rows.one: training.trian:", "rows.two: federation.quorum:",
        "rows.three.study: seed is the same", "tasks.spots.classes is the same", "rows.four.of:",
    ):  # fmt: skip
        assert text in told, text
    assert told.count("rounds:") == 1


def test_what_cannot_apply_is_a_line_with_its_reason(lab_of: LabOf) -> None:
    """Keys that contradict each other at one point of a grid leave the other points as they are."""
    loaded = lab_of(grid={"training.train": ["all", "head"]})
    whole, frozen = lab_rows.lines(loaded)
    assert (whole.study is not None, whole.reason) == (True, "")
    assert frozen.study is None
    assert "random backbone" in frozen.reason


def test_a_lab_of_which_nothing_applies_is_refused(lab_of: LabOf) -> None:
    """Where every row contradicts itself, the file is at fault."""
    with pytest.raises(StudyError, match="random backbone"):
        lab_of(grid={"training.train": ["head", "last:1"]})


def test_two_rows_of_one_name_are_refused(lab_of: LabOf) -> None:
    """A table could not tell them apart."""
    with pytest.raises(StudyError, match="two are called focal"):
        lab_of(grid={"training.loss": ["focal"]}, rows={"focal": {"grid": False}, "": {}})


def test_quick_puts_its_keys_in_place(lab_of: LabOf) -> None:
    """What quick names is replaced, tasks as a whole; the rest of the study stays."""
    other = {"modality": "MR", "classes": ["no", "yes"]}
    values: dict[str, Any] = {
        "seeds": [1, 2, 3],
        "grid": {"training.loss": ["focal", "cross_entropy"]},
        "quick": {
            "seeds": [7],
            "grid": {},
            "rows": {"one": {}},
            "study": {"rounds": 2, "tasks": {"rings": other}},
        },
    }
    full, quick = (lab_of(quickly=which, **values) for which in (False, True))
    assert (len(lab_rows.lines(full)), full.lab.seeds) == (2, [1, 2, 3])
    (line,) = lab_rows.lines(quick)
    assert (line.name, quick.lab.seeds) == ("one", [7])
    assert line.study is not None
    assert (list(line.study.tasks), line.study.rounds) == (["rings"], 2)
    assert line.study.backbone.image_size == 32


def test_a_lab_without_a_quick_form_says_so(lab_of: LabOf) -> None:
    """--quick with a lab that has none is a fault, not the full lab."""
    with pytest.raises(StudyError, match="no quick form"):
        lab_of(quickly=True, rows={"one": {}})
    quick = {"study": {"rounds": 1}, "name": "x"}
    with pytest.raises(StudyError) as caught:
        lab_of(quickly=True, rows={"one": {}}, study="s.toml", quick=quick)
    assert "quick.study: the base study is a file" in str(caught.value)
    assert "quick.name: nothing of that name is replaced" in str(caught.value)


def test_a_base_study_may_be_a_file(lab_of: LabOf, tmp_path: Path) -> None:
    """Its weights count from its own folder, those of a row from the lab's."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "study.toml").write_text(
        toml(changed(BASE, {"backbone.weights": "w.safetensors"})), encoding="utf-8"
    )
    row = {"study": {"backbone.weights": "v.safetensors"}}
    loaded = lab_of(study="elsewhere/study.toml", rows={"one": {}, "two": row})
    one, two = (line.study for line in lab_rows.lines(loaded))
    assert one is not None
    assert two is not None
    assert one.backbone.weights_file == (tmp_path / "elsewhere" / "w.safetensors").resolve()
    assert two.backbone.weights_file == (tmp_path / "v.safetensors").resolve()


def test_weights_are_found_by_the_backbones_name(lab_of: LabOf, tmp_path: Path) -> None:
    """A folder's file takes the place of the hub; a longer backbone's file is none of a shorter."""
    folder = tmp_path / "weights"
    folder.mkdir()
    for name in ("resnet18_x.tv", "resnet18", "resnet180"):
        (folder / f"{name}.safetensors").touch()
    study = changed(BASE, {"backbone.weights": "pretrained"})
    names = ["resnet18", "resnet180", "resnet50"]
    loaded = lab_of(study=study, weights=folder, grid={"backbone.name": names})
    found = [line.study.backbone.weights for line in lab_rows.lines(loaded) if line.study]
    assert [Path(name).stem for name in found] == ["resnet18", "resnet180", "pretrained"]
    with pytest.raises(MissingFolderError):
        lab_of(study=study, weights=tmp_path / "no", rows={"one": {}})


def test_each_member_of_an_ensemble_finds_its_weights(lab_of: LabOf, tmp_path: Path) -> None:
    """A member's file is that of its own backbone, in the folder or beside the lab."""
    folder = tmp_path / "weights"
    folder.mkdir()
    for name in ("resnet18", "test_vit"):
        (folder / f"{name}.safetensors").touch()
    members = [{}, {"name": "test_vit"}, {"weights": "own.safetensors"}]
    study = changed(BASE, {"backbone": {"name": "resnet18", "weights": "pretrained"}})
    study["ensemble"] = members
    (line,) = lab_rows.lines(lab_of(study=study, weights=folder, rows={"voted": {}}))
    assert line.study is not None
    files = [member.backbone.weights_file for member in line.study.members]
    assert files == [
        folder / "resnet18.safetensors",
        folder / "test_vit.safetensors",
        tmp_path / "own.safetensors",
    ]


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", NAMED)
def test_named_labs_are_valid(name: str, *, quick: bool) -> None:
    """Every named lab can be read in both forms, and each row of the quick one applies."""
    found = lab_rows.lines(lab_reading.load(lab.find_lab(name), quick=quick))
    assert not quick or [line.reason for line in found if line.reason] == []
    assert any(isinstance(line.study, Study) for line in found)


def test_the_named_labs_are_those_told_of() -> None:
    """The folder of labs holds those that the page names, and no others."""
    assert tuple(sorted(file.stem for file in LABS.glob("*"))) == NAMED
    assert all(f"`{name}`" in PAGE.read_text(encoding="utf-8") for name in NAMED)
    assert lab.find_lab("federated").is_file()
    assert lab.find_lab("mine.toml") == Path("mine.toml")


@pytest.mark.parametrize(
    ("name", "meant"), [("rare-diseases", "rare-disease"), ("strategy", "strategies"), ("x", "")]
)
def test_a_name_of_no_lab_is_told_what_there_is(name: str, meant: str) -> None:
    """The nearest name is asked about, and all are listed; a path of a file is taken as it is."""
    with pytest.raises(StudyError, match=f"There is no lab {name}") as refused:
        lab.find_lab(name)
    assert (f"Did you mean {meant}?" in refused.value.remedy) == bool(meant)
    assert all(known in refused.value.remedy for known in NAMED)
    assert lab.find_lab(str(PAGE)) == PAGE


def test_a_network_that_cannot_be_built_is_told_before_anything_is_trained(lab_of: LabOf) -> None:
    """Its row has the reason, as it would after a training; the others stay as they are."""
    names = ["lenet5", "test_resnet", "no_such_network"]
    planned = lab_rows.lines(
        lab_of(
            grid={"backbone.name": names},
            study=changed(BASE, {"training.layer_decay": 0.5}),
            rows={"FedAvg": {}, "one": {"kind": "pooled"}, "all": {"kind": "vote", "of": ["*"]}},
        )
    )
    assert not any(line.reason for line in planned)
    told: list[str] = []
    found = with_networks(planned, told.append)
    assert [line.name for line in found] == [line.name for line in planned]
    reasons = {line.name: line.reason for line in found if line.reason}
    assert [text.split(" cannot apply: ")[0] for text in told] == list(reasons)
    assert list(reasons) == [f"{name} / {row}" for row in ("FedAvg", "one") for name in names[::2]]
    assert reasons["lenet5 / one"].startswith("StudyError: lenet5 cannot be trained as")
    assert reasons["no_such_network / one"].startswith("UnknownBackboneError: ")
    assert [line.study is None for line in found] == [True, False, True] * 2 + [True]
    with pytest.raises(FederationError, match="lenet5 / FedAvg: StudyError"):
        with_networks(found[:1], told.append)


def test_handcrafted_features_need_no_network(lab_of: LabOf) -> None:
    """Of a backbone that there is not, only the size of its images counts for such a row."""
    row = {"kind": "classical", "features": "handcrafted", "classifier": "svm"}
    planned = lab_rows.lines(
        lab_of(study=changed(BASE, {"backbone.name": "no_such_network"}), rows={"one": row})
    )
    assert with_networks(planned, pytest.fail) == planned


def test_every_key_has_a_row_with_its_default() -> None:
    """Every key of a lab file has a row in its page, with the code's default, and no other has."""
    rows = {
        cells[0].strip(" `"): cells[2].strip()
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
        for cells in [re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 4
    }
    known = dict(keys(Lab))
    assert rows.keys() == known.keys()
    for key, default in known.items():
        shown = rows[key]
        if default in ("required", "-"):
            assert shown == default, key
        else:
            assert tomllib.loads(f"x = {shown.strip('`')}")["x"] == default, key


def keys(model: Any, prefix: str = "") -> Any:
    """Yield each key in dots with its default; a table of names stands as NAME."""
    for name, field in model.model_fields.items():
        parts = re.findall(r"simulations\.lab\.(\w+)", str(field.annotation))
        inner = [
            getattr(lab, part) for part in parts if hasattr(getattr(lab, part), "model_fields")
        ]
        default = (
            "required" if field.is_required() else field.get_default(call_default_factory=True)
        )
        key = f"{prefix}{name}"
        yield key, "-" if default is None or (inner and default != "required") else default
        if inner:
            several = str(field.annotation).startswith("dict")
            yield from keys(inner[0], f"{key}.NAME." if several else f"{key}.")
