"""Laws of a played federation: what its arrays are, and who is asked."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from client.config import SiteConfig
from client.dataset import batches
from client.optim import make_optimizer
from client.preprocess import normalise
from client.site import Site
from common.errors import FederationError, MissingFolderError, QuorumError, TaskWithoutSiteError
from common.layout import Layout
from common.seeds import stream
from common.study import Study
from common.weights import layout_of, take
from server.initial_weights import initial_model
from simulations.federation import Played, find_hospitals, play
from simulations.summary import summarise

Arrays = dict[str, NDArray[Any]]
StudyOf = Callable[..., Study]


def played(study: Study, hospitals: Path | list[Path], out: Path) -> Played:
    folders = find_hospitals(hospitals) if isinstance(hospitals, Path) else hospitals
    return play(study, folders, out, threads=1)


def model_bytes(study: Study, hospitals: Path | list[Path], out: Path) -> bytes:
    played(study, hospitals, out)
    return (out / "model.safetensors").read_bytes()


def arrays_of(study: Study, hospitals: Path | list[Path], out: Path) -> Arrays:
    played(study, hospitals, out)
    return load_file(out / "model.safetensors")


def initial(study: Study) -> tuple[Layout, Arrays]:
    model = initial_model(study).model
    return layout_of(model, study), take(model, model.state_dict())


def alike(one: Arrays, other: Arrays, names: tuple[str, ...]) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in names)


def copies(hospital: Path, count: int) -> list[Path]:
    """Return hospitals with the same task, each dealing its patients by a key of its own."""
    made = []
    for number in range(count):
        folder = Path(shutil.copytree(hospital, hospital.parent / f"copy-{number}"))
        text = (folder / "site.toml").read_text().replace(hospital.name, folder.name)
        (folder / "site.toml").write_text(text)
        (folder / "state" / "site.key").write_text(f"{number + 1:064x}\n")
        made.append(folder)
    return made


def by_hand(study: Study, hospital: Path, task: str) -> tuple[Arrays, dict[str, float]]:
    """Train one round as a page of plain PyTorch; return the arrays, and what the site counts."""
    site = Site(SiteConfig.load(hospital))
    images = site.prepare(study).tasks[task].splits["train"]
    model = initial_model(study).model.to(memory_format=torch.channels_last)
    half = torch.full((3, 1, 1), 0.5)
    order = batches(
        {task: len(images)},
        batch_size=study.training.batch_size,
        epochs=study.training.local_epochs,
        seed=stream(stream(study.seed, site.config.name, 1), "batches"),
    )
    optimizer = make_optimizer(model, study.training)
    model.train()
    for batch in order:
        chosen = torch.from_numpy(batch.indices)
        x_BCHW = normalise(images.pixels[chosen], half, half)
        loss = torch.nn.functional.cross_entropy(model(x_BCHW, task), images.labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    counts = {"patients": images.n_patients, "images": len(images), "equal": 1.0}
    return take(model, model.state_dict()), counts


@pytest.mark.parametrize("normalisation", ["average", "local"])
def test_one_seed_gives_one_model(
    small: Path, study_of: StudyOf, tmp_path: Path, normalisation: str
) -> None:
    """The same study played twice at the same hospitals ends in the same bytes."""
    study = study_of("spots", backbone={"normalisation": normalisation})
    folders = find_hospitals(small)[:2]
    first = model_bytes(study, folders, tmp_path / "first")
    assert model_bytes(study, folders, tmp_path / "second") == first


def test_another_seed_gives_another_model(
    small: Path, study_of: StudyOf, tmp_path: Path, weights: Path
) -> None:
    """With the same initial backbone, another seed still trains it otherwise."""
    study = study_of("spots", rounds=1, backbone={"weights": str(weights)})
    folders = find_hospitals(small)[:1]
    one = arrays_of(study, folders, tmp_path / "one")
    other = arrays_of(study.model_copy(update={"seed": 2}), folders, tmp_path / "other")
    assert not any(alike(one, other, (name,)) for name in one if name.endswith("conv1.weight"))


def test_the_order_of_hospitals_changes_no_bit(
    small: Path, study_of: StudyOf, tmp_path: Path
) -> None:
    """Whoever comes first, the sums are the same."""
    study, folders = study_of(rounds=1), find_hospitals(small)
    forward = model_bytes(study, folders, tmp_path / "forward")
    assert model_bytes(study, folders[::-1], tmp_path / "backward") == forward


@pytest.mark.parametrize(
    ("sites", "weighting"), [(1, "patients"), (2, "patients"), (2, "images"), (2, "equal")]
)
def test_a_round_is_the_weighted_mean_of_plain_trainings(
    small: Path, study_of: StudyOf, tmp_path: Path, sites: int, weighting: str
) -> None:
    """FedAvg's arrays are the mean of local ones in float64; of one site, they are its own."""
    study = study_of("spots", rounds=1, federation={"weighting": weighting})
    folders = find_hospitals(small)[:sites]
    found = arrays_of(study, folders, tmp_path / "run")
    trained = [by_hand(study, folder, "spots") for folder in folders]
    shares = [counts[weighting] for _, counts in trained]
    layout, _ = initial(study)
    for name in [name for group in layout.groups.values() for name in group]:
        values = [arrays[name].astype(np.float64) for arrays, _ in trained]
        mean = np.average(values, axis=0, weights=shares)
        np.testing.assert_allclose(found[name], mean, rtol=1e-6, atol=1e-6)


def test_heads_change_by_their_own_sites_alone(
    small: Path, study_of: StudyOf, tmp_path: Path
) -> None:
    """After one round, a head is the same bits whether or not sites of other tasks came."""
    study = study_of("spots", "bars", rounds=1)
    everyone = find_hospitals(small)[:3]
    one = arrays_of(study, everyone, tmp_path / "one")
    other = arrays_of(study, everyone[1:], tmp_path / "other")
    layout, start = initial(study)
    for task in study.tasks:
        names = layout.groups[f"head:{task}"]
        assert names
        assert not alike(one, start, names)
        assert alike(one, other, names) == (task != "spots")
    assert not alike(one, other, layout.groups["shared"])


def test_a_site_may_have_several_tasks(small: Path, study_of: StudyOf, tmp_path: Path) -> None:
    """A site with two tasks trains and measures both, and both heads hear of it."""
    shutil.copytree(small / "hospital-3" / "bars", small / "hospital-1" / "bars")
    with (small / "hospital-1" / "site.toml").open("a") as file:
        file.write('[data.bars]\nmanifest = "bars/labels.csv"\n')
    study, folders = study_of("spots", "bars", rounds=1), find_hospitals(small)[:3]
    last = played(study, folders, tmp_path / "run").outcome.records[-1]
    assert list(last.tasks["bars"]["test"]["per_site"]) == ["hospital-1", "hospital-3"]
    assert list(last.tasks["spots"]["test"]["per_site"]) == ["hospital-1", "hospital-2"]


STRATEGIES: dict[str, dict[str, float]] = {
    "fedprox": {"proximal_mu": 1.0},
    "fedavgm": {},
    "fedadam": {"eta": 1e-2},
    "fedyogi": {},
    "fedadagrad": {},
    "fedmedian": {},
    "fedtrimmedavg": {},
    "krum": {"num_malicious_nodes": 0},
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_plays_to_the_end(
    small: Path, study_of: StudyOf, tmp_path: Path, strategy: str
) -> None:
    """All sites of two tasks answer each exchange, and finite arrays that moved come out."""
    federation = {"strategy": strategy, "options": STRATEGIES[strategy], "quorum": 3}
    study = study_of("spots", "bars", federation=federation)
    outcome = played(study, find_hospitals(small)[:3], tmp_path / "run").outcome
    assert [len(record.answered) for record in outcome.records] == [3] * (study.rounds + 1)
    found = load_file(outcome.model)
    layout, start = initial(study)
    assert all(np.isfinite(value).all() for value in found.values())
    for group, names in layout.groups.items():
        assert not alike(found, start, names), group


def test_krum_takes_one_of_the_sites(small: Path, study_of: StudyOf, tmp_path: Path) -> None:
    """Among three sites with one task, Krum's model is bit for bit near one site's own."""
    folders = copies(small / "hospital-1", 3)
    study = study_of("spots", rounds=1, federation={"strategy": "krum", "quorum": 3})
    found = arrays_of(study, folders, tmp_path / "run")
    layout, _ = initial(study)
    distances = [
        max(np.abs(found[name] - arrays[name]).max() for name in layout.groups["shared"])
        for arrays in (by_hand(study, folder, "spots")[0] for folder in folders)
    ]
    assert min(distances) < 1e-6
    assert sorted(distances)[1] > 1e-4


def test_the_proximal_term_holds_sites_back(small: Path, study_of: StudyOf, tmp_path: Path) -> None:
    """With a large mu, FedProx moves the weights less far than FedAvg does."""

    def moved(name: str, **federation: Any) -> float:
        study = study_of("spots", rounds=1, federation=federation, training={"optimizer": "sgd"})
        found = arrays_of(study, find_hospitals(small)[:2], tmp_path / name)
        layout, start = initial(study)
        return sum(float(np.abs(found[n] - start[n]).sum()) for n in layout.groups["shared"])

    held = moved("prox", strategy="fedprox", options={"proximal_mu": 500.0})
    assert held < 0.9 * moved("avg")


@pytest.mark.parametrize("normalisation", ["average", "local", "frozen"])
def test_normalisation_is_what_the_study_says(
    small: Path, study_of: StudyOf, tmp_path: Path, weights: Path, normalisation: str
) -> None:
    """Statistics change in the federation's model only where they are averaged."""
    backbone = {"weights": str(weights), "normalisation": normalisation}
    study = study_of("spots", rounds=1, backbone=backbone)
    result = played(study, find_hospitals(small)[:2], tmp_path / "run")
    summary = summarise(study, result, engine="inline", yardsticks=None)
    assert summary["normalisation"] == normalisation
    found = load_file(result.outcome.model)
    layout, start = initial(study)
    statistics = tuple(name for name in found if name.endswith(("running_mean", "running_var")))
    assert statistics
    assert alike(found, start, statistics) == (normalisation != "average")
    assert bool(layout.local) == (normalisation == "local")


def test_local_normalisation_stays_at_its_site(
    small: Path, study_of: StudyOf, tmp_path: Path
) -> None:
    """Each site keeps batch normalisation of its own, unlike any other's."""
    study = study_of("spots", rounds=1, backbone={"normalisation": "local"})
    sites = played(study, find_hospitals(small)[:2], tmp_path / "run").sites
    one, other = (site.prepare(study).store.load_local(study.rounds + 1) for site in sites)
    layout, start = initial(study)
    assert tuple(sorted(one)) == tuple(sorted(other)) == tuple(sorted(layout.local))
    assert not alike(one, other, layout.local)
    assert not alike(one, start, layout.local)


def test_personal_heads_stay_at_their_site(small: Path, study_of: StudyOf, tmp_path: Path) -> None:
    """Each site ends with heads of its own; the coordinator's are those of the beginning."""
    study = study_of("spots", rounds=1, federation={"personal": "head"})
    result = played(study, find_hospitals(small)[:2], tmp_path / "run")
    one, other = (site.prepare(study).store.load_local(study.rounds + 1) for site in result.sites)
    layout, start = initial(study)
    assert set(layout.local) == {"heads.spots.weight", "heads.spots.bias"} == set(one) == set(other)
    assert not alike(one, other, layout.local)
    found = load_file(result.outcome.model)
    assert alike(found, start, layout.local)
    assert not alike(found, start, layout.groups["shared"])


@pytest.mark.parametrize(
    "federation",
    [
        {"strategy": "fedadam"},
        {"strategy": "fedmedian", "quorum": 3},
        {"strategy": "fedprox", "update_dtype": "float16", "update_norm": 1.0},
    ],
)
def test_every_kind_of_strategy_bears_heads_that_do_not_travel(
    small: Path, study_of: StudyOf, tmp_path: Path, federation: dict[str, Any]
) -> None:
    """Groups without arrays are nothing to a server's optimizer, to a median, to a bound."""
    study = study_of("spots", "bars", federation={"personal": "head", **federation})
    result = played(study, find_hospitals(small)[:3], tmp_path / "run")
    assert [record.refused for record in result.outcome.records] == [{}] * (study.rounds + 1)
    layout, start = initial(study)
    found = load_file(result.outcome.model)
    assert alike(found, start, layout.local)
    assert not alike(found, start, layout.groups["shared"])


def test_noise_at_the_coordinator_spares_personal_heads(
    small: Path, study_of: StudyOf, tmp_path: Path, weights: Path
) -> None:
    """The noise is on what travels alone."""
    study = study_of(
        "spots",
        rounds=1,
        backbone={"weights": str(weights), "normalisation": "frozen"},
        federation={"personal": "head", "weighting": "equal"},
        central_privacy={"noise_multiplier": 1.0},
    )
    result = played(study, find_hospitals(small)[:2], tmp_path / "run")
    layout, start = initial(study)
    assert alike(load_file(result.outcome.model), start, (*layout.local, *layout.base))


@pytest.mark.parametrize("train", ["head", "last:1"])
def test_what_is_frozen_travels_once(
    small: Path, study_of: StudyOf, tmp_path: Path, weights: Path, train: str
) -> None:
    """The whole network goes down in the first round, then only what is trained, both ways."""
    backbone = {"weights": str(weights)}
    study = study_of("spots", "bars", backbone=backbone, training={"train": train})
    outcome = played(study, find_hospitals(small)[:3], tmp_path / "run").outcome
    layout, start = initial(study)
    assert alike(load_file(outcome.model), start, layout.base)
    whole = sum(value.nbytes for value in start.values())
    for member in outcome.members:
        groups = layout.groups_of(member.tasks)
        trained = sum(start[name].nbytes for group in groups for name in layout.groups[group])
        down = [record.bytes[member.name]["down"] for record in outcome.records]
        up = [record.bytes[member.name]["up"] for record in outcome.records]
        extra = len(study.wire()) + 200 * (1 + sum(len(layout.groups[group]) for group in groups))
        assert whole - 10_000 < down[0]
        assert all(trained < sent < trained + extra for sent in down[1:])
        assert all(trained < sent for sent in up[:-1])
        if train == "head":
            assert {group.split(":")[0] for group in groups} == {"head"}
            assert max(down[1:]) < 0.02 * whole


@pytest.mark.parametrize(("fraction", "quorum", "asked"), [(0.5, 1, 2), (0.5, 3, 3)])
def test_a_fraction_of_the_sites_is_asked(
    small: Path, study_of: StudyOf, tmp_path: Path, fraction: float, quorum: int, asked: int
) -> None:
    """Each round trains at the study's share of the sites, at least its quorum; all measure last.

    Who is asked changes from round to round.
    """
    federation = {"fraction": fraction, "quorum": quorum}
    study = study_of(federation=federation, rounds=3)
    records = played(study, small, tmp_path / "run").outcome.records
    assert [len(record.asked) for record in records] == [asked] * 3 + [4]
    assert all(set(record.training) == set(record.asked) for record in records[:-1])
    assert len({tuple(record.asked) for record in records[:-1]}) > 1


def test_hospitals_are_found_in_the_order_of_their_numbers(small: Path, tmp_path: Path) -> None:
    """Hospital 10 comes after hospital 9, and a folder without site.toml is none."""
    shutil.copytree(small / "hospital-1", small / "hospital-10")
    (small / "notes").mkdir()
    names = [folder.name for folder in find_hospitals(small)]
    assert names == ["hospital-1", "hospital-2", "hospital-3", "hospital-4", "hospital-10"]
    with pytest.raises(MissingFolderError):
        find_hospitals(tmp_path / "nothing")


def test_a_study_without_its_sites_does_not_begin(
    small: Path, study_of: StudyOf, tmp_path: Path
) -> None:
    """Too few hospitals, a task that none has, and two of one name are refused at enrolment."""
    folders = find_hospitals(small)
    with pytest.raises(QuorumError, match="1 hospitals"):
        played(study_of("spots", federation={"quorum": 2}), folders[:1], tmp_path / "a")
    with pytest.raises(QuorumError, match="1 sites are ready"):
        played(study_of("bars", federation={"quorum": 2}), folders, tmp_path / "b")
    with pytest.raises(TaskWithoutSiteError, match="rings"):
        played(study_of(), folders[:3], tmp_path / "c")
    with pytest.raises(FederationError, match="hospital-1"):
        played(study_of("spots"), [folders[0], folders[0]], tmp_path / "d")


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"backbone": {"normalisation": "average"}},
        {"backbone": {"normalisation": "local"}},
        {"ensemble": [{}, {"seed": 2}], "federation": {"votes": "validation", "keep": "best"}},
        {"training": {"phases": [{"rounds": 1, "train": "head"}]}, "rounds": 2},
    ],
    ids=["average", "local", "votes", "phases"],
)
def test_ray_gives_the_same_bytes(
    small: Path, weights: Path, study_of: StudyOf, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """The same study on Ray, with the same threads per site, ends in the inline engine's bytes."""
    pytest.importorskip("ray", reason="Ray is not installed: rarefed[simulation]")
    pretrained = {"backbone": {"weights": str(weights)}} if "training" in changes else {}
    study = study_of(**changes | pretrained)
    inline = model_bytes(study, small, tmp_path / "inline")
    play(study, find_hospitals(small), tmp_path / "ray", engine="ray", threads=1)
    assert (tmp_path / "ray" / "model.safetensors").read_bytes() == inline


@pytest.mark.slow
def test_an_error_on_ray_is_the_same_error(small: Path, study_of: StudyOf, tmp_path: Path) -> None:
    """What stops the study stops it on Ray with the same class of error."""
    pytest.importorskip("ray", reason="Ray is not installed: rarefed[simulation]")
    folders = find_hospitals(small)[:3]
    with pytest.raises(TaskWithoutSiteError, match="rings"):
        play(study_of(), folders, tmp_path / "ray", engine="ray", threads=1)
