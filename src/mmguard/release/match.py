"""Which row of a release is which row of the original."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmguard.data.images import load_image
from mmguard.data.rows import owner_texts, skeleton
from mmguard.data.text import inserted_words
from mmguard.errors import SampleError
from mmguard.release.layout import change


@dataclass(frozen=True)
class Matching:
    """Rows of the original and of the release that belong together, by number."""

    pairs: list[tuple[int, int]]
    """(original, released), by released row."""
    missing: list[int]
    """Rows of the original without a released one."""
    extra: list[int]
    """Released rows without an original."""
    altered: dict[int, str]
    """Fields that differ from the original, image path and inserted words aside, by released row."""

    @property
    def in_order(self) -> bool:
        """Whether matched rows stand in the original's order."""
        return all(a[0] < b[0] for a, b in zip(self.pairs, self.pairs[1:], strict=False))


def match_rows(
    originals: Sequence[dict[str, Any]],
    images: Sequence[str],
    released: Sequence[dict[str, Any]],
    released_images: Sequence[str],
    image_field: str,
    resembles: Callable[[int, int], bool] | None = None,
) -> Matching:
    """Finds the original of every released row.

    A released row belongs to the first unused original that has the same image and fields and whose words it
    keeps. What is left over was altered: it goes, in order, to a left-over original with the same image and
    fields, then to one with the same image.

    Args:
        originals: rows of the original that should be in the release, in order.
        images: for each of them, the path of its image; "" where images have no names.
        released: rows of the release.
        released_images: for each of them, the path of the original of its image, going by its name; "" if it has none.
        image_field: the `image_field` of both.
        resembles: whether the image of an original, by number, may be that of a released row, by number; where images
            have no names, rows with the same words are told apart by it.
    """
    there = [(image, skeleton(row, image_field)) for row, image in zip(originals, images, strict=True)]
    here = [(image, _skeleton(row, image_field)) for row, image in zip(released, released_images, strict=True)]

    def fits(place: int, number: int) -> bool:
        return _keeps_words(originals[place], released[number]) and (not resembles or resembles(place, number))

    matched = _match_kept(there, here, fits)
    altered = _match_by(there, here, matched, lambda key: key)
    altered |= _match_by(there, here, {**matched, **altered}, lambda key: key[0])
    placed = {**matched, **altered}
    return Matching(
        [(placed[number], number) for number in sorted(placed)],
        sorted(set(range(len(originals))) - set(placed.values())),
        [number for number in range(len(released)) if number not in placed],
        {
            number: _altered_fields(originals[place], released[number], image_field)
            for number, place in altered.items()
            if there[place] != here[number]
        },
    )


_LIKE = 24
"""Mean difference of two pictures, of 255: far above a protection's, far below that of two photographs."""

_Key = tuple[str, str]
"""Image and `skeleton` of a row."""


def look_alike(originals: Sequence[Path], released: Sequence[Path]) -> Callable[[int, int], bool]:
    """Whether two images, by number, differ by so little that one may be the other's release."""

    def resembles(place: int, number: int) -> bool:
        try:
            before, after = load_image(originals[place]), load_image(released[number])
        except SampleError:
            return False
        return before.shape == after.shape and change(before, after)[1] <= _LIKE

    return resembles


def _match_kept(there: Sequence[_Key], here: Sequence[_Key], fits: Callable[[int, int], bool]) -> dict[int, int]:
    """The originals of released rows that changed in nothing but inserted words."""
    unused: dict[_Key, list[int]] = {}
    for place, key in enumerate(there):
        unused.setdefault(key, []).append(place)
    matched: dict[int, int] = {}
    for number, key in enumerate(here):
        candidates = unused.get(key, [])
        fitting = (place for place in candidates if fits(place, number))
        first = next(fitting, None)
        if first is not None:
            candidates.remove(first)
            matched[number] = first
    return matched


def _match_by(
    there: Sequence[_Key], here: Sequence[_Key], placed: dict[int, int], part: Callable[[_Key], object]
) -> dict[int, int]:
    """The originals of released rows that are not placed yet and share a part of their key, in order."""
    used = set(placed.values())
    unused: dict[object, deque[int]] = {}
    for place, key in enumerate(there):
        if place not in used:
            unused.setdefault(part(key), deque()).append(place)
    return {
        number: unused[part(key)].popleft()
        for number, key in enumerate(here)
        if number not in placed and unused.get(part(key))
    }


def _altered_fields(original: dict[str, Any], row: dict[str, Any], image_field: str) -> str:
    # As JSON throughout, since 1 == True in Python. A row that is not well formed is compared as it stands.
    before, after = skeleton(original, image_field), _skeleton(row, image_field) or json.dumps(row)
    parts = [{name: json.dumps(v) for name, v in json.loads(text).items()} for text in (before, after)]
    names = [name for name in {**parts[0], **parts[1]} if parts[0].get(name) != parts[1].get(name)]
    return ", ".join(names)


def _skeleton(row: dict[str, Any], image_field: str) -> str:
    """The skeleton of a released row, or "", which no original has, if it is not well formed."""
    try:
        return skeleton(row, image_field)
    except ValueError:
        return ""


def _keeps_words(original: dict[str, Any], row: dict[str, Any]) -> bool:
    pairs = zip(owner_texts(original), owner_texts(row), strict=True)  # equal skeletons have equally many
    return all(inserted_words(before, after) is not None for before, after in pairs)
