"""Laws of the sites' numbers in a study whose discriminator tells them apart."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from common.arrays import Array
from common.errors import FederationError
from common.layout import Layout
from common.messages import Order
from common.study import Study
from server.checkpoint import MODEL, find_checkpoint
from server.rounds import begin_study, run_study
from server.timing import AT_ONCE, Timing

Make = Callable[..., Any]
COMING_AND_GOING = Timing(
    sites_return=True, gather_s=0.05, recheck_s=0.05, resend_s=0.01, resends=3
)


@pytest.fixture
def aligned(make_study: Make) -> Callable[..., Study]:
    """A study of one task that tells so many sites apart."""

    def make(sites: int = 3, rounds: int = 3) -> Study:
        found: Study = make_study(
            rounds=rounds,
            tasks={"ct": {"modality": "CT", "classes": ["a", "b"], "positive": "b"}},
            training={"adversarial_weight": 1.0, "adversarial_sites": sites},
            federation={"quorum": 2, "deadline_s": 20.0},
        )
        return found

    return make


def places_of(site: Any) -> list[int | None]:
    """Return the numbers that a site was told, one for each order to train."""
    return [order.place for order in site.orders if order.kind == "train"]


def has_a_come_late(grid: Any, sites: Mapping[str, Any]) -> None:
    """Let "a" come in the first round, which lasts until it has declared itself."""
    sites["a"].away = True

    def comes(order: Order) -> None:
        if (order.kind, order.round) == ("train", 1):
            grid.deaf = {"c"}
            sites["a"].away = False

    def has_come(order: Order) -> None:
        assert order.study.training.aligns
        grid.deaf.clear()

    sites["a"].meanwhile, sites["b"].meanwhile = has_come, comes


def stored(folder: Path) -> list[str] | None:
    with safe_open(folder / MODEL, framework="numpy") as file:
        notes = json.loads(file.metadata()["rarefed"])
    return json.loads(notes["places"]) if "places" in notes else None


def test_sites_are_numbered_by_their_names_where_they_begin_together(
    aligned: Make, make_site: Make, make_grid: Make, play_on: Make, tmp_path: Path
) -> None:
    """Every round tells each the same, and no other order tells it anything."""
    sites = {name: make_site(name) for name in "cab"}
    play_on(aligned(), make_grid(list(sites.values())), tmp_path)
    for place, name in enumerate("abc"):
        assert places_of(sites[name]) == [place] * 3
        assert {o.place for o in sites[name].orders if o.kind != "train"} == {None}
    assert stored(tmp_path) == ["a", "b", "c"]


def test_a_study_without_a_discriminator_numbers_nobody(
    make_small_study: Make, make_site: Make, make_grid: Make, play_on: Make, tmp_path: Path
) -> None:
    """Its orders and its model's file say nothing of numbers."""
    sites = [make_site("a"), make_site("b")]
    play_on(make_small_study(), make_grid(sites), tmp_path)
    assert [places_of(site) for site in sites] == [[None, None]] * 2
    assert stored(tmp_path) is None
    assert all("place" not in dict(r.config_records["order"]) for s in sites for r in s.records)


def test_a_late_site_gets_the_next_number_and_a_restart_keeps_all(
    aligned: Make, make_site: Make, make_grid: Make, small_layout: Layout,
    small_arrays: Mapping[str, Array], tmp_path: Path,
) -> None:  # fmt: skip
    """Who comes last and is the third, also after a restart at which the first one is away."""
    sites = {name: make_site(name) for name in "abc"}
    grid = make_grid(list(sites.values()))
    study = aligned(rounds=6)
    begin_study(study, small_arrays, tmp_path)
    has_a_come_late(grid, sites)

    class StopError(Exception):
        """The coordinator is stopped."""

    def stop_after(number: int) -> Callable[[Any], None]:
        def watch(record: Any) -> None:
            if record.round == number:
                raise StopError

        return watch

    def run(watch: Callable[[Any], None], expected: int) -> None:
        run_study(
            study, grid, small_layout, tmp_path,
            sites=expected, watch=watch, timing=COMING_AND_GOING,
        )  # fmt: skip

    with pytest.raises(StopError):
        run(stop_after(3), 2)
    assert [places_of(sites[name]) for name in "abc"] == [[2, 2], [0, 0, 0], [1, 1, 1]]
    assert find_checkpoint(tmp_path, study).places == ("b", "c", "a")

    sites["b"].meanwhile, sites["b"].away = None, True
    with pytest.raises(StopError):
        run(stop_after(4), 2)
    assert find_checkpoint(tmp_path, study).members == ("a", "c")
    sites["b"].away = False
    run(stop_after(0), 3)
    assert [places_of(sites[name]) for name in "abc"] == [[2] * 5, [0] * 5, [1] * 6]
    assert stored(tmp_path) == ["b", "c", "a"]


def test_a_site_too_many_is_not_let_in(
    aligned: Make, make_site: Make, make_grid: Make, play_on: Make, tmp_path: Path
) -> None:
    """One that comes when all numbers are given away is refused with the reason."""
    sites = {name: make_site(name) for name in "abc"}
    grid = make_grid(list(sites.values()))
    has_a_come_late(grid, sites)
    outcome = play_on(aligned(2), grid, tmp_path, timing=COMING_AND_GOING)
    assert [member.name for member in outcome.members] == ["b", "c"]
    assert "tells no more sites apart" in outcome.refused["a"]
    assert places_of(sites["a"]) == []


def test_a_study_does_not_begin_with_more_sites_than_it_tells_apart(
    aligned: Make, make_site: Make, make_grid: Make, play_on: Make, tmp_path: Path
) -> None:
    """Whom to leave out is not the coordinator's to choose."""
    sites = [make_site(name) for name in "abc"]
    with pytest.raises(FederationError, match="3 sites are ready, but the study tells 2 apart"):
        play_on(aligned(2), make_grid(sites), tmp_path, timing=replace(AT_ONCE))
    assert all(order.kind == "check" for site in sites for order in site.orders)
