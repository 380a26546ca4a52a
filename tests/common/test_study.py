"""Laws of the study file: what it may say, what is refused, and its digest."""

import copy
import hashlib
import json
import math
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from common import federation, training
from common import study as sections
from common.errors import StudyError
from common.federation import STRATEGY_OPTIONS as OPTIONS
from common.section import Section
from common.study import Study

TOML = """
name = "rare-trio"
rounds = 20
seed = 7

[backbone]
name = "test_resnet"
weights = "weights/start.safetensors"
sha256 = "abababababababababababababababababababababababababababababababab"
image_size = 64
normalisation = "local"
mean = [0.5, 0.5, 0.5]

[tasks.gaucher]
modality = "CT"
classes = ["healthy", "gaucher"]
positive = "gaucher"
window = [50, 400]

[tasks.fundus]
modality = "fundus"
classes = ["none", "mild", "severe"]

[training]
local_epochs = 2
head_lr = 0.003

[federation]
strategy = "fedadam"
options = { eta = 0.01 }
quorum = 3
"""
DIGEST = "c8f35958d24af563007d5d17498f1876214dd2643d1822976466155c9b37f6c7"

SMALL: dict[str, Any] = {
    "name": "small",
    "rounds": 2,
    "backbone": {"name": "test_resnet", "weights": "none"},
    "tasks": {"t": {"modality": "CT", "classes": ["a", "b"]}},
}

KEYS = {
    "Study": ["name", "rounds", "seed", "backbone", "ensemble", "tasks", "training", "split",
              "evaluation", "privacy", "central_privacy", "federation"],
    "Backbone": ["name", "weights", "sha256", "image_size", "normalisation", "mean", "std"],
    "Member": ["name", "weights", "sha256", "seed"],
    "Task": [
        "modality", "classes", "positive", "window", "slices", "intensity", "per_patient",
        "preparation", "augmentation",
    ],
    "Preparation": [
        "crop", "mirror", "ben_graham", "local_contrast", "denoise", "equalise", "aspect",
    ],
    "Augmentation": [
        "rotation", "zoom", "flip", "contrast", "brightness", "elastic", "noise",
    ],
    "Training": [
        "local_epochs", "batch_size", "optimizer", "momentum", "head_lr", "backbone_lr",
        "layer_decay", "layer_decay_floor", "weight_decay", "schedule", "loss", "focal_gamma",
        "hybrid_share", "class_weights", "sampling", "source_weighting", "label_smoothing",
        "anchor_weight", "distillation_weight", "task_weight", "dropout", "train", "phases",
        "unfreeze_every", "clip_norm", "views", "adversarial_weight", "adversarial_sites",
    ],
    "Schedule": ["kind", "warmup_rounds", "period", "growth", "factor", "patience", "floor"],
    "Phase": ["rounds", "train"],
    "Privacy": ["epsilon", "delta", "clip_norm", "images_per_patient", "spare_rounds"],
    "CentralPrivacy": [
        "noise_multiplier", "clip_norm", "clipping", "target_quantile", "clip_learning_rate",
        "count_noise", "delta",
    ],
    "Evaluation": [
        "attention", "attention_patients", "normalisation", "classical", "tuned_rounds",
    ],
    "Split": ["validation", "test"],
    "Federation": [
        "strategy", "options", "weighting", "personal", "update_dtype", "update_norm", "quorum",
        "fraction", "deadline_s", "score", "keep", "average_last", "votes",
        "early_stopping",
    ],
    "EarlyStopping": ["patience", "least_gain"],
}  # fmt: skip


SECTIONS = vars(sections) | vars(training) | vars(federation)


def with_value(values: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return a copy of ``values`` with one key set, given as ``section.key``."""
    result = copy.deepcopy(values)
    *parents, last = path.split(".")
    table = result
    for parent in parents:
        table = table.setdefault(parent, {})
    table[last] = value
    return result


def full() -> dict[str, Any]:
    """Return a study in which every key is written out."""
    values: dict[str, Any] = json.loads(load_text(TOML).wire())
    return values


def load_text(text: str) -> Study:
    return Study.parse(tomllib.loads(text))


# ---- what is refused


@pytest.mark.parametrize(
    ("path", "value", "where", "remedy"),
    [
        ("backbone.nmae", "x", "backbone.nmae", "'name'"),
        ("tasks.t.windwo", [1, 2], "tasks.t.windwo", "'window'"),
        ("reports", {}, "reports", "known are backbone, central_privacy, ensemble"),
        ("rounds", 2.5, "rounds", "correct the value"),
        ("rounds", 0, "rounds", "correct the value"),
        ("rounds", True, "rounds", "correct the value"),
        ("rounds", "2", "rounds", "correct the value"),
        ("name", "Ü b", "name", "a-z, 0-9"),
        ("tasks.Bad Name", SMALL["tasks"]["t"], "tasks.Bad Name", "a-z, 0-9"),
        ("tasks", {}, "tasks", "correct the value"),
        ("tasks", [], "tasks", "correct the value"),
        ("tasks.t", 3, "tasks.t", "correct the value"),
        ("tasks.t.modality", "ct", "tasks.t.modality", "'CT', 'MR', 'fundus', 'OCT' or 'other'"),
        ("tasks.t.classes", ["a"], "tasks.t.classes", "correct the value"),
        ("tasks.t.classes", ["a", "a"], "tasks.t.classes", "name each class once"),
        ("tasks.t.classes", ["a", 3], "tasks.t.classes.1", "correct the value"),
        ("tasks.t.positive", "c", "tasks.t.positive", "use one of a, b"),
        ("tasks.t.window", [50, 0], "tasks.t.window.1", "correct the value"),
        ("tasks.t.window", [math.inf, 1], "tasks.t.window.0", "correct the value"),
        ("backbone.mean", [math.nan, 0.5, 0.5], "backbone.mean.0", "correct the value"),
        ("backbone.std", [0, 1, 1], "backbone.std.0", "correct the value"),
        ("backbone.image_size", 31, "backbone.image_size", "correct the value"),
        ("backbone.weights", "a.pth", "backbone.weights", "path of a .safetensors file"),
        ("backbone.sha256", "ab" * 32, "backbone.sha256", "or give a weights file"),
        ("backbone.normalisation", "frozen", "backbone.normalisation", "use pretrained weights"),
        ("training.train", "head", "training.train", "use pretrained weights"),
        ("training.train", "last:0", "training.train", "correct the value"),
        ("training.head_lr", math.nan, "training.head_lr", "correct the value"),
        ("training.head_lr", 0, "training.head_lr", "correct the value"),
        ("training.batch_size", 1, "training.batch_size", "correct the value"),
        ("training.optimizer", "lion", "training.optimizer", "'adam', 'adamw', 'sgd' or 'rmsprop'"),
        ("split", {"validation": 0.5, "test": 0.5}, "split", "make them smaller"),
        ("split.test", 0.9, "split", "make them smaller"),
        ("split.test", 1.0, "split.test", "correct the value"),
        ("federation.strategy", "fedavgg", "federation.strategy", "'fedavg'"),
        ("federation.strategy", "zzz", "federation.strategy", "use fedavg, fedprox"),
        ("federation.strategy", ["fedavg"], "federation.strategy", "correct the value"),
        ("federation.options", {"eta": 1}, "federation.options.eta", "remove it"),
        ("federation.options", {"x": "1"}, "federation.options.x", "correct the value"),
        ("federation.quorum", 0, "federation.quorum", "correct the value"),
        ("federation.fraction", 1.5, "federation.fraction", "correct the value"),
        ("federation.deadline_s", math.inf, "federation.deadline_s", "correct the value"),
    ],
)
def test_each_fault_is_named_with_its_remedy(
    path: str, value: Any, where: str, remedy: str
) -> None:
    """One wrong value is one fault, which names its key and what to do."""
    with pytest.raises(StudyError) as refused:
        Study.parse(with_value(SMALL, path, value))
    text = refused.value.message
    assert f"- {where}: " in text
    assert remedy in text
    assert refused.value.remedy


@pytest.mark.parametrize("modality", ["MR", "fundus", "OCT"])
def test_a_window_is_for_ct(modality: str) -> None:
    """Only CT is measured in Hounsfield units; elsewhere a window is refused."""
    task = {"modality": modality, "classes": ["a", "b"], "window": [50.0, 400.0]}
    with pytest.raises(StudyError, match="only CT is measured in Hounsfield units"):
        Study.parse(with_value(SMALL, "tasks.t", task))
    Study.parse(with_value(SMALL, "tasks.t", task | {"modality": "CT"}))


def test_only_two_classes_have_a_positive_one() -> None:
    """Three classes with a positive one are refused; without it the task is multi-class."""
    task = {"modality": "MR", "classes": ["a", "b", "c"], "positive": "a"}
    with pytest.raises(StudyError, match="leave 'positive' out for a multi-class task"):
        Study.parse(with_value(SMALL, "tasks.t", task))
    assert Study.parse(full()).tasks["fundus"].positive_index is None
    assert Study.parse(full()).tasks["gaucher"].positive_index == 1


@pytest.mark.parametrize("strategy", ["fedmedian", "fedtrimmedavg", "krum"])
def test_robust_strategies_need_three_sites(strategy: str) -> None:
    """A median of two is a mean, and Krum has nothing to compare: their quorum is 3 or more."""
    values = with_value(SMALL, "federation", {"strategy": strategy, "quorum": 2})
    with pytest.raises(StudyError, match="fewer than 3 sites; set it to 3 or more"):
        Study.parse(values)
    Study.parse(with_value(values, "federation.quorum", 3))


def test_krum_needs_more_sites_than_it_distrusts() -> None:
    """Krum's proof asks for 2 f + 3 sites with f malicious ones (Blanchard et al. 2017)."""
    federation = {"strategy": "krum", "quorum": 4, "options": {"num_malicious_nodes": 1}}
    values = with_value(SMALL, "federation", federation)
    with pytest.raises(StudyError, match="fewer than 5 sites; set it to 5 or more"):
        Study.parse(values)
    Study.parse(with_value(values, "federation.quorum", 5))


@pytest.mark.parametrize(
    ("strategy", "option", "value"),
    [
        ("fedprox", "proximal_mu", -0.1),
        ("fedavgm", "server_learning_rate", 0),
        ("fedavgm", "server_momentum", 1),
        ("fedadam", "eta", 0),
        ("fedadam", "tau", 0),
        ("fedyogi", "beta_1", 1),
        ("fedyogi", "beta_2", 1.0),
        ("fedadagrad", "tau", -1e-3),
        ("fedtrimmedavg", "beta", 0.5),
        ("krum", "num_malicious_nodes", -1),
        ("krum", "num_malicious_nodes", 1.5),
        ("krum", "num_malicious_nodes", math.nan),
        ("fedadam", "eta", math.inf),
    ],
)
def test_a_setting_out_of_range_is_refused(strategy: str, option: str, value: float) -> None:
    """A setting that its strategy cannot compute with is refused before any site is asked."""
    federation = {"strategy": strategy, "quorum": 9, "options": {option: value}}
    with pytest.raises(StudyError, match=rf"- federation\.options\.{option}: "):
        Study.parse(with_value(SMALL, "federation", federation))


def test_all_faults_are_told_at_once() -> None:
    """One refusal lists every fault of every section, each on one line with its remedy."""
    values = {
        "name": "No Slug",
        "backbone": {
            "name": "test_resnet", "weights": "none", "sha256": "ab" * 32, "imagesize": 64,
            "normalisation": "frozen",
        },
        "tasks": {
            "t": {"modality": "MR", "classes": ["a", "b", "c"], "positive": "a", "window": [1, 2]},
            "u": {"modality": "CT", "classes": ["a", "b"], "positive": "x"},
        },
        "training": {"train": "head", "head_lr": "fast"},
        "split": {"validation": 0.6, "test": 0.6},
        "federation": {"strategy": "krum", "options": {"eta": 1}, "quorum": 2},
    }  # fmt: skip
    expected = {
        "name", "rounds", "backbone.sha256", "backbone.imagesize", "backbone.normalisation",
        "tasks.t.positive", "tasks.t.window", "tasks.u.positive", "training.train",
        "training.head_lr", "split", "federation.options.eta", "federation.quorum",
    }  # fmt: skip
    with pytest.raises(StudyError) as refused:
        Study.parse(values)
    head, *lines = refused.value.message.splitlines()
    assert head == f"The study has {len(lines)} faults:"
    assert [line for line in lines if not re.fullmatch(r"  - [\w.]+: .+; .+[.?]", line)] == []
    assert {line.removeprefix("  - ").split(":")[0] for line in lines} == expected
    assert len(lines) == len(expected)


# ---- what is public


def test_the_keys_are_frozen() -> None:
    """Names and order of the keys are public: study files of older releases rely on them."""
    found = {
        name: list(value.model_fields)
        for name, value in SECTIONS.items()
        if isinstance(value, type) and issubclass(value, BaseModel) and name in KEYS
    }
    assert found == KEYS
    others = [
        name
        for name, value in SECTIONS.items()
        if isinstance(value, type) and issubclass(value, Section) and name not in KEYS
    ]
    assert others == ["Section"]


def test_defaults_are_frozen() -> None:
    """A study that says only what it must has these values; a change is a change of results."""
    values = json.loads(Study.parse(SMALL).wire())
    assert values == {
        "name": "small",
        "rounds": 2,
        "seed": 0,
        "backbone": {
            "name": "test_resnet", "weights": "none", "sha256": None, "image_size": 224,
            "normalisation": "average", "mean": None, "std": None,
        },
        "tasks": {"t": {"modality": "CT", "classes": ["a", "b"], "positive": None, "window": None}},
        "training": {
            "local_epochs": 1, "batch_size": 16, "optimizer": "adamw", "head_lr": 1e-3,
            "backbone_lr": 1e-4, "weight_decay": 1e-2, "loss": "cross_entropy",
            "focal_gamma": 2.0, "train": "all", "clip_norm": None,
        },
        "split": {"validation": 0.15, "test": 0.25},
        "federation": {
            "strategy": "fedavg", "options": {}, "weighting": "patients", "update_dtype": "float32",
            "quorum": 2,
            "fraction": 1.0, "deadline_s": 3600.0,
        },
    }  # fmt: skip


@pytest.mark.parametrize("strategy", OPTIONS)
def test_every_strategy_is_accepted_with_its_defaults(strategy: str) -> None:
    """A strategy needs no settings, may be given its defaults, and then means the same."""
    short = with_value(SMALL, "federation", {"strategy": strategy, "quorum": 3})
    long = with_value(short, "federation.options", dict(OPTIONS[strategy]))
    assert Study.parse(short).digest() == Study.parse(long).digest()
    for option, value in OPTIONS[strategy].items():
        assert Study.parse(short).federation.option(option) == value
        changed = with_value(short, "federation.options", {option: value / 2 + 0.1})
        if option != "num_malicious_nodes":
            assert Study.parse(changed).federation.option(option) == value / 2 + 0.1


# ---- the digest


def test_the_digest_is_the_same_on_every_machine() -> None:
    """The digest of a fixed study is a literal that no platform changes."""
    assert load_text(TOML).digest() == DIGEST


def test_the_digest_ignores_the_order_of_keys() -> None:
    """Two files that say the same in another order are the same study."""

    def reverse(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: reverse(value[key]) for key in reversed(value)}

    assert Study.parse(reverse(full())).digest() == DIGEST


def test_the_digest_ignores_whether_defaults_are_spelled_out() -> None:
    """Leaving a key away and giving its default are the same study; so are 1 and 1.0."""
    assert Study.parse(full()).digest() == DIGEST
    assert Study.parse(with_value(full(), "federation.fraction", 1)).digest() == DIGEST


def test_the_digest_ignores_the_folder_of_the_weights(tmp_path: Path) -> None:
    """Folders differ between machines: of a weights file only the name counts."""
    (tmp_path / "deep").mkdir()
    for folder in (tmp_path, tmp_path / "deep"):
        (folder / "study.toml").write_text(TOML, encoding="utf-8")
        study = Study.load(folder / "study.toml")
        assert study.digest() == DIGEST
        assert study.backbone.weights_file == folder / "weights/start.safetensors"
    other = with_value(full(), "backbone.weights", "/elsewhere/start.safetensors")
    assert Study.parse(other).digest() == DIGEST


OTHER: dict[str, Any] = {
    "name": "rare-duo", "rounds": 21, "seed": 8,
    "backbone.name": "test_vit", "backbone.weights": "other.safetensors",
    "backbone.sha256": "cd" * 32, "backbone.image_size": 96, "backbone.normalisation": "frozen",
    "backbone.mean": [0.5, 0.5, 0.4], "backbone.std": [0.5, 0.5, 0.5],
    "tasks.gaucher.modality": "other", "tasks.gaucher.classes": ["gaucher", "healthy"],
    "tasks.gaucher.positive": "healthy", "tasks.gaucher.window": [50, 401],
    "tasks.fundus.modality": "OCT", "tasks.fundus.classes": ["none", "mild"],
    "tasks.fundus.positive": None, "tasks.fundus.window": None,
    "training.local_epochs": 3, "training.batch_size": 17, "training.optimizer": "sgd",
    "training.head_lr": 0.0031, "training.backbone_lr": 2e-4, "training.weight_decay": 0,
    "training.loss": "focal", "training.focal_gamma": 1, "training.train": "last:1",
    "training.clip_norm": 1, "split.validation": 0.2, "split.test": 0.2,
    "federation.strategy": "fedyogi", "federation.options": {"eta": 0.02},
    "federation.weighting": "images", "federation.update_dtype": "float16",
    "federation.quorum": 4, "federation.fraction": 0.5,
    "federation.deadline_s": 60,
}  # fmt: skip


PRIVATE: dict[str, Any] = {
    "epsilon": 8.0, "delta": 1e-3, "clip_norm": 2.0, "images_per_patient": 3,
    "spare_rounds": 2,
}  # fmt: skip


def test_privacy_is_part_of_the_digest() -> None:
    """A study with privacy is another one than without, and each of its values counts."""
    bare = with_value(SMALL, "privacy", {"epsilon": 3.0})
    digests = {Study.parse(SMALL).digest(), Study.parse(bare).digest()}
    bounded = with_value(SMALL, "federation", {"update_norm": 2.0})
    assert Study.parse(bounded).digest() not in digests
    for name, value in PRIVATE.items():
        digests.add(Study.parse(with_value(bare, f"privacy.{name}", value)).digest())
    assert len(digests) == 2 + len(PRIVATE)
    assert Study.parse(json.loads(Study.parse(bare).wire())).privacy == Study.parse(bare).privacy


def test_no_spare_rounds_are_the_digest_of_before() -> None:
    """A private study without any, written out or not, has the digest of before there were any."""
    bare = with_value(SMALL, "privacy", {"epsilon": 3.0})
    for values in (bare, with_value(bare, "privacy.spare_rounds", 0)):
        study = Study.parse(values)
        assert study.digest() == PRIVATE_DIGEST
        assert "spare_rounds" not in study.wire()
    assert Study.parse(with_value(bare, "privacy.spare_rounds", 1)).digest() != PRIVATE_DIGEST


def test_attention_is_part_of_the_digest() -> None:
    """A study that asks for none has the digest of before; each value counts in one that does."""
    without = Study.parse(with_value(SMALL, "evaluation", {"attention": "none"}))
    assert without.digest() == Study.parse(SMALL).digest()
    assert "evaluation" not in without.wire()
    asked = with_value(SMALL, "evaluation", {"attention": "hirescam"})
    digests = {without.digest(), Study.parse(asked).digest()}
    digests.add(Study.parse(with_value(asked, "evaluation.attention", "gradcam++")).digest())
    digests.add(Study.parse(with_value(asked, "evaluation.attention_patients", 50)).digest())
    assert len(digests) == 4
    again = Study.parse(json.loads(Study.parse(asked).wire()))
    assert again.evaluation == Study.parse(asked).evaluation
    assert again.evaluation.attention_patients == 200


def test_adapted_normalisation_is_part_of_the_digest() -> None:
    """A study with stored statistics has the digest of before; with attention or without."""
    asked = with_value(SMALL, "evaluation", {"attention": "hirescam"})
    for values in (SMALL, asked):
        evaluation = values.get("evaluation", {})
        stored, adapted = (
            Study.parse(with_value(values, "evaluation", evaluation | {"normalisation": which}))
            for which in ("stored", "adapted")
        )
        assert stored.digest() == Study.parse(values).digest() != adapted.digest()
        again = Study.parse(json.loads(adapted.wire()))
        assert again.evaluation.adapted
        assert again.digest() == adapted.digest()
    assert set(json.loads(adapted.wire())["evaluation"]) == set(asked["evaluation"]) | {
        "attention_patients",
        "normalisation",
    }


def test_what_follows_a_study_is_part_of_the_digest() -> None:
    """Classical ways and rounds of tuning count where they are given; none is that of before."""
    values = with_value(SMALL, "backbone", {"name": "test_resnet"})
    nothing = with_value(values, "evaluation", {"classical": [], "attention": "none"})
    assert Study.parse(nothing).digest() == Study.parse(values).digest()
    digests = {Study.parse(values).digest()}
    for asked in (
        {"classical": ["svm"]},
        {"classical": ["svm", "handcrafted-svm"]},
        {"tuned_rounds": 5},
        {"tuned_rounds": 6},
        {"tuned_rounds": 5, "classical": ["svm"]},
    ):
        study = Study.parse(with_value(values, "evaluation", asked))
        assert json.loads(study.wire())["evaluation"] == asked
        again = Study.parse(json.loads(study.wire()))
        assert again.evaluation == study.evaluation
        digests |= {study.digest(), again.digest()}
    assert len(digests) == 6


PRIVATE_DIGEST = "a75ba4ba46b19ac6000e6807fb0fd09295e8aabd07d84e2b060bbed1c2737a8a"


@pytest.mark.parametrize(
    ("name", "value"),
    [("epsilon", 0), ("epsilon", -1.0), ("epsilon", 101), ("delta", 0), ("delta", 1.0),
     ("clip_norm", 0.0), ("images_per_patient", 0), ("images_per_patient", 65),
     ("spare_rounds", -1), ("spare_rounds", 1001)],
)  # fmt: skip
def test_a_privacy_that_is_none_is_refused(name: str, value: float) -> None:
    """A budget of nothing or without a bound, a delta of one, no clipping: each is named."""
    values = with_value(SMALL, "privacy", {"epsilon": 3.0, name: value})
    with pytest.raises(StudyError, match=rf"privacy\.{name}"):
        Study.parse(values)


def test_gradients_are_bounded_once() -> None:
    """A study with privacy bounds the gradient of each patient, and no other."""
    values = with_value(SMALL, "privacy", {"epsilon": 3.0})
    with pytest.raises(StudyError, match=r"training\.clip_norm"):
        Study.parse(with_value(values, "training", {"clip_norm": 1.0}))


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict) and key != "options":
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def test_the_digest_changes_with_every_value() -> None:
    """Whatever value is changed, the digest is another one; no key is left out of it."""
    values = full()
    assert set(leaves(values)) == set(OTHER)
    digests = {DIGEST}
    same = ("tasks.fundus.positive", "tasks.fundus.window")  # their other values are impossible
    focal = with_value(values, "training.loss", "focal")  # what focal_gamma means something with
    for path in set(OTHER) - set(same):
        whole = focal if path == "training.focal_gamma" else values
        digests.add(Study.parse(with_value(whole, path, OTHER[path])).digest())
    renamed = copy.deepcopy(values)
    renamed["tasks"]["retina"] = renamed["tasks"].pop("fundus")
    digests.add(Study.parse(renamed).digest())
    assert len(digests) == 1 + len(OTHER) - len(same) + 1


def test_the_wire_form_is_the_same_study() -> None:
    """What an order carries is JSON that parses to the same digest, without any folder."""
    study = load_text(TOML.replace("weights/start", "/home/someone/start"))
    again = Study.parse(json.loads(study.wire()))
    assert again.digest() == study.digest() == DIGEST
    assert again.wire() == study.wire()
    assert "someone" not in study.wire()
    digest = hashlib.sha256(f'{{"format":1,"study":{study.wire()}}}'.encode()).hexdigest()
    assert digest == DIGEST


# ---- the file


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    """A missing file, a folder, no TOML and no UTF-8 are each a StudyError with a remedy."""
    (tmp_path / "bad.toml").write_text("name = ", encoding="utf-8")
    (tmp_path / "latin.toml").write_bytes('name = "Größe"'.encode("latin-1"))
    for path, text in (
        (tmp_path / "none.toml", "Cannot read"),
        (tmp_path, "Cannot read"),
        (tmp_path / "bad.toml", "is no TOML file"),
        (tmp_path / "latin.toml", "is no TOML file"),
    ):
        with pytest.raises(StudyError, match=text) as refused:
            Study.load(path)
        assert refused.value.remedy


def test_the_weights_file_must_be_the_agreed_one(tmp_path: Path) -> None:
    """A file whose SHA-256 is not the study's is refused; the right one, or none, passes."""
    file = tmp_path / "w.safetensors"
    values = with_value(SMALL, "backbone", {"name": "test_resnet", "weights": str(file)})
    right = hashlib.sha256(b"weights").hexdigest()
    Study.parse(with_value(values, "backbone.sha256", right)).check_weights_file()
    file.write_bytes(b"weights")
    Study.parse(values).check_weights_file()
    Study.parse(with_value(values, "backbone.sha256", right)).check_weights_file()
    with pytest.raises(StudyError, match=rf"backbone\.sha256.*{right}"):
        Study.parse(with_value(values, "backbone.sha256", "ab" * 32)).check_weights_file()


def test_a_study_cannot_be_changed() -> None:
    """A parsed study is frozen, down to its sections."""
    study = Study.parse(SMALL)
    for owner, key in ((study, "rounds"), (study.training, "head_lr")):
        with pytest.raises(ValueError, match="frozen"):
            setattr(owner, key, 1)
