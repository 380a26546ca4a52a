"""Laws of what contradicts itself in how a study trains, and of how it ends."""

from typing import Any

import pytest

from common.errors import StudyError
from common.study import Study


def values(**sections: Any) -> dict[str, Any]:
    """Return a study of ten rounds with pretrained weights, its sections replaced."""
    study: dict[str, Any] = {
        "name": "tuned",
        "rounds": 10,
        "backbone": {"name": "test_resnet"},
        "tasks": {"t": {"modality": "CT", "classes": ["a", "b"]}},
    }
    return study | sections


def faults_of(study: dict[str, Any]) -> dict[str, str]:
    """Return what is said of each key that a study is refused for."""
    with pytest.raises(StudyError) as refused:
        Study.parse(study)
    lines = refused.value.message.splitlines()[1:]
    return dict(line.removeprefix("  - ").split(": ", 1) for line in lines)


def training_faults_of(training: dict[str, Any], **sections: Any) -> dict[str, str]:
    found = faults_of(values(training=training, **sections))
    assert all(where.startswith("training.") for where in found)
    return {where.removeprefix("training."): said for where, said in found.items()}


def federation_faults_of(federation: dict[str, Any], **sections: Any) -> dict[str, str]:
    found = faults_of(values(federation=federation, **sections))
    assert all(where.startswith("federation.") for where in found)
    return {where.removeprefix("federation."): said for where, said in found.items()}


@pytest.mark.parametrize(
    "training",
    [
        {"optimizer": "sgd", "momentum": 0.5},
        {"loss": "focal", "focal_gamma": 1.0},
        {"loss": "hybrid", "hybrid_share": 0.25},
        {"label_smoothing": 0.1},
        {"class_weights": "balanced", "loss": "focal"},
        {"sampling": "balanced", "loss": "hybrid", "focal_gamma": 1.0},
        {"source_weighting": "similarity"},
        {"layer_decay": 0.75, "layer_decay_floor": 0.1},
        {"anchor_weight": 0.1, "distillation_weight": 1.0, "task_weight": 2.0},
        {"phases": [{"rounds": 3, "train": "head"}, {"rounds": 3, "train": "last:1"}]},
        {"unfreeze_every": 3},
        {"schedule": {"kind": "cosine", "warmup_rounds": 0.5, "floor": 0.1}},
        {"schedule": {"kind": "restarts", "period": 2.5, "growth": 2, "floor": 0.1}},
        {"schedule": {"kind": "step", "period": 3, "factor": 0.5, "floor": 0.1}},
        {"schedule": {"kind": "plateau", "patience": 2, "factor": 0.5, "floor": 0.1}},
        {"dropout": 0.5},
    ],
)
def test_what_fits_together_is_taken(training: dict[str, Any]) -> None:
    """Every key is taken where it means something."""
    found = Study.parse(values(training=training)).training.model_dump(exclude_unset=True)
    assert found == training


@pytest.mark.parametrize(
    ("training", "key", "words"),
    [
        ({"momentum": 0.5}, "momentum", "optimizer = 'adamw'"),
        ({"momentum": 0.5, "optimizer": "rmsprop"}, "momentum", "optimizer = 'rmsprop'"),
        ({"hybrid_share": 0.3}, "hybrid_share", "loss = 'cross_entropy'"),
        ({"hybrid_share": 0.3, "loss": "focal"}, "hybrid_share", "loss = 'focal'"),
        ({"focal_gamma": 1.0}, "focal_gamma", "loss = 'cross_entropy'"),
    ],
)
def test_a_key_without_its_other_is_refused(training: dict[str, Any], key: str, words: str) -> None:
    """A key that another makes meaningless is refused with that other's value."""
    found = training_faults_of(training)
    assert list(found) == [key]
    assert found[key].startswith(f"it means nothing with {words}; leave it out, or use ")


@pytest.mark.parametrize(
    ("key", "value", "kinds"),
    [
        ("period", 2.0, ("constant", "cosine", "plateau")),
        ("growth", 2.0, ("constant", "cosine", "step", "plateau")),
        ("factor", 0.5, ("constant", "cosine", "restarts")),
        ("patience", 2, ("constant", "cosine", "restarts", "step")),
        ("floor", 0.1, ("constant",)),
    ],
)
def test_a_schedule_has_its_own_keys_alone(key: str, value: float, kinds: tuple[str, ...]) -> None:
    """A key of another kind of schedule is refused, and the kinds that have it are named."""
    for kind in kinds:
        needed = {"period": 2.0} if kind in ("restarts", "step") else {}
        found = training_faults_of({"schedule": {"kind": kind, key: value} | needed})
        assert list(found) == [f"schedule.{key}"]
        assert found[f"schedule.{key}"].startswith(f"a schedule {kind!r} has none; leave it out")


@pytest.mark.parametrize("kind", ["restarts", "step"])
def test_a_schedule_with_a_period_needs_it(kind: str) -> None:
    """Restarts and steps are refused without the rounds between them."""
    found = training_faults_of({"schedule": {"kind": kind}})
    assert found == {"schedule.period": f"{kind} needs it; say how many rounds."}


@pytest.mark.parametrize(
    ("schedule", "key", "fits"),
    [
        ({"kind": "plateau", "patience": 8}, "patience", {"patience": 7}),
        ({"kind": "step", "period": 10}, "period", {"period": 9.9}),
        ({"warmup_rounds": 10.1}, "warmup_rounds", {"warmup_rounds": 10}),
    ],
)
def test_a_schedule_acts_before_the_study_ends(
    schedule: dict[str, Any], key: str, fits: dict[str, Any]
) -> None:
    """What would happen after the last of ten rounds alone is refused; a little less is not."""
    found = training_faults_of({"schedule": schedule})
    assert list(found) == [f"schedule.{key}"]
    assert "10 rounds" in found[f"schedule.{key}"]
    Study.parse(values(training={"schedule": schedule | fits}))


def test_nothing_hangs_on_scores_that_no_patient_is_held_out_for() -> None:
    """Each key that asks validation scores is refused without a share of validation patients."""
    federation = {"keep": "best", "early_stopping": {"patience": 2}, "votes": "validation"}
    asks = values(
        training={"schedule": {"kind": "plateau", "patience": 2}},
        federation=federation,
        ensemble=[{"seed": 1}, {"seed": 2}],
    )
    Study.parse(asks)
    found = faults_of(asks | {"split": {"validation": 0}})
    assert sorted(found) == [
        *(f"federation.{key}" for key in sorted(federation)),
        "training.schedule.kind",
    ]
    assert all("give split.validation a share" in said for said in found.values())


def test_a_plateau_that_cannot_be_is_refused_with_its_default_too() -> None:
    """Where no patience is short enough, another schedule is the remedy."""
    found = training_faults_of({"schedule": {"kind": "plateau"}}, rounds=3)
    assert found["schedule.patience"].endswith("bring nothing; use another schedule.")
    found = training_faults_of({"schedule": {"kind": "plateau"}}, rounds=5)
    assert found["schedule.patience"].endswith("use 2 or less.")


def test_classes_are_balanced_once() -> None:
    """Weights of classes and balanced drawing would correct the same twice."""
    found = training_faults_of({"class_weights": "balanced", "sampling": "balanced"})
    assert list(found) == ["class_weights"]
    assert found["class_weights"].endswith("use one of the two.")


@pytest.mark.parametrize("loss", ["focal", "hybrid"])
def test_focal_with_soft_labels_is_refused(loss: str) -> None:
    """Smoothed labels are for cross-entropy alone."""
    found = training_faults_of({"loss": loss, "label_smoothing": 0.1})
    assert list(found) == ["label_smoothing"]
    assert "of one class an image" in found["label_smoothing"]
    Study.parse(values(training={"loss": loss, "label_smoothing": 0.0}))


@pytest.mark.parametrize("key", ["anchor_weight", "distillation_weight"])
def test_staying_near_needs_something_to_be_near_and_something_that_moves(key: str) -> None:
    """With a frozen backbone or random weights, anchor and distillation are refused."""
    frozen = training_faults_of({key: 0.1, "train": "head"})
    assert frozen == {key: "a frozen backbone stays where it began; leave it out."}
    random = {"name": "test_resnet", "weights": "none"}
    found = training_faults_of({key: 0.1}, backbone=random)
    assert found == {key: "random weights are nothing to stay near; use pretrained weights."}


def test_distillation_has_no_phase_that_freezes_what_trained_before() -> None:
    """Its frozen stages have to be the initial ones; phases that widen are taken."""
    narrowing = [{"rounds": 2, "train": "last:2"}, {"rounds": 2, "train": "last:1"}]
    found = training_faults_of({"distillation_weight": 1.0, "phases": narrowing})
    assert list(found) == ["distillation_weight"]
    assert "frozen after they trained" in found["distillation_weight"]
    Study.parse(values(training={"distillation_weight": 1.0, "phases": narrowing[::-1]}))
    Study.parse(values(training={"anchor_weight": 1.0, "phases": narrowing}))
    gradual = {"distillation_weight": 1.0, "unfreeze_every": 2}
    Study.parse(values(training=gradual))
    noise = {"central_privacy": {"noise_multiplier": 1.0}}
    found = faults_of(values(training=gradual, **noise))
    assert "noise of central_privacy" in found["training.distillation_weight"]
    assert set(faults_of(values(training={"distillation_weight": 1.0}, **noise))) == set(found) - {
        "training.distillation_weight"
    }


def test_an_anchor_that_sgd_cannot_follow_is_refused() -> None:
    """Gradient descent with momentum m diverges on a pull a from a * rate = 2 * (1 + m) on."""
    sgd = {"optimizer": "sgd", "backbone_lr": 0.5, "momentum": 0.75}
    found = training_faults_of(sgd | {"anchor_weight": 7.0})
    assert list(found) == ["anchor_weight"]
    assert found["anchor_weight"].endswith("stay below 7.")
    Study.parse(values(training=sgd | {"anchor_weight": 6.99}))
    Study.parse(values(training={"optimizer": "adam", "backbone_lr": 0.5, "anchor_weight": 1e6}))


def test_a_weight_of_the_task_weighs_against_something() -> None:
    """Without anchor and distillation it would be a second learning rate."""
    found = training_faults_of({"task_weight": 2.0})
    assert list(found) == ["task_weight"]
    assert "set anchor_weight or distillation_weight" in found["task_weight"]


def test_decay_over_layers_needs_layers_that_train() -> None:
    """It is refused where the heads alone train, and its floor where nothing decays."""
    found = training_faults_of({"layer_decay": 0.5, "train": "head"})
    assert found == {"layer_decay": "no layer of the backbone trains; leave it out."}
    found = training_faults_of({"layer_decay_floor": 0.5})
    assert found == {"layer_decay_floor": "rates do not decay; set layer_decay below 1."}


@pytest.mark.parametrize(
    ("training", "key"),
    [
        ({"phases": [{"rounds": 2, "train": "head"}]}, "phases"),
        ({"unfreeze_every": 2}, "unfreeze_every"),
    ],
)
def test_phases_lead_to_more_than_the_heads(training: dict[str, Any], key: str) -> None:
    """Where only the heads ever train, phases and unfreezing are refused."""
    found = training_faults_of(training | {"train": "head"})
    assert list(found) == [key]
    assert found[key].startswith("there is nothing more to train later")


@pytest.mark.parametrize(
    ("training", "key"),
    [
        ({"phases": [{"rounds": 5, "train": "head"}, {"rounds": 5, "train": "last:1"}]}, "phases"),
        ({"unfreeze_every": 10}, "unfreeze_every"),
    ],
)
def test_phases_leave_a_round(training: dict[str, Any], key: str) -> None:
    """Phases as long as the study are refused, and one round less is not."""
    found = training_faults_of(training)
    assert found == {key: "after them none of the 10 rounds is left; make them shorter."}
    Study.parse(values(training=training, rounds=11))


def test_phases_and_unfreezing_are_two_ways_of_one_thing() -> None:
    """Both at once are refused."""
    training = {"phases": [{"rounds": 2, "train": "head"}], "unfreeze_every": 2}
    assert training_faults_of(training) == {
        "unfreeze_every": "phases say what trains when; use one of the two."
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("class_weights", "balanced"),
        ("source_weighting", "similarity"),
        ("sampling", "balanced"),
        ("distillation_weight", 1.0),
        ("phases", [{"rounds": 2, "train": "head"}]),
        ("unfreeze_every", 2),
    ],
)
def test_what_the_accounting_does_not_cover_is_refused(key: str, value: Any) -> None:
    """A study with privacy has no key that would look at labels or images beside the steps."""
    study = {
        "backbone": {"name": "test_resnet", "normalisation": "frozen"},
        "privacy": {"epsilon": 8.0},
    }
    found = training_faults_of({key: value}, **study)
    assert list(found) == [key]
    assert found[key].startswith("privacy does not cover ")
    Study.parse(values(training={}, **study))


def test_all_faults_of_the_training_are_told_at_once() -> None:
    """One fault hides no other."""
    found = training_faults_of(
        {"momentum": 0.5, "hybrid_share": 0.3, "schedule": {"floor": 0.5}, "task_weight": 2.0}
    )
    assert set(found) == {"momentum", "hybrid_share", "schedule.floor", "task_weight"}


# Endings


@pytest.mark.parametrize("last", [11, 1000])
def test_no_more_rounds_are_averaged_than_there_are(last: int) -> None:
    """An average over more rounds than the study has is refused."""
    found = federation_faults_of({"average_last": last})
    assert found == {"average_last": "there are 10 rounds; use 10 or less."}
    Study.parse(values(federation={"average_last": 10}))


def test_the_best_round_is_not_averaged() -> None:
    """A study ends with the best round's model or with an average, not with both."""
    found = federation_faults_of({"average_last": 2, "keep": "best"})
    assert found == {"average_last": "the best round's model is kept instead; use one of the two."}


@pytest.mark.parametrize("patience", [8, 11])
def test_patience_is_shorter_than_the_study(patience: int) -> None:
    """An early end that cannot come is refused."""
    found = federation_faults_of({"early_stopping": {"patience": patience}})
    assert list(found) == ["early_stopping.patience"]
    assert "10 rounds end before" in found["early_stopping.patience"]
    Study.parse(values(federation={"early_stopping": {"patience": 7}}))
    assert "use 7 or less" in found["early_stopping.patience"]
    assert "patience" in next(iter(federation_faults_of({"early_stopping": {}})))


@pytest.mark.parametrize(
    ("training", "begins"),
    [
        ({"phases": [{"rounds": 2, "train": "head"}, {"rounds": 1, "train": "last:1"}]}, 4),
        ({"unfreeze_every": 2, "train": "last:2"}, 5),
        ({"unfreeze_every": 3}, 4),  # a backbone has one stage at least
    ],
)
def test_patience_counts_from_the_last_phase_on(training: dict[str, Any], begins: int) -> None:
    """What comes before it ends no study, so an early end needs as many rounds more."""
    most = 7 - (begins - 1)
    given = {"training": training}
    found = federation_faults_of({"early_stopping": {"patience": most + 1}}, **given)
    assert f"begins with round {begins}; use {most} or less" in found["early_stopping.patience"]
    Study.parse(values(federation={"early_stopping": {"patience": most}}, **given))


def test_local_normalisation_needs_a_backbone_that_trains() -> None:
    """With the heads alone it would be the average that every site has, in silence."""
    local = {"name": "test_resnet", "normalisation": "local"}
    found = faults_of(values(backbone=local, training={"train": "head"}))
    assert list(found) == ["backbone.normalisation"]
    assert "let a part of the backbone train" in found["backbone.normalisation"]
    Study.parse(values(backbone=local, training={"train": "last:1"}))


def test_personal_heads_need_something_shared() -> None:
    """Where the heads alone train and stay at the sites, nothing would be learned together."""
    found = federation_faults_of({"personal": "head"}, training={"train": "head"})
    assert list(found) == ["personal"]
    assert "nothing would be trained together" in found["personal"]


@pytest.mark.parametrize("ending", [{"keep": "best"}, {"average_last": 2}])
@pytest.mark.parametrize(
    ("federation", "backbone", "said"),
    [
        ({"personal": "head"}, {}, "personal heads"),
        ({}, {"normalisation": "local"}, "local normalisation"),
    ],
)
def test_what_stays_at_sites_is_of_the_last_round(
    ending: dict[str, Any], federation: dict[str, Any], backbone: dict[str, Any], said: str
) -> None:
    """Another round's model would meet heads or normalisation that do not belong to it."""
    sections = {"backbone": {"name": "test_resnet"} | backbone}
    assert Study.parse(values(federation=federation, **sections))
    found = federation_faults_of(ending | federation, **sections)
    assert list(found) == list(ending)
    assert said in next(iter(found.values()))


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"backbone": {"name": "test_resnet", "normalisation": "frozen"}}, "'average' or 'local'"),
        ({"training": {"train": "head"}}, "let a part of the backbone train"),
    ],
)
def test_frozen_statistics_are_not_re_estimated(section: dict[str, Any], said: str) -> None:
    """Where no batch normalisation can live, the study that asks to adapt it is refused."""
    study = values(evaluation={"normalisation": "adapted"}, **section)
    assert said in faults_of(study)["evaluation.normalisation"]
    assert Study.parse(values(evaluation={"normalisation": "adapted"})).evaluation.adapted


@pytest.mark.parametrize(
    ("phase", "train", "taken"),
    [
        ("last:2", "last:2", True),
        ("last:3", "last:2", False),
        ("all", "last:2", False),
        ("last:3", "all", True),
        ("all", "all", True),
    ],
)
def test_a_phase_trains_no_more_than_the_end(phase: str, train: str, *, taken: bool) -> None:
    """What a phase trains travels and is built only if ``train`` has it."""
    training = {"phases": [{"rounds": 2, "train": phase}], "train": train}
    if taken:
        assert Study.parse(values(training=training)).training.train == train
    else:
        said = f"{phase!r} is more than training.train = {train!r}; let a phase train fewer layers."
        assert training_faults_of(training) == {"phases.train": said}


@pytest.mark.parametrize(
    "narrow",
    [{"train": "head"}, {"train": "last:1"}, {"unfreeze_every": 2},
     {"phases": [{"rounds": 2, "train": "head"}]}],
)  # fmt: skip
def test_views_need_variations_and_something_frozen(narrow: dict[str, Any]) -> None:
    """Views are refused where images are not varied, and where every layer trains in all rounds."""
    plain = {"t": {"modality": "CT", "classes": ["a", "b"]}}
    tasks = {"t": plain["t"] | {"augmentation": {}}}
    assert Study.parse(values(training={"views": 4} | narrow, tasks=tasks))
    found = training_faults_of({"views": 4} | narrow, tasks=plain)
    assert list(found) == ["views"]
    assert found["views"].startswith("no task's images are varied")
    found = training_faults_of({"views": 4}, tasks=tasks)
    assert list(found) == ["views"]
    assert found["views"].startswith("nothing is frozen whose output could be kept")
    assert Study.parse(values(training={"views": 0}, tasks=plain))


ALIGNED: dict[str, Any] = {"adversarial_weight": 1.0, "adversarial_sites": 2}
THREE: dict[str, Any] = {"adversarial_weight": 1.0, "adversarial_sites": 3}
ROBUST: dict[str, Any] = {"strategy": "fedmedian", "quorum": 3}


@pytest.mark.parametrize(
    "sections",
    [{}, {"central_privacy": {"noise_multiplier": 1.0, "clip_norm": 1.0}}],
)
def test_features_are_made_alike_where_a_mean_is_taken(sections: dict[str, Any]) -> None:
    """A study may align its sites, with noise at the coordinator too."""
    if sections:
        sections = sections | {"federation": {"weighting": "equal"}}
    study = Study.parse(values(training=ALIGNED, **sections))
    assert study.training.aligns
    assert not Study.parse(values(training={"adversarial_weight": 0.0})).training.aligns


@pytest.mark.parametrize(
    ("training", "sections", "key", "words"),
    [
        ({"adversarial_weight": 1.0}, {}, "adversarial_sites", "needs it; say how many sites"),
        ({"adversarial_sites": 2}, {}, "adversarial_sites", "nothing is aligned"),
        (ALIGNED, {"federation": {"quorum": 3}}, "adversarial_sites", "the quorum is 3; use 3"),
        (ALIGNED | {"train": "head"}, {}, "adversarial_weight", "frozen backbone stay"),
        (THREE, {"federation": ROBUST | {"strategy": "krum"}}, "adversarial_weight", "krum leaves"),
        (THREE, {"federation": ROBUST}, "adversarial_weight", "a strategy that takes the mean"),
        (ALIGNED, {"privacy": {"epsilon": 8.0}}, "adversarial_weight", "discriminator of sites"),
        (ALIGNED, {"ensemble": [{}, {"seed": 2}]}, "adversarial_weight", "of an ensemble"),
    ],
)
def test_features_that_cannot_be_made_alike_are_refused(
    training: dict[str, Any], sections: dict[str, Any], key: str, words: str
) -> None:
    """Adversarial alignment is refused where no discriminator of sites could work."""
    found = training_faults_of(training, **sections)
    assert list(found) == [key]
    assert words in found[key]


@pytest.mark.parametrize("phases", [5, True, 1e308, "head", {"train": "head"}, [[]]])
@pytest.mark.parametrize("views", [0, 4])
def test_phases_that_are_none_are_told(phases: Any, views: int) -> None:
    """Whatever stands in their place, with and without views, is a fault of the study file."""
    assert any(
        key.startswith("phases") for key in training_faults_of({"phases": phases, "views": views})
    )


@pytest.mark.parametrize("key", ["anchor_weight", "backbone_lr", "momentum"])
@pytest.mark.parametrize("value", [10**400, -(10**400)])
def test_a_number_of_any_length_is_told(key: str, value: int) -> None:
    """An integer that no number of the machine holds is a fault of its key."""
    training = {"optimizer": "sgd", "anchor_weight": 0.1, key: value}
    assert key in training_faults_of(training)


@pytest.mark.parametrize("period", [1e-307, 0.009, 100_001])
def test_a_period_is_of_a_length_that_rounds_can_have(period: float) -> None:
    """One that no count of periods would be finite for is refused before any training."""
    found = training_faults_of({"schedule": {"kind": "restarts", "period": period}})
    assert list(found) == ["schedule.period"]
