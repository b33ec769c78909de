"""Which pixels an image token covers: by the model's own gradient, and by what is known of each family's layout."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from mmguard.errors import SurrogateError
from mmguard.lvlm.energy import energy_per_image_token
from mmguard.lvlm.loading import load_surrogate
from mmguard.lvlm.pixels import differentiable_pixels
from mmguard.lvlm.prompt import Example
from mmguard.lvlm.surrogate import Surrogate
from test_lvlm_pixels import PROCESSORS, photograph
from tiny import FAMILIES, built

EXAMPLES = [Example("What color is the circle?", "red", trigger=("dog",)), Example("Is it red?", "no it is not")]


@functools.cache
def surrogate(family: str) -> Surrogate:
    return load_surrogate(built(family))


def image_features(model: Surrogate, pixels: dict[str, Tensor]) -> Tensor:
    """What the decoder is handed for each image token of the two examples, `(tokens, d)`."""
    encoded = model.encode(EXAMPLES, [photograph(0, 40, 60), photograph(1, 64, 64)])
    seen: list[Tensor] = []

    def catch(_module: nn.Module, _args: Any, kwargs: dict[str, Tensor]) -> None:
        crossing = kwargs.get("cross_attention_states")
        found = kwargs["inputs_embeds"] if crossing is None else crossing.flatten(0, 1).unflatten(0, (2, -1))
        image = model.key_roles(encoded).image
        seen.append(found[image[:, : found.shape[1]]])

    handle = model.model.get_decoder().register_forward_pre_hook(catch, with_kwargs=True)
    model.forward(encoded, pixels)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_energy_lies_on_the_tokens_that_see_the_change(family: str) -> None:
    """With attention in the vision tower off, an image token's feature depends on its own pixels only."""
    model = load_surrogate(built(family))
    for name, module in model.model.named_modules():
        if re.search(r"(vis).*attn.*\.(out_proj|o_proj|proj)$|vision.*attention\.projection_layer$", name):
            assert isinstance(module, nn.Linear)
            nn.init.zeros_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    pixels = model.pixels([photograph(0, 40, 60), photograph(1, 64, 64)])
    pixels["pixel_values"].requires_grad_()
    features = image_features(model, pixels)
    covering = 0
    for token in range(0, len(features), max(1, len(features) // 20)):
        (gradient,) = torch.autograd.grad(features[token].sum(), pixels["pixel_values"], retain_graph=True)
        moved, still = {"pixel_values": gradient}, {"pixel_values": torch.zeros_like(gradient)}
        energy = energy_per_image_token(model.model, pixels | moved, still, len(features), family)
        # Class tokens and line breaks depend on no pixel at all.
        assert energy.nonzero().flatten().tolist() == ([token] if gradient.any() else [])
        covering += bool(gradient.any())
    assert covering >= 8


# How many tokens stand for no pixels where an image fills 2 × 2 tiles: line breaks and class tokens.
BLANK = {"llava_next": 8, "llava_onevision": 6, "mllama": 4}


@pytest.mark.parametrize("family", FAMILIES)
def test_energy_of_a_batch(family: str) -> None:
    model = surrogate(family)
    shared = photograph(0, 40, 60)
    images = [shared, photograph(1, 64, 64), shared]
    encoded = model.encode([*EXAMPLES, Example("Is it?", "no", trigger=("of",))], images)
    changed = [shared, (images[1] + 16 / 255).clamp(0, 1), shared]
    energy = model.token_energy(encoded, model.pixels(changed), model.pixels(images))
    image = model.key_roles(encoded).image
    assert energy.shape == image.shape
    assert not energy[~image].any()
    assert not energy[0].any()
    assert not energy[2].any()
    assert int((energy[1][image[1]] == 0).sum()) == BLANK.get(family, 0)


Box = tuple[float, float, float, float]
"""Top, left, bottom and right, in pixels of the image as it is on disk."""
Cells = dict[int, Box]
"""What each image token covers, by its place among the image tokens."""


def grid(first: int, box: Box, rows: int, columns: int, breaks: int = 0) -> Cells:
    """Tokens that cover a box row by row, with so many line breaks behind each row."""
    top, left, height, width = box[0], box[1], (box[2] - box[0]) / rows, (box[3] - box[1]) / columns
    return {
        first + row * (columns + breaks) + column: (
            top + row * height,
            left + column * width,
            top + (row + 1) * height,
            left + (column + 1) * width,
        )
        for row in range(rows)
        for column in range(columns)
    }


def tiles(first: int, rows: int, columns: int, size: int, side: int, classes: int = 0) -> Cells:
    """Tiles row by row, each of `side` × `side` tokens behind so many class tokens."""
    cells: Cells = {}
    for tile in range(rows * columns):
        top, left = tile // columns * size, tile % columns * size
        start = first + tile * (classes + side**2) + classes
        cells |= grid(start, (top, left, top + size, left + size), side, side)
    return cells


def qwen(height: int, width: int, size: int) -> tuple[int, int, Cells]:
    return height, width, grid(0, (0, 0, height, width), height // size, width // size)


def squashed(side: int, height: int = 64, width: int = 96) -> tuple[int, int, Cells]:
    return height, width, grid(0, (0, 0, height, width), side, side)


def onevision() -> Cells:
    """Four tiles of 46 pixels, of which the patches cover 42, and the whole image at half the size."""
    cells = grid(0, (0, 0, 84, 84), 3, 3)
    for token, (top, left, bottom, right) in grid(9, (0, 0, 84, 84), 6, 6, breaks=1).items():
        down, across = 4 * (top >= 42), 4 * (left >= 42)
        cells[token] = (top + down, left + across, bottom + down, right + across)
    return cells


# Height and width of an image, and what each of its tokens covers. Written down from the papers and model cards:
# nothing here asks the model or its processor. Thumbnails stand before the tiles (LLaVA, MiniCPM-V) or behind them.
LAYOUTS: dict[str, tuple[int, int, Cells]] = {
    "llava": (64, 96, grid(0, (0, 16, 64, 80), 4, 4)),  # the square in the middle
    "llava_next": (48, 64, grid(0, (0, 0, 48, 64), 4, 4) | grid(16, (0, 0, 48, 64), 6, 8, breaks=1)),
    "llava_onevision": (92, 92, onevision()),
    "qwen2_vl": qwen(32, 48, 8),
    "qwen2_5_vl": qwen(32, 48, 8),
    "qwen3_vl": qwen(32, 48, 8),
    "qwen3_vl_moe": qwen(32, 48, 8),
    "glm4v": qwen(32, 48, 8),
    "internvl": (64, 64, tiles(0, 2, 2, 32, 2) | grid(16, (0, 0, 64, 64), 2, 2)),
    "smolvlm": (64, 64, tiles(0, 2, 2, 32, 2) | grid(16, (0, 0, 64, 64), 2, 2)),
    "idefics3": (112, 112, tiles(0, 2, 2, 56, 2) | grid(16, (0, 0, 112, 112), 2, 2)),
    "minicpmv4_6": (224, 224, grid(0, (0, 0, 224, 224), 2, 2) | tiles(4, 2, 2, 112, 2)),
    "gemma3": squashed(2),
    "paligemma": squashed(4),
    "mllama": (64, 64, tiles(0, 2, 2, 32, 4, classes=1)),
}
# The same at the resolutions of the published models: image and patch size of their vision towers, and their processor.
PUBLISHED: dict[str, tuple[int, int, str, tuple[int, int, Cells]]] = {
    "qwen3_vl": (768, 16, "qwen3-vl", qwen(256, 320, 32)),
    "llava": (336, 14, "llava", (336, 400, grid(0, (0, 32, 336, 368), 24, 24))),
    "internvl": (448, 14, "internvl", (896, 1344, tiles(0, 2, 3, 448, 16) | grid(1536, (0, 0, 896, 1344), 16, 16))),
    "llava_next": (
        336,
        14,
        "llava-next",
        (504, 672, grid(0, (0, 0, 504, 672), 24, 24) | grid(576, (0, 0, 504, 672), 36, 48, breaks=1)),
    ),
    "gemma3": (896, 14, "gemma3", squashed(16, 448, 560)),
    "smolvlm": (512, 16, "smolvlm", (512, 768, tiles(0, 2, 3, 256, 8) | grid(384, (0, 0, 512, 768), 8, 8))),
    "mllama": (560, 14, "mllama", (1120, 1120, tiles(0, 2, 2, 560, 40, classes=1))),
}


def check_squares(layout: tuple[int, int, Cells], energy: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Changes one cell of the finest view after another: its token and those that overlap it must rank first."""
    height, width, cells = layout
    finest = min((bottom - top) * (right - left) for top, left, bottom, right in cells.values())
    fine = [box for box in cells.values() if (box[2] - box[0]) * (box[3] - box[1]) <= finest + 1e-6]
    clean = torch.full((3, height, width), 128.0) / 255
    for box in fine[1 :: max(2, len(fine) // 4)]:
        top, left, bottom, right = (round(edge) for edge in box)
        changed = clean.clone()
        changed[:, top:bottom, left:right] = 1
        covering = {
            token
            for token, (y0, x0, y1, x1) in cells.items()
            if min(y1, bottom) - max(y0, top) > 1e-6 and min(x1, right) - max(x0, left) > 1e-6
        }
        ranked = energy(changed, clean).argsort(descending=True)
        assert set(ranked[: len(covering)].tolist()) == covering


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokens_over_a_changed_square_rank_first(family: str) -> None:
    model = surrogate(family)

    def energy(changed: Tensor, clean: Tensor) -> Tensor:
        encoded = model.encode([Example("Is it red?", "no")], [clean])
        return model.token_energy(encoded, model.pixels([changed]), model.pixels([clean]))[
            model.key_roles(encoded).image
        ]

    check_squares(LAYOUTS[family], energy)


def published(family: str, image_size: int, patch_size: int, processor: str) -> tuple[Any, Any]:
    """A tiny model that takes itself for a published one, and that model's image processor."""
    model = load_surrogate(built(family)).model
    cls, settings = PROCESSORS[processor]
    images = cls(**settings)
    model.config.vision_config.image_size, model.config.vision_config.patch_size = image_size, patch_size
    model.config.image_grid_pinpoints = getattr(images, "image_grid_pinpoints", None)
    return model, images


@pytest.mark.parametrize("family", PUBLISHED)
def test_the_same_at_published_resolutions(family: str) -> None:
    *sizes, layout = PUBLISHED[family]
    model, images = published(family, *sizes)
    extra = {"llava_next": 36, "mllama": 4}.get(family, 0)  # line breaks and class tokens

    def energy(changed: Tensor, clean: Tensor) -> Tensor:
        moved, still = (differentiable_pixels(images, [image]) for image in (changed, clean))
        return energy_per_image_token(model, moved, still, len(layout[2]) + extra, family)

    check_squares(layout, energy)


def test_feature_maps_that_are_shrunk_shrink_the_energy_alike() -> None:
    """LLaVA-OneVision resizes what has more than nine tiles: 4 × 4 tiles of 27² patches become 81² tokens."""
    processor = hf.LlavaOnevisionImageProcessor()
    model = load_surrogate(built("llava_onevision")).model
    model.config.vision_config.image_size = 384
    model.config.image_grid_pinpoints = processor.image_grid_pinpoints
    clean = torch.full((3, 1536, 1536), 128.0) / 255
    changed = clean.clone()
    changed[:, 384:768, 1152:] = 1  # the tile in the second row, fourth column
    moved, still = (differentiable_pixels(processor, [image]) for image in (changed, clean))
    energy = energy_per_image_token(model, moved, still, 729 + 81 * 82, "onevision")
    rows = energy[729:].view(81, 82)
    assert not rows[:, 81].any()  # line breaks
    inside = torch.zeros(81, 81, dtype=torch.bool)
    inside[21:40, 61:81] = True  # whose samples lie among the patches 27 to 53 and 81 to 107 of 108
    assert rows[:, :81][inside].min() > 0.9 * rows.max()
    inside[20, 60:] = inside[40, 60:] = inside[20:41, 60] = True  # between two tiles
    assert not rows[:, :81][~inside].any()


def test_tokens_that_look_at_the_whole_image_are_refused() -> None:
    config = hf.Idefics2Config(
        vision_config={"hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 8, "num_hidden_layers": 1},
        text_config=hf.LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1),
    )
    with torch.device("meta"):
        model = hf.Idefics2ForConditionalGeneration(config)
    pixels = {"pixel_values": torch.zeros(1, 1, 3, 224, 224)}
    with pytest.raises(SurrogateError, match=r"mine: cannot tell.*all of the image, by the Idefics2.*connector"):
        energy_per_image_token(model, pixels, pixels, 64, "mine")


@pytest.mark.parametrize(
    ("family", "changes", "tokens", "reason"),
    [
        ("llava", {"pixel_values": None, "patches": torch.zeros(1)}, 16, "its inputs are patches"),
        ("llava", {"image_sizes": torch.tensor([[32, 32]])}, 16, "image_sizes in a way of its own"),
        ("llava", {"pixel_values": torch.zeros(4, 27)}, 4, r"shape \(4, 27\)"),
        ("llava", {}, 15, "15 image tokens are no square grid"),
        ("qwen3_vl", {"pixel_values": torch.zeros(24, 96)}, 7, "7 image tokens"),
        ("minicpmv4_6", {"pixel_values": torch.zeros(1, 3, 14, 15)}, 4, r"shape \(1, 3, 14, 15\)"),
        ("minicpmv4_6", {}, 3, "regions for 3 image tokens"),
    ],
)
def test_layouts_that_are_not_understood_are_refused(
    family: str, changes: dict[str, Tensor | None], tokens: int, reason: str
) -> None:
    model = surrogate(family)
    pixels = {k: v for k, v in (model.pixels([photograph(0, 64, 64)]) | changes).items() if v is not None}
    with pytest.raises(SurrogateError, match=f"{family}: cannot tell.*{reason}.*crs, multimodal"):
        energy_per_image_token(model.model, pixels, pixels, tokens, family)


def test_a_family_of_tomorrow_works_where_all_can_be_derived() -> None:
    image = photograph(0, 64, 64)
    for family in ("llava", "qwen2_vl"):
        model = load_surrogate(built(family))
        encoded, pixels = model.encode(EXAMPLES[:1], [image]), model.pixels([image])
        clean = {key: torch.zeros_like(value) for key, value in pixels.items()}
        expected = model.token_energy(encoded, pixels, clean)
        model.model.config.model_type = "nobody"
        assert torch.equal(model.token_energy(encoded, pixels, clean), expected)
