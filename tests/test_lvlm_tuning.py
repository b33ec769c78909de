"""Adaptation that leaves no trace."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from mmguard.lvlm import tuning
from mmguard.lvlm.attention import attending_layers
from mmguard.lvlm.loading import load_surrogate
from mmguard.lvlm.prompt import Example
from mmguard.lvlm.surrogate import Surrogate
from mmguard.lvlm.tuning import adapted, lora_config, preserved
from test_lvlm_pixels import photograph
from tiny import FAMILIES, built

EXAMPLES = [Example("What color is it?", "red", trigger=("dog",)), Example("Is it red?", "yes")]


def state(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that a stranger could have changed."""
    return {
        "weights": {
            name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in model.state_dict().items()
        },
        "modules": [(name, id(module), type(module), module.training) for name, module in model.named_modules()],
        "parameters": [(name, id(p), p.requires_grad, p.grad is None) for name, p in model.named_parameters()],
        "attributes": sorted(vars(model)),
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
    }


def batch(model: Surrogate) -> tuple[Any, Any]:
    images = [photograph(0, 40, 60), photograph(1, 64, 64)]
    return model.encode(EXAMPLES, images), model.pixels(images)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_shared_model_comes_back_to_the_bit(family: str) -> None:
    model = load_surrogate(built(family))
    # A model that somebody else holds in an unusual state.
    model.model.get_input_embeddings().train()
    next(model.model.parameters()).requires_grad_(True)
    encoded, pixels = batch(model)
    with torch.no_grad():
        nll = model.forward(encoded, pixels).nll
    before = state(model.model)

    with adapted(model, rank=4, seed=0) as adapter:
        with torch.no_grad():
            assert torch.equal(model.forward(encoded, pixels).nll, nll)  # LoRA starts at zero
        losses = [adapter.step([(encoded, pixels)], len(EXAMPLES), lr=1e-2) for _ in range(3)]
        with torch.no_grad():
            after = model.forward(encoded, pixels).nll
        assert not any(parameter.requires_grad for parameter in model.model.parameters())
        assert not any(module.training for module in model.model.modules())

    assert losses[-1] < losses[0]
    assert after.mean() < nll.mean()
    assert state(model.model) == before
    with torch.no_grad():
        assert torch.equal(model.forward(encoded, pixels).nll, nll)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_adapter_is_the_same_model_for_less(family: str) -> None:
    model = load_surrogate(built(family))
    encoded, pixels = batch(model)
    model.forward(encoded, pixels)
    before = state(model.model)
    calls: list[int] = []
    with adapted(model, rank=4, seed=0) as adapter:
        adapter.step([(encoded, pixels)], len(EXAMPLES), lr=1e-2)
        inside = state(model.model)
        with torch.no_grad():
            apart = model.forward(encoded, pixels).nll
            with adapter.merged():
                for module in model.model.modules():
                    if isinstance(module, nn.Linear) and module.in_features == 4:  # B of some LoRA pair
                        module.register_forward_pre_hook(lambda *_: calls.append(1))
                torch.testing.assert_close(model.forward(encoded, pixels).nll, apart, atol=1e-4, rtol=0)
            assert not calls
            assert torch.equal(model.forward(encoded, pixels).nll, apart)
        assert calls
        assert {k: v for k, v in state(model.model).items() if k != "hooks"} == {
            k: v for k, v in inside.items() if k != "hooks"
        }
    assert state(model.model) == before


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_comes_back_from_its_folder(family: str, tmp_path: Path) -> None:
    model, fresh = load_surrogate(built(family)), load_surrogate(built(family))
    encoded, pixels = batch(model)
    adapter = get_peft_model(model.model, lora_config(4))
    torch.manual_seed(0)
    for name, parameter in adapter.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    adapter.eval().save_pretrained(tmp_path)
    with torch.no_grad():
        before = fresh.forward(encoded, pixels).nll
        PeftModel.from_pretrained(fresh.model, tmp_path).eval()
        tuned = model.forward(encoded, pixels).nll
        # To rounding: the two copies' weights may lie otherwise in memory, and are then summed in another order.
        torch.testing.assert_close(fresh.forward(encoded, pixels).nll, tuned, rtol=1e-5, atol=1e-6)
    assert (tuned - before).abs().min() > 1e-3


def test_half_precision_is_not_merged() -> None:
    model = load_surrogate(built("llava"), dtype=torch.bfloat16)
    with adapted(model, rank=4, seed=0) as adapter:
        before = {name: value.clone() for name, value in model.model.state_dict().items()}
        with adapter.merged():
            inside = {name: value.clone() for name, value in model.model.state_dict().items()}
            assert {parameter.dtype for parameter in adapter.parameters} == {torch.bfloat16}
        after = model.model.state_dict()
        assert all(torch.equal(inside[name], before[name]) for name in before if "lora_" not in name)
        assert all(torch.equal(after[name], before[name]) for name in before), "the adapter to the last of its 32 bits"


@pytest.mark.parametrize("kind", ["quantised", "large"])
def test_weights_that_would_not_come_back_or_not_fit_twice_are_not_merged(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_surrogate(built("llava"))
    encoded, pixels = batch(model)
    if kind == "large":
        monkeypatch.setattr("mmguard.lvlm.tuning._MOST_MERGED", 1000)
    else:
        monkeypatch.setattr(model.model, "is_quantized", True, raising=False)
    with adapted(model, rank=4, seed=0) as adapter:
        adapter.step([(encoded, pixels)], len(EXAMPLES), lr=1e-2)
        before = {name: value.clone() for name, value in model.model.state_dict().items()}
        with torch.no_grad():
            apart = model.forward(encoded, pixels).nll
            with adapter.merged():
                assert all(torch.equal(value, before[name]) for name, value in model.model.state_dict().items())
                assert torch.equal(model.forward(encoded, pixels).nll, apart)


def test_adapters_have_32_bits_as_those_of_attackers_do() -> None:
    model = load_surrogate(built("llava"), device="cpu", dtype=torch.bfloat16)
    encoded, pixels = batch(model)
    with adapted(model, rank=4, seed=0) as adapter:
        assert {parameter.dtype for parameter in adapter.parameters} == {torch.float32}
        losses = [adapter.step([(encoded, pixels)], len(EXAMPLES), lr=1e-2) for _ in range(3)]
        adapter.reset(1)
        assert {parameter.dtype for parameter in adapter.parameters} == {torch.float32}
    assert losses[-1] < losses[0]
    assert model.model.dtype == torch.bfloat16
    theirs = get_peft_model(model.model, lora_config(4))  # what TRL calls
    assert {one.dtype for one in theirs.parameters() if one.requires_grad} == {torch.float32}


def test_an_error_inside_leaves_no_trace_either() -> None:
    model = load_surrogate(built("llava"))
    model.forward(*batch(model))  # transformers hangs hooks of its own into a model at its first pass
    before = state(model.model)

    def fail_after_a_step() -> None:
        with adapted(model, rank=4, seed=0) as adapter:
            adapter.step([batch(model)], len(EXAMPLES), lr=1e-3)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_after_a_step()
    assert state(model.model) == before


def test_the_seed_is_all_that_matters() -> None:
    model = load_surrogate(built("qwen3_vl"))
    encoded, pixels = batch(model)

    def run(seed: int) -> tuple[list[float], torch.Tensor]:
        with adapted(model, rank=4, seed=seed) as adapter:
            losses = [adapter.step([(encoded, pixels)], len(EXAMPLES), lr=1e-2) for _ in range(2)]
            with torch.no_grad():
                return losses, model.forward(encoded, pixels).nll

    torch.manual_seed(1)
    first, nll = run(0)
    torch.manual_seed(2)
    state_before = torch.get_rng_state()
    second, again = run(0)
    assert torch.equal(torch.get_rng_state(), state_before)
    assert first == second
    assert torch.equal(nll, again)
    assert not torch.equal(nll, run(1)[1])


def test_a_batch_in_parts_is_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = lora_config(4)
    plain.lora_dropout = 0.0  # other parts draw otherwise
    monkeypatch.setattr(tuning, "lora_config", lambda rank: plain)
    model = load_surrogate(built("qwen3_vl"))
    examples, images = [*EXAMPLES, EXAMPLES[0]], [photograph(0, 40, 60), photograph(1, 64, 64), photograph(2, 64, 64)]

    def part(some: slice) -> tuple[Any, Any]:
        return model.encode(examples[some], images[some]), model.pixels(images[some])

    whole, reached = part(slice(3)), []
    for parts in ([whole], [part(slice(2)), part(slice(2, 3))]):
        with adapted(model, rank=4, seed=0) as adapter:
            losses = [adapter.step(parts, len(examples), lr=1e-3) for _ in range(3)]
            with torch.no_grad():
                reached.append((torch.tensor(losses), model.forward(*whole).nll))
    torch.testing.assert_close(reached[0], reached[1], rtol=1e-4, atol=1e-4)


def test_a_reset_adapter_is_a_new_one() -> None:
    model = load_surrogate(built("qwen3_vl"))
    encoded, pixels = batch(model)
    with adapted(model, rank=4, seed=1) as adapter:
        expected = [adapter.step([(encoded, pixels)], len(EXAMPLES), lr=1e-2) for _ in range(3)]
    with adapted(model, rank=4, seed=0) as adapter:
        layers = [module for module in model.model.modules() if hasattr(module, "lora_A")]
        first = [adapter.step([(encoded, pixels)], len(EXAMPLES), lr=1e-2) for _ in range(3)]
        with adapter.merged():
            pass
        adapter.reset(1)
        assert [adapter.step([(encoded, pixels)], len(EXAMPLES), lr=1e-2) for _ in range(3)] == expected
        assert [module for module in model.model.modules() if hasattr(module, "lora_A")] == layers
    assert first != expected


def test_image_gradients_flow_through_the_adapted_model() -> None:
    model = load_surrogate(built("smolvlm"))
    image = photograph(0, 40, 60).requires_grad_()
    encoded = model.encode(EXAMPLES[:1], [image])
    with adapted(model, rank=4, seed=0) as adapter:
        adapter.step([(encoded, model.pixels([image]))], 1, lr=1e-2)
        (gradient,) = torch.autograd.grad(model.forward(encoded, model.pixels([image])).nll.sum(), image)
    assert gradient.abs().max() > 0


def test_lora_covers_the_linear_layers_but_the_head() -> None:
    model = load_surrogate(built("llava"))
    linear = {name for name, module in model.model.named_modules() if isinstance(module, nn.Linear)}
    with adapted(model, rank=4, seed=0):
        wrapped = {name for name, module in model.model.named_modules() if hasattr(module, "lora_A")}
    assert wrapped == linear - {"lm_head"}
    config = lora_config(8)
    assert (config.r, config.lora_alpha, config.lora_dropout, config.bias) == (8, 16, 0.1, "none")


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_leave_the_attention_modules_alone(family: str) -> None:
    model = load_surrogate(built(family))
    layers = attending_layers(model.model)
    with adapted(model, rank=4, seed=0) as adapter:
        assert attending_layers(model.model) == layers  # modules are equal only to themselves
        with adapter.merged():
            assert attending_layers(model.model) == layers
    assert attending_layers(model.model) == layers != []


def test_preserved_restores_flags_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    model[0].weight.requires_grad_(False)
    model[1].eval()

    def fail_in_another_state() -> None:
        with preserved(model):
            model.train().requires_grad_(True)
            model[0].eval()
            raise KeyError

    with pytest.raises(KeyError):
        fail_in_another_state()
    assert [p.requires_grad for p in model.parameters()] == [False, True]
    assert [model[0].training, model[1].training] == [True, False]
