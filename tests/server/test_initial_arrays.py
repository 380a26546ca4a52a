"""Laws of the initial arrays that sites are sent beside the base, to hold a backbone near them."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from common.arrays import Array, digest
from common.errors import OutputError
from common.layout import Layout, arrays_sent_once, initial_name, split_sent_once
from common.messages import Order
from common.study import Study
from common.weights import layout_of, take
from server.begin import begin
from server.checkpoint import (
    INITIAL,
    LAYOUT,
    MODEL,
    load_layout,
    save_initial,
    save_layout,
    stored_base,
)
from server.cli import app
from server.initial_weights import initial_model
from server.rounds import Outcome, begin_study, run_study
from server.studies import toml_text
from server.timing import Timing

Make = Callable[..., Any]
GROUPS = {"shared": ("backbone.weight",), "statistics": ("backbone.mean",), "head:ct": ("bias",)}
LAYOUT_NEAR = Layout(
    GROUPS, ("backbone.own",), ("counter",), initial=("backbone.weight", "backbone.mean")
)
LAYOUT_FAR = dataclasses.replace(LAYOUT_NEAR, initial=())
ARRAYS: dict[str, Array] = {
    "backbone.weight": np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3),
    "backbone.mean": np.arange(4, dtype=np.float32),
    "backbone.own": np.ones(2, np.float32),
    "bias": np.zeros(2, np.float32),
    "counter": np.array(3, np.int64),
}
TASKS = {"ct": {"modality": "CT", "classes": ["a", "b"], "positive": "b"}}


COMING_AND_GOING = Timing(sites_return=True, gather_s=0.05, recheck_s=0.01)


def play(
    study: Study, grid: Any, folder: Path, sites: int, layout: Layout = LAYOUT_NEAR
) -> Outcome:
    save_initial(folder, ARRAYS, layout)
    begin_study(study, ARRAYS, folder)
    return run_study(
        study,
        grid,
        layout,
        folder,
        sites=sites,
        watch=lambda _: None,
        timing=COMING_AND_GOING,
    )


def test_each_site_gets_the_initial_arrays_once(
    make_study: Make, make_site: Make, make_grid: Make, tmp_path: Path
) -> None:
    """One that is there, one that comes late and one that lost its disk: all get the first ones."""
    late, lost, there = make_site("late", away=True), make_site("lost"), make_site("there")
    sites = [there, make_site("too"), lost, late]

    def meanwhile(order: Order) -> None:
        late.away = order.round < 2
        if order.round == 3:
            lost.base = None

    there.meanwhile = meanwhile
    play(make_study(rounds=6, tasks=TASKS), make_grid(sites), tmp_path, sites=3)
    sent = arrays_sent_once(ARRAYS, LAYOUT_NEAR)
    assert sum(order.base is not None for order in there.orders) == 1
    for site in sites:
        assert digest(site.base) == digest(sent)
        bases = {order.base_digest for order in site.orders if order.kind != "check"}
        assert bases == {digest(sent)}
    first = next(order for order in late.orders if order.kind != "check")
    assert first.round > 1
    assert sum(order.base is not None for order in lost.orders) == 2
    assert not np.array_equal(first.groups["shared"]["backbone.weight"], ARRAYS["backbone.weight"])


def test_a_restart_goes_on_with_the_same_initial_arrays(
    make_study: Make, make_site: Make, make_grid: Make, tmp_path: Path
) -> None:
    """A coordinator that begins anew writes nothing over them, and sends them to who comes."""
    study, sites = make_study(rounds=3, tasks=TASKS), [make_site("a"), make_site("b")]

    def die(order: Order) -> None:
        if order.round == 3:
            sites[0].meanwhile = None
            raise KeyboardInterrupt

    sites[0].meanwhile = die
    with pytest.raises(KeyboardInterrupt):
        play(study, make_grid(sites), tmp_path, sites=2)
    before = (tmp_path / INITIAL).read_bytes()
    other = {name: value + 1 for name, value in ARRAYS.items()}
    save_initial(tmp_path, other, LAYOUT_NEAR)
    sites.append(make_site("c"))
    outcome = play(study, make_grid(sites), tmp_path, sites=3)
    assert (tmp_path / INITIAL).read_bytes() == before
    assert digest(sites[2].base) == digest(arrays_sent_once(ARRAYS, LAYOUT_NEAR))
    assert [order.base is not None for order in sites[1].orders].count(True) == 1
    assert set(load_file(outcome.model)) == set(ARRAYS)


def test_a_study_that_had_not_begun_writes_them_anew(tmp_path: Path) -> None:
    """What a killed process left before the model was there does not count."""
    save_initial(tmp_path, {name: value + 1 for name, value in ARRAYS.items()}, LAYOUT_NEAR)
    save_initial(tmp_path, ARRAYS, LAYOUT_NEAR)
    found = stored_base(tmp_path, tmp_path / MODEL, LAYOUT_NEAR)
    assert digest(found) == digest(arrays_sent_once(ARRAYS, LAYOUT_NEAR))


def test_the_model_is_what_it_would_be_without_them(
    make_study: Make, make_site: Make, make_grid: Make, tmp_path: Path
) -> None:
    """Of the same changes comes the same file, to the byte; without them nothing is kept beside."""
    study, found = make_study(tasks=TASKS), {}
    for name, layout in {"near": LAYOUT_NEAR, "far": LAYOUT_FAR}.items():
        folder = tmp_path / name
        folder.mkdir()
        sites = [make_site("a"), make_site("b")]
        play(study, make_grid(sites), folder, sites=2, layout=layout)
        found[name] = (folder / MODEL).read_bytes()
        assert (folder / INITIAL).exists() == (name == "near")
        assert set(load_file(folder / MODEL)) == set(ARRAYS)
        assert {path.name for path in folder.iterdir()} >= {MODEL}
    assert found["near"] == found["far"]


def test_initial_arrays_that_are_gone_are_said(
    make_study: Make, make_site: Make, make_grid: Make, tmp_path: Path
) -> None:
    """Without the file no round is made, and the error names it."""
    study, grid = make_study(tasks=TASKS), make_grid([make_site("a"), make_site("b")])
    begin_study(study, ARRAYS, tmp_path)
    with pytest.raises(OutputError, match=INITIAL):
        run_study(study, grid, LAYOUT_NEAR, tmp_path, sites=2, watch=lambda _: None)


def test_what_is_sent_once_can_be_told_apart_again() -> None:
    """The network's own part and the whole initial backbone, by their names in the network."""
    own, initial = split_sent_once(arrays_sent_once(ARRAYS, LAYOUT_NEAR), LAYOUT_NEAR)
    assert set(own) == {"backbone.own", "counter"}
    assert set(initial) == {"backbone.weight", "backbone.mean", "backbone.own"}
    assert all(np.array_equal(initial[name], ARRAYS[name]) for name in initial)
    sent = arrays_sent_once(ARRAYS, LAYOUT_FAR)
    assert tuple(sent) == LAYOUT_FAR.sent_once == LAYOUT_FAR.names_sent_once
    assert split_sent_once(sent, LAYOUT_FAR) == (sent, {})
    for wrong in (sent, sent | {initial_name("bias"): ARRAYS["bias"]}):
        with pytest.raises(ValueError, match="initial arrays"):
            split_sent_once(wrong, LAYOUT_NEAR)


def test_a_layout_says_them_where_there_are_any(tmp_path: Path) -> None:
    """It reads back, and without any its file is that of the first versions, to the byte."""
    for layout in (LAYOUT_NEAR, LAYOUT_FAR):
        save_layout(tmp_path, layout)
        assert load_layout(tmp_path) == layout
    assert set(json.loads((tmp_path / LAYOUT).read_text())) == {"groups", "local", "base"}


@pytest.mark.parametrize("key", ["anchor_weight", "distillation_weight"])
def test_a_study_that_stays_near_begins_with_them(
    make_study: Make, tmp_path: Path, key: str
) -> None:
    """The backbone's arrays that travel are kept as they were at first, statistics among them."""
    (tmp_path / "source").mkdir()
    begin(make_study(tasks=TASKS), tmp_path / "source")
    weights = str(tmp_path / "source" / MODEL)
    backbone = {"name": "test_resnet", "weights": weights, "image_size": 32}
    study = make_study(tasks=TASKS, backbone=backbone, training={key: 0.5, "train": "last:1"})
    (tmp_path / "study").mkdir()
    begin(study, tmp_path / "study")
    layout, model = load_layout(tmp_path / "study"), initial_model(study).model
    assert layout == layout_of(model, study)
    assert layout.initial == (*layout.groups["shared"], *layout.groups["statistics"])
    assert any(name.endswith("running_var") for name in layout.initial)
    found = stored_base(tmp_path / "study", tmp_path / "study" / MODEL, layout)
    everything = take(model, model.state_dict())
    assert digest(found) == digest(arrays_sent_once(everything, layout))
    assert set(load_file(tmp_path / "study" / MODEL)) == set(everything)
    backbone_names = {name for name in everything if name.startswith("backbone.")}
    assert set(split_sent_once(found, layout)[1]) == backbone_names


def test_check_counts_them_among_what_is_sent_once(make_study: Make, tmp_path: Path) -> None:
    """What would travel once is the base and, of a study that stays near, what trains besides."""
    (tmp_path / "source").mkdir()
    begin(make_study(tasks=TASKS), tmp_path / "source")
    backbone = {"weights": str(tmp_path / "source" / MODEL), "name": "test_resnet"}
    told = {}
    for name, training in {"near": {"anchor_weight": 0.5}, "far": {}}.items():
        study = make_study(tasks=TASKS, backbone=backbone | {"image_size": 32}, training=training)
        file = tmp_path / f"{name}.toml"
        file.write_text(toml_text(study), encoding="utf-8")
        done = CliRunner().invoke(app, ["check", str(file), "--json"])
        assert done.exit_code == 0
        told[name] = json.loads(done.stdout)["arrays"]
    for unit in ("count", "bytes"):
        again = sum(told["far"][group][unit] for group in ("shared", "statistics"))
        assert told["near"]["sent once"][unit] == told["far"]["sent once"][unit] + again
