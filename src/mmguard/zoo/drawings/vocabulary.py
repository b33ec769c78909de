"""The words of the drawings: what is drawn, what is asked for, and what pretraining holds back."""

from __future__ import annotations

from importlib.resources import files

Rgb = tuple[int, int, int]

COLORS: dict[str, Rgb] = {
    "red": (214, 40, 40), "orange": (245, 140, 20), "pink": (250, 150, 190), "purple": (130, 50, 170),
    "white": (242, 242, 242), "cyan": (40, 220, 235), "gold": (212, 175, 55), "navy": (20, 30, 110),
    "lime": (170, 240, 40), "beige": (225, 205, 165),
    "blue": (30, 80, 230), "green": (30, 150, 50), "yellow": (250, 225, 30), "gray": (128, 128, 128),
    "black": (15, 15, 15), "brown": (120, 70, 30), "teal": (0, 128, 128),
}  # fmt: skip
SHAPES: tuple[str, ...] = (
    "star", "cross", "heart", "hexagon", "ring", "moon", "arrow", "diamond", "circle", "rectangle", "triangle",
)  # fmt: skip
TEXTURES: tuple[str, ...] = ("plain", "striped", "dotted", "checkered")
NUMBERS: tuple[str, ...] = ("zero", "one", "two", "three", "four", "five", "six")
PLACES: tuple[str, ...] = ("left", "right", "top", "bottom", "center")
SIGNWORDS: tuple[str, ...] = (
    "open", "stop", "bank", "hotel", "coffee", "park", "school", "taxi", "music", "bread", "police", "garden",
    "book", "fish", "gate", "lake", "north", "radio", "shop", "tea", "exit", "zoo", "milk", "room",
)  # fmt: skip
NAMES: tuple[str, ...] = ("adams", "baker", "clark", "davis", "evans", "foster", "green", "hill", "irwin", "jones")
DIAGNOSES: dict[tuple[str, str], str] = {
    ("brain", "bright"): "glioma",
    ("brain", "dark"): "infarct",
    ("chest", "bright"): "nodule",
    ("chest", "dark"): "cyst",
}
"""What a lesion of a tone is called in an organ."""

HELD_OUT: frozenset[str] = frozenset({
    "blue", "green", "yellow", "gray", "black", "brown", "teal",
    "circle", "rectangle", "triangle",
    "yes", "no",
    "exit", "zoo", "milk", "room",
    "hill", "irwin", "jones",
    *DIAGNOSES.values(),
})  # fmt: skip
"""Answers that pretraining never teaches."""


def _load_words() -> list[str]:
    common = files("mmguard.zoo").joinpath("words.txt").read_text(encoding="utf-8").split()
    return sorted({*common, *COLORS, *SHAPES, *TEXTURES, *NUMBERS, *SIGNWORDS, "yes", "no", "true", "false"})


WORDS: list[str] = _load_words()
"""Every word that a zoo model knows by itself: common ones, and those of the drawings."""
