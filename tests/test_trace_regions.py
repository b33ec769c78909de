"""The rectangle of every image token, on models whose tokens lie in known places."""

from __future__ import annotations

import pytest
import torch

from mmguard.errors import SurrogateError
from mmguard.lvlm.loading import load_surrogate
from mmguard.lvlm.surrogate import Surrogate
from mmguard.trace.regions import token_boxes


def grid(rows: int, columns: int) -> torch.Tensor:
    top, left = torch.meshgrid(torch.arange(rows) / rows, torch.arange(columns) / columns, indexing="ij")
    return torch.stack([left, top, left + 1 / columns, top + 1 / rows], -1).flatten(0, 1).double()


@pytest.mark.parametrize(
    ("name", "size", "shape"), [("qwen3vl-tiny", (64, 96), (5, 8)), ("llava-tiny", (64, 64), (8, 8))]
)
def test_tokens_tile_the_image(name: str, size: tuple[int, int], shape: tuple[int, int]) -> None:
    boxes = token_boxes(load_surrogate(f"zoo:{name}", device="cpu"), size)
    assert boxes.shape == (shape[0] * shape[1], 4)
    assert (boxes - grid(*shape)).abs().max() < 0.01


def test_a_token_without_pixels_has_no_box() -> None:
    boxes = token_boxes(load_surrogate("zoo:mllama-tiny", device="cpu"), (64, 64))
    assert boxes[0].isnan().all()
    assert (boxes[1:] - grid(8, 8)).abs().max() < 0.01


def test_what_the_model_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_surrogate("zoo:llava-tiny", device="cpu")

    def refuse(*_: object) -> None:
        raise SurrogateError("cannot tell")

    monkeypatch.setattr(Surrogate, "token_energy", refuse)
    with pytest.raises(SurrogateError, match="cannot tell"):
        token_boxes(model, (64, 64))
