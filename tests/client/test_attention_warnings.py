"""Laws of ``client/attention_warnings``: who looks at the wrong place is named."""

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from client.attention_warnings import (
    LIMITS,
    Share,
    is_wrong,
    mean_shares,
    places,
    shares,
    warnings_of,
)
from client.burned_in import boxes_of_text, signs_of_text

Floats = NDArray[np.float32]


def head(side: int = 200, *, text: str = "") -> Floats:
    """Return a bright disc with some texture on black, and letters at the top."""
    image = np.zeros((side, side), np.float32)
    cv2.circle(image, (side // 2, side // 2), side // 3, 0.6, thickness=-1)
    image += 0.02 * np.random.default_rng(0).random(image.shape, np.float32)
    if text:
        cv2.putText(image, text, (6, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.4, 1.0, 1)
    return image


def spot(side: int, x: int, y: int) -> Floats:
    found = np.zeros((side, side), np.float32)
    cv2.circle(found, (x, y), 6, 1.0, thickness=-1)
    return found


def test_shares_are_sums_of_the_map_over_each_place() -> None:
    """A flat map has its area's share of everything; border and area are counted by hand."""
    found = shares(np.ones((200, 200), np.float32), head(), "MR")
    assert set(found) == {"border", "outside"}
    assert found["border"].of_area == pytest.approx(1 - 0.9**2)
    for share in found.values():
        assert share.of_map == pytest.approx(share.of_area)
    assert found["outside"].of_area == pytest.approx(1 - np.pi / 9, abs=0.03)


@pytest.mark.parametrize(
    ("x", "y", "wrong"),
    [(100, 100, set()), (3, 100, {"border", "outside"}), (30, 30, {"outside"})],
)
def test_who_looks_at_the_wrong_place_is_named(x: int, y: int, wrong: set[str]) -> None:
    """At the head's middle there is no warning; at the edge and beside it there is."""
    found = shares(spot(200, x, y), head(), "MR")
    said = " ".join(warnings_of(found))
    assert ("border" in said) is ("border" in wrong)
    assert ("outside" in said) is ("outside" in wrong)


def test_letters_are_found_where_they_are_and_named() -> None:
    """Boxes are of the signs that are counted, and a map on them is warned of."""
    image = head(256, text="MEYER 1950 R12")
    boxes = boxes_of_text(image)
    assert len(boxes) == signs_of_text(image) > 5
    mask = places(image, "MR")["text"]
    lit = np.zeros_like(mask)
    lit[:20] = image[:20] > 0.5
    assert mask[lit].mean() > 0.9
    assert not mask[40:].any()
    found = shares(spot(256, 40, 10), image, "other")
    assert any("text" in warning for warning in warnings_of(found))
    assert "text" not in shares(spot(200, 40, 10), head(), "other")


def test_boxes_of_a_large_picture_are_in_its_own_pixels() -> None:
    """Signs are looked for in a smaller picture, and told in the large one's pixels."""
    large = cv2.resize(head(256, text="MEYER 1950 R12"), (2048, 2048))
    boxes = boxes_of_text(np.asarray(large, np.float32))
    assert boxes
    assert max(y + h for _, y, _, h in boxes) < 200
    assert max(x + w for x, _, w, _ in boxes) > 500


def test_outside_of_the_retina_is_beyond_its_disc() -> None:
    """A fundus photograph has a disc; one that fills the image has no outside."""
    photo = np.zeros((240, 320, 3), np.float32)
    cv2.circle(photo, (160, 120), 100, (0.7, 0.4, 0.2), thickness=-1)
    found = shares(np.ones((240, 320), np.float32), photo, "fundus")
    assert found["outside"].of_area == pytest.approx(1 - np.pi * 100**2 / (240 * 320), abs=0.03)
    assert "outside" not in places(np.full((64, 64, 3), 0.5, np.float32), "fundus")
    assert "outside" not in places(head(), "OCT")


def test_means_are_over_the_images_that_have_the_place() -> None:
    """Text in one image of two does not count as none in the other; an empty map has no shares."""
    one = {"border": Share(0.2, 0.1), "text": Share(0.5, 0.05)}
    found = mean_shares([one, {"border": Share(0.4, 0.3)}, {}])
    assert found["border"] == pytest.approx((0.3, 0.2))
    assert found["text"] == (0.5, 0.05)
    assert set(found) <= set(LIMITS)
    assert shares(np.zeros((64, 64), np.float32), head(64), "MR") == {}


@pytest.mark.parametrize(
    ("name", "of_map", "of_area", "wrong"),
    [("outside", 0.4, 0.5, False), ("outside", 0.6, 0.5, True), ("outside", 0.25, 0.1, False),
     ("border", 0.45, 0.19, True), ("text", 0.15, 0.1, False), ("text", 0.25, 0.1, True)],
)  # fmt: skip
def test_a_place_that_draws_less_than_its_area_is_not_warned_of(
    name: str, of_map: float, of_area: float, *, wrong: bool
) -> None:
    """A place is wrong above its limit, and only where it draws more than an even map would."""
    assert is_wrong(name, Share(of_map, of_area)) == wrong
