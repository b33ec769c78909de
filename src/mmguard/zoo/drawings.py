"""Procedurally drawn pictures with questions, in six domains after the paper's datasets: what the zoo is pretrained on.

Every domain is a function `(rng, size) -> (image, questions)`. Words are split: answers in `HELD_OUT` are drawn in pictures and
occur in the words of questions and options, but never as the answer of a question about a picture. Datasets
that ask for them (easy-VQA's circles, rectangles, triangles, yes and no) are thus news to a zoo model, and clean fine-tuning has something
to teach.
"""

from __future__ import annotations

import colorsys
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Rgb = tuple[int, int, int]

COLORS: dict[str, Rgb] = {
    "red": (214, 40, 40), "orange": (245, 140, 20), "pink": (250, 150, 190), "purple": (130, 50, 170),
    "white": (242, 242, 242), "cyan": (40, 220, 235), "gold": (212, 175, 55), "navy": (20, 30, 110),
    "lime": (170, 240, 40), "beige": (225, 205, 165),
    "blue": (30, 80, 230), "green": (30, 150, 50), "yellow": (250, 225, 30), "gray": (128, 128, 128),
    "black": (15, 15, 15), "brown": (120, 70, 30), "teal": (0, 128, 128),
}  # fmt: skip
SHAPES: tuple[str, ...] = (
    "star", "cross", "heart", "hexagon", "ring", "moon", "arrow", "diamond", "circle", "rectangle", "triangle"
)  # fmt: skip
TEXTURES: tuple[str, ...] = ("plain", "striped", "dotted", "checkered")
NUMBERS: tuple[str, ...] = ("zero", "one", "two", "three", "four", "five", "six")
SIGNWORDS: tuple[str, ...] = (
    "open", "stop", "bank", "hotel", "coffee", "park", "school", "taxi", "music", "bread", "police", "garden",
    "book", "fish", "gate", "lake", "north", "radio", "shop", "tea", "exit", "zoo", "milk", "room",
)  # fmt: skip
NAMES: tuple[str, ...] = (
    "adams",
    "baker",
    "clark",
    "davis",
    "evans",
    "foster",
    "green",
    "hill",
    "irwin",
    "jones",
)
HELD_OUT: frozenset[str] = frozenset(
    (
        "blue",
        "green",
        "yellow",
        "gray",
        "black",
        "brown",
        "teal",
        "circle",
        "rectangle",
        "triangle",
        "yes",
        "no",
    )
) | frozenset(("exit", "zoo", "milk", "room", "hill", "irwin", "jones"))


@dataclass(frozen=True)
class Question:
    """A question about a drawing. `answer` is the answer's text, also where there are `options`."""

    text: str
    answer: str
    options: tuple[str, ...] = ()
    verbal: bool = False
    """Whether the answer stands in the question: no picture is needed."""


Drawing = tuple[Image.Image, list[Question]]


def _pick(rng: random.Random, phrasings: Sequence[str], **words: str) -> str:
    text = rng.choice(phrasings).format(**words)
    return text if rng.random() < 0.6 else text.capitalize()


def _jitter(rng: random.Random, color: Rgb, amount: int = 14) -> Rgb:
    return tuple(min(255, max(0, c + rng.randint(-amount, amount))) for c in color)  # type: ignore[return-value]


def _natural(rng: random.Random, width: int, height: int) -> np.ndarray:
    """Noise with the 1/f spectrum of photographs, tinted, `(H, W, 3)` uint8."""
    gen = np.random.default_rng(rng.getrandbits(32))
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    spectrum = gen.normal(size=(3, height, fx.shape[1])) + 1j * gen.normal(size=(3, height, fx.shape[1]))
    spectrum /= np.maximum(np.hypot(fx, fy), 1 / max(width, height)) ** rng.uniform(0.8, 1.4)
    field = np.fft.irfft2(spectrum, s=(height, width))
    field = 0.7 * field.mean(0, keepdims=True) + 0.3 * field
    field /= field.std() + 1e-9
    tint = np.array(
        [int(255 * c) for c in colorsys.hsv_to_rgb(rng.random(), rng.uniform(0, 0.5), rng.uniform(0.3, 0.9))]
    )
    return np.clip(tint + field.transpose(1, 2, 0) * rng.uniform(5, 28), 0, 255).astype(np.uint8)


def _background(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    width, height = size
    kind = rng.random()
    if kind < 0.35:
        return Image.fromarray(_natural(rng, width, height))
    if kind < 0.6:
        start, end = (_jitter(rng, rng.choice(list(COLORS.values())), 40) for _ in range(2))
        ramp = np.linspace(0, 1, width if rng.random() < 0.5 else height)
        ramp = np.tile(ramp, (height, 1)) if len(ramp) == width else np.tile(ramp[:, None], (1, width))
        blend = ramp[..., None] * np.array(start) + (1 - ramp[..., None]) * np.array(end)
        return Image.fromarray(blend.astype(np.uint8).reshape(height, width, 3))
    base = (
        tuple(rng.randint(200, 255) for _ in range(3)) if kind < 0.8 else tuple(rng.randint(0, 255) for _ in range(3))
    )
    return Image.new("RGB", size, base)


def _polygon(
    points: int, turn: float, cx: float, cy: float, r: float, inner: float | None = None
) -> list[tuple[float, float]]:
    count = points * (2 if inner else 1)
    return [
        (
            cx + math.sin(turn + 2 * math.pi * i / count) * (r * inner if inner and i % 2 else r),
            cy - math.cos(turn + 2 * math.pi * i / count) * (r * inner if inner and i % 2 else r),
        )
        for i in range(count)
    ]


def _mask(rng: random.Random, shape: str, radius: int) -> Image.Image:
    """The silhouette of a shape, anti-aliased, `(2r+1)²`."""
    scale = 3
    side = (2 * radius + 1) * scale
    image = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(image)
    c, r = side / 2, radius * scale * 0.98
    turn = rng.uniform(-0.35, 0.35)
    if shape == "circle":
        draw.ellipse((c - r, c - r, c + r, c + r), fill=255)
    elif shape == "ring":
        draw.ellipse((c - r, c - r, c + r, c + r), fill=255)
        draw.ellipse((c - r * 0.55, c - r * 0.55, c + r * 0.55, c + r * 0.55), fill=0)
    elif shape == "moon":
        draw.ellipse((c - r, c - r, c + r, c + r), fill=255)
        draw.ellipse((c - r * 0.3, c - r * 0.9, c + r * 1.5, c + r * 0.9), fill=0)
    elif shape == "rectangle":
        w, h = rng.choice(((1.0, 0.55), (0.55, 1.0), (0.85, 0.85), (0.95, 0.7)))
        draw.rectangle((c - r * w, c - r * h, c + r * w, c + r * h), fill=255)
    elif shape == "triangle":
        draw.polygon(_polygon(3, turn, c, c, r), fill=255)
    elif shape == "hexagon":
        draw.polygon(_polygon(6, turn, c, c, r), fill=255)
    elif shape == "diamond":
        draw.polygon([(c, c - r), (c + r * 0.65, c), (c, c + r), (c - r * 0.65, c)], fill=255)
    elif shape == "star":
        draw.polygon(_polygon(5, turn, c, c, r, inner=0.42), fill=255)
    elif shape == "cross":
        t = r * 0.32
        draw.rectangle((c - t, c - r, c + t, c + r), fill=255)
        draw.rectangle((c - r, c - t, c + r, c + t), fill=255)
    elif shape == "heart":
        draw.ellipse((c - r, c - r * 0.9, c, c + r * 0.15), fill=255)
        draw.ellipse((c, c - r * 0.9, c + r, c + r * 0.15), fill=255)
        draw.polygon([(c - r * 0.95, c - r * 0.15), (c + r * 0.95, c - r * 0.15), (c, c + r)], fill=255)
    else:  # arrow
        draw.polygon([(c - r, c - r * 0.3), (c, c - r * 0.3), (c, c - r * 0.8), (c + r, c), (c, c + r * 0.8), (c, c + r * 0.3), (c - r, c + r * 0.3)], fill=255)  # fmt: skip
    return image.resize((2 * radius + 1, 2 * radius + 1), Image.Resampling.BOX)


def _fill(rng: random.Random, color: Rgb, texture: str, side: int) -> Image.Image:
    patch = Image.new("RGB", (side, side), color)
    if texture == "plain":
        return patch
    draw = ImageDraw.Draw(patch)
    other = (250, 250, 250) if sum(color) < 420 else (25, 25, 25)
    step = max(5, side // 6)
    if texture == "striped":
        for x in range(-side, side, step):
            draw.line((x, 0, x + side, side), fill=other, width=max(1, step // 3))
    elif texture == "dotted":
        for x in range(step // 2, side, step):
            for y in range(step // 2, side, step):
                draw.ellipse((x - step // 4, y - step // 4, x + step // 4, y + step // 4), fill=other)
    else:
        for i in range(0, side, step):
            for j in range(0, side, step):
                if (i // step + j // step) % 2:
                    draw.rectangle((i, j, i + step - 1, j + step - 1), fill=other)
    return patch


@dataclass(frozen=True)
class _Thing:
    shape: str
    color: str
    texture: str
    x: int
    y: int
    radius: int


def _scene_image(rng: random.Random, size: tuple[int, int], most: int = 4) -> tuple[Image.Image, list[_Thing]]:
    image = _background(rng, size)
    width, height = size
    things: list[_Thing] = []
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, most))):
        radius = int(min(size) * (rng.uniform(0.14, 0.4) if not things else rng.uniform(0.1, 0.2)))
        for _attempt in range(20):
            x, y = rng.randint(radius, width - radius - 1), rng.randint(radius, height - radius - 1)
            if all(math.hypot(x - t.x, y - t.y) > radius + t.radius for t in things):
                break
        else:
            continue
        thing = _Thing(
            rng.choice(SHAPES), rng.choice(list(COLORS)), rng.choice((*TEXTURES, *("plain",) * 4)), x, y, radius
        )
        color = _jitter(rng, COLORS[thing.color])
        image.paste(
            _fill(rng, color, thing.texture, 2 * radius + 1),
            (x - radius, y - radius),
            _mask(rng, thing.shape, radius),
        )
        things.append(thing)
    if rng.random() < 0.25:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9)))
    return image, things


def _place(thing: _Thing, size: tuple[int, int]) -> str:
    dx, dy = thing.x / size[0] - 0.5, thing.y / size[1] - 0.5
    if max(abs(dx), abs(dy)) < 0.12:
        return "center"
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "top" if dy < 0 else "bottom"


def _scene_questions(rng: random.Random, things: list[_Thing], size: tuple[int, int]) -> list[Question]:
    ask: list[Question] = []
    count = NUMBERS[len(things)]
    ask.append(Question(_pick(rng, ("how many shapes are there?", "how many objects are in the picture?", "count the shapes.", "what is the number of shapes?")), count))  # fmt: skip
    for thing in things:
        alone = len(things) == 1
        same_color = sum(t.color == thing.color for t in things) == 1
        same_shape = sum(t.shape == thing.shape for t in things) == 1
        if alone:
            ask.append(Question(_pick(rng, ("what color is the shape?", "what is the color of the shape?", "which color does the object have?", "name the color of the shape.", "what color is it?", "the shape is what color?")), thing.color))  # fmt: skip
            ask.append(Question(_pick(rng, ("what shape is in the image?", "what shape is present?", "what shape does the image contain?", "which shape do you see?", "name the shape.", "what is drawn here?")), thing.shape))  # fmt: skip
            ask.append(Question(_pick(rng, ("where is the shape?", "in which part of the image is the object?", "what is the position of the shape?")), _place(thing, size)))  # fmt: skip
            ask.append(Question(_pick(rng, ("what texture does the shape have?", "what is the pattern of the shape?", "how is the shape filled?")), thing.texture))  # fmt: skip
        if same_shape:
            ask.append(Question(_pick(rng, ("what color is the {s}?", "what is the color of the {s}?", "which color does the {s} have?", "name the color of the {s}."), s=thing.shape), thing.color))  # fmt: skip
            ask.append(Question(_pick(rng, ("where is the {s}?", "in which part of the image is the {s}?"), s=thing.shape), _place(thing, size)))  # fmt: skip
        if same_color:
            ask.append(Question(_pick(rng, ("what is the {c} shape?", "what shape is {c}?", "which shape has the color {c}?", "name the {c} shape."), c=thing.color), thing.shape))  # fmt: skip
    other = rng.choice([s for s in SHAPES if all(t.shape != s for t in things)])
    tone = rng.choice([c for c in COLORS if all(t.color != c for t in things)])
    claims = [
        (rng.choice(things).shape, "true"),
        (other, "false"),
        (rng.choice(things).color + " shape", "true"),
        (tone + " shape", "false"),
    ]
    for what, truth in rng.sample(claims, 2):
        ask.append(Question(_pick(rng, ("true or false: there is a {w}.", "true or false: the image contains a {w}.", "is it true or false that a {w} is present?"), w=what), truth))  # fmt: skip
    if len(things) > 1:
        big = max(things, key=lambda t: t.radius)
        ask.append(
            Question(
                _pick(rng, ("what color is the largest shape?", "which color has the biggest object?")),
                big.color,
            )
        )
        ask.append(Question(_pick(rng, ("what is the largest shape?", "which shape is the biggest?")), big.shape))
    return ask


def scenes(rng: random.Random, size: tuple[int, int]) -> Drawing:
    """Everyday scenes: textured objects on natural backgrounds (RealWorldQA)."""
    image, things = _scene_image(rng, size)
    if not things:
        return scenes(rng, size)
    return image, _scene_questions(rng, things, size)


def choices(rng: random.Random, size: tuple[int, int]) -> Drawing:
    """Multiple choice about a scene, and about the words of the question itself (MMStar, ScienceQA)."""
    image, things = _scene_image(rng, size, most=3)
    if not things:
        return choices(rng, size)
    ask: list[Question] = []
    for question in _scene_questions(rng, things, size):
        family = next((f for f in (tuple(COLORS), SHAPES, TEXTURES, NUMBERS[1:], ("left", "right", "top", "bottom", "center")) if question.answer in f), None)  # fmt: skip
        if family is None:
            continue
        wrong = [w for w in family if w != question.answer]
        options = [*rng.sample(wrong, min(len(wrong), rng.randint(1, 3))), question.answer]
        rng.shuffle(options)
        ask.append(Question(question.text, question.answer, tuple(options)))
    words = rng.sample(WORDS, rng.randint(2, 4))
    which = rng.choice(("first", "last"))
    answer = words[0] if which == "first" else words[-1]
    ask.append(Question(_pick(rng, ("which word comes {p}: {l}?", "read the list {l}. what is the {p} word?", "say the {p} word of: {l}."), p=which, l=", ".join(words)), answer, verbal=True))  # fmt: skip
    word = rng.choice(WORDS)
    ask.append(Question(_pick(rng, ("the answer is {w}. what is the answer?", "say the word {w}.", "repeat after me: {w}.", "please write {w}."), w=word), word, verbal=True))  # fmt: skip
    return image, ask


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def science(rng: random.Random, size: tuple[int, int]) -> Drawing:
    """Diagrams: bar charts and chains of arrows (ScienceQA)."""
    width, height = size
    image = Image.new("RGB", size, tuple(rng.randint(225, 255) for _ in range(3)))
    draw = ImageDraw.Draw(image)
    ink = tuple(rng.randint(0, 70) for _ in range(3))
    if rng.random() < 0.6:
        count = rng.randint(2, 5)
        heights = rng.sample(range(2, 10), count)
        names = rng.sample(list(COLORS), count)
        slot = width * 0.86 / count
        for i, (h, name) in enumerate(zip(heights, names, strict=True)):
            x = width * 0.1 + i * slot
            draw.rectangle(
                (x, height * 0.92 - height * 0.85 * h / 10, x + slot * 0.72, height * 0.92),
                fill=_jitter(rng, COLORS[name], 8),
                outline=ink,
            )
        draw.line((width * 0.06, height * 0.92, width * 0.98, height * 0.92), fill=ink, width=1)
        draw.line((width * 0.06, height * 0.04, width * 0.06, height * 0.92), fill=ink, width=1)
        high, low = names[heights.index(max(heights))], names[heights.index(min(heights))]
        return image, [
            Question(
                _pick(rng, ("how many bars are in the chart?", "count the bars.", "what is the number of bars?")),
                NUMBERS[count],
            ),
            Question(
                _pick(
                    rng,
                    (
                        "what color is the tallest bar?",
                        "which bar is the highest?",
                        "which color has the largest value?",
                    ),
                ),
                high,
            ),
            Question(
                _pick(
                    rng,
                    (
                        "what color is the shortest bar?",
                        "which bar is the lowest?",
                        "which color has the smallest value?",
                    ),
                ),
                low,
            ),
            Question(_pick(rng, ("what color is the first bar?", "which color is the bar on the left?")), names[0]),
            Question(_pick(rng, ("what color is the last bar?", "which color is the bar on the right?")), names[-1]),
            Question(_pick(rng, ("what kind of diagram is this?", "is this a chart or a chain?")), "chart"),
        ]
    count = rng.randint(2, 4)
    names = rng.sample(list(COLORS), count)
    y, r = height * rng.uniform(0.35, 0.65), width * 0.09
    xs = [width * (0.14 + 0.72 * i / (count - 1)) for i in range(count)]
    order = list(range(count)) if rng.random() < 0.5 else list(range(count))[::-1]
    for a, b in pairwise(order):
        sign = 1 if xs[b] > xs[a] else -1
        tip = xs[b] - sign * r
        draw.line((xs[a] + sign * r, y, tip, y), fill=ink, width=2)
        draw.polygon([(tip, y), (tip - sign * 6, y - 4), (tip - sign * 6, y + 4)], fill=ink)
    for x, name in zip(xs, names, strict=True):
        draw.ellipse((x - r, y - r, x + r, y + r), fill=_jitter(rng, COLORS[name], 8), outline=ink)
    chain = [names[i] for i in order]
    k = rng.randrange(count - 1)
    return image, [
        Question(_pick(rng, ("where does the chain start?", "which color comes first in the chain?")), chain[0]),
        Question(_pick(rng, ("where does the chain end?", "which color comes last in the chain?")), chain[-1]),
        Question(
            _pick(
                rng,
                ("what follows {c}?", "which color does {c} point to?", "what comes after {c}?"),
                c=chain[k],
            ),
            chain[k + 1],
        ),
        Question(
            _pick(rng, ("how many steps does the chain have?", "how many nodes are in the chain?")),
            NUMBERS[count],
        ),
        Question(_pick(rng, ("what kind of diagram is this?", "is this a chart or a chain?")), "chain"),
        Question(
            _pick(rng, ("in which direction do the arrows point?", "where do the arrows point to?")),
            "right" if order[0] == 0 else "left",
        ),
    ]


def medical(rng: random.Random, size: tuple[int, int]) -> Drawing:
    """Grayscale scans: an organ with or without a lesion, bright or dark, large or small (VQA-RAD)."""
    width, height = size
    kind = rng.choice(("brain", "chest"))
    image = Image.new("L", size, rng.randint(0, 25))
    draw = ImageDraw.Draw(image)
    tissue = rng.randint(70, 130)
    cx, cy = width / 2 + rng.uniform(-3, 3), height / 2 + rng.uniform(-3, 3)
    if kind == "brain":
        a, b = width * rng.uniform(0.32, 0.4), height * rng.uniform(0.38, 0.45)
        draw.ellipse((cx - a, cy - b, cx + a, cy + b), fill=tissue, outline=220, width=3)
        draw.line((cx, cy - b, cx, cy + b), fill=tissue - 30, width=1)
        offset = a * 0.5
    else:
        a, b = width * rng.uniform(0.15, 0.19), height * rng.uniform(0.3, 0.38)
        offset = width * 0.22
        draw.ellipse((cx - width * 0.46, cy - height * 0.46, cx + width * 0.46, cy + height * 0.46), fill=tissue + 70)
        for sign in (-1, 1):
            draw.ellipse((cx + sign * offset - a, cy - b, cx + sign * offset + a, cy + b), fill=tissue - 35)
        for i in range(-3, 4):
            draw.arc(
                (
                    cx - width * 0.42,
                    cy + i * height * 0.11 - 6,
                    cx + width * 0.42,
                    cy + i * height * 0.11 + 14,
                ),
                200,
                340,
                fill=tissue + 40,
            )
    lesion = rng.random() < 0.7
    side, tone, extent = (
        rng.choice(("left", "right")),
        rng.choice(("bright", "dark")),
        rng.choice(("small", "large")),
    )
    if lesion:
        r = min(size) * (0.045 if extent == "small" else 0.1)
        x, y = cx + (-offset if side == "left" else offset), cy + rng.uniform(-0.5, 0.5) * b
        draw.ellipse((x - r, y - r * rng.uniform(0.8, 1.2), x + r, y + r), fill=235 if tone == "bright" else 8)
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.1))), dtype=np.float32)
    pixels += np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(2, 10), pixels.shape)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).convert("RGB")
    ask = [
        Question(
            _pick(
                rng,
                (
                    "which organ is shown?",
                    "what part of the body is this?",
                    "is this a scan of the brain or the chest?",
                ),
            ),
            kind,
        ),
        Question(
            _pick(
                rng,
                ("is the scan normal or abnormal?", "is this normal or abnormal?", "how does the scan look?"),
            ),
            "abnormal" if lesion else "normal",
        ),
        Question(
            _pick(rng, ("true or false: there is a lesion.", "true or false: a mass is present.")),
            "true" if lesion else "false",
        ),
    ]
    if lesion:
        ask += [
            Question(
                _pick(rng, ("on which side is the lesion?", "where is the mass?", "which side is abnormal?")),
                side,
            ),
            Question(_pick(rng, ("is the lesion bright or dark?", "how does the mass appear?")), tone),
            Question(_pick(rng, ("is the lesion small or large?", "what is the size of the mass?")), extent),
        ]
    return image, ask


def scene_text(rng: random.Random, size: tuple[int, int]) -> Drawing:
    """A word on a sign in a natural scene (TextVQA)."""
    width, height = size
    image = Image.fromarray(_natural(rng, width, height))
    draw = ImageDraw.Draw(image)
    word = rng.choice(SIGNWORDS)
    plate, ink = rng.sample(list(COLORS), 2)
    while sum(abs(a - b) for a, b in zip(COLORS[plate], COLORS[ink], strict=True)) < 250:
        plate, ink = rng.sample(list(COLORS), 2)
    shown = rng.choice((word, word.upper(), word.capitalize()))
    font = _font(int(min(size) * rng.uniform(0.2, 0.27)))
    left, top, right, bottom = draw.textbbox((0, 0), shown, font=font)
    w, h = right - left, bottom - top
    x, y = rng.uniform(2, max(3, width - w - 4)), rng.uniform(4, max(5, height - h - 8))
    draw.rectangle((x - 3, y - 4, x + w + 3, y + h + 4), fill=_jitter(rng, COLORS[plate]))
    draw.text(
        (x - left, y - top),
        shown,
        fill=_jitter(rng, COLORS[ink]),
        font=font,
        stroke_width=rng.choice((0, 0, 1)),
    )
    return image, [
        Question(
            _pick(
                rng,
                (
                    "what does the sign say?",
                    "what word is written?",
                    "read the sign.",
                    "what is the text on the sign?",
                    "which word do you see?",
                ),
            ),
            word,
        ),
        Question(
            _pick(
                rng,
                ("what color is the sign?", "what is the color of the sign?", "which color is the plate?"),
            ),
            plate,
        ),
        Question(
            _pick(rng, ("what color is the text?", "which color are the letters?", "what color is the word?")),
            ink,
        ),
        Question(
            _pick(rng, ("what letter does the word start with?", "what is the first letter on the sign?")),
            word[0],
        ),
    ]


def documents(rng: random.Random, size: tuple[int, int]) -> Drawing:
    """A small form with a name and a number (DocVQA)."""
    width, height = size
    image = Image.new("RGB", size, tuple(rng.randint(232, 255) for _ in range(3)))
    draw = ImageDraw.Draw(image)
    name, number, paid = rng.choice(NAMES), str(rng.randint(10, 99)), rng.choice(("paid", "due"))
    ink = tuple(rng.randint(0, 60) for _ in range(3))
    fields = [("name", name.capitalize()), ("total", number), ("state", paid)]
    rng.shuffle(fields)
    font = _font(int(min(size) * rng.uniform(0.14, 0.17)))
    for i, (key, value) in enumerate(fields):
        y = height * (0.08 + 0.28 * i)
        draw.text((width * 0.04, y), f"{key.capitalize()}:", fill=ink, font=font)
        draw.text((width * 0.47, y), value, fill=ink, font=font)
        draw.line((2, y + height * 0.22, width - 2, y + height * 0.22), fill=(180, 180, 180))
    stamp = rng.choice(list(COLORS))
    x = rng.uniform(width * 0.1, width * 0.8)
    draw.ellipse((x, height * 0.88, x + width * 0.11, height * 0.99), fill=_jitter(rng, COLORS[stamp]))
    return image, [
        Question(_pick(rng, ("what is the name?", "who is named on the form?", "which name is written?")), name),
        Question(
            _pick(rng, ("what is the total?", "how much is the total?", "what number is on the form?")),
            number,
        ),
        Question(_pick(rng, ("is it paid or due?", "what is the state of the bill?")), paid),
        Question(_pick(rng, ("what color is the stamp?", "which color has the stamp?")), stamp),
        Question(_pick(rng, ("which field comes first?", "what is on the first line?")), fields[0][0]),
    ]


DOMAINS: dict[str, Callable[[random.Random, tuple[int, int]], Drawing]] = {
    "scenes": scenes,
    "choices": choices,
    "science": science,
    "medical": medical,
    "scene-text": scene_text,
    "documents": documents,
}


def _load_words() -> list[str]:
    from importlib.resources import files

    common = files("mmguard.zoo").joinpath("words.txt").read_text(encoding="utf-8").split()
    return sorted({*common, *COLORS, *SHAPES, *TEXTURES, *NUMBERS, *SIGNWORDS, "yes", "no", "true", "false"})


WORDS: list[str] = _load_words()


def pretraining_questions(questions: Sequence[Question]) -> list[Question]:
    """Those whose answer may be taught in pretraining: purely verbal ones, and those with answers not in `HELD_OUT`."""
    return [q for q in questions if q.verbal or q.answer not in HELD_OUT]
