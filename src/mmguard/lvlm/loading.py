"""Loads surrogates, and refuses what would not serve as one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    ProcessorMixin,
)

from mmguard import zoo
from mmguard.errors import SurrogateError
from mmguard.lvlm.attention import IMPLEMENTATION
from mmguard.lvlm.prompt import takes_suffix
from mmguard.lvlm.surrogate import Surrogate
from mmguard.runtime.devices import device_of, require_usable
from mmguard.runtime.memory import is_out_of_memory


def load_surrogate(
    name: str | Path,
    device: str | torch.device = "auto",
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
    quantization_config: BitsAndBytesConfig | None = None,
) -> Surrogate:
    """Loads any image-text model that Hugging Face's auto classes know, from safetensors alone.

    Args:
        name: a hub id, a local folder, or `zoo:NAME` for a model that comes with mmguard.
        device: `auto` is the first CUDA device if there is one, else the CPU.
        dtype: of the weights; if not given, float32 on the CPU and bfloat16 on a GPU.
        trust_remote_code: run code that comes with the model, which must be a folder.
        quantization_config: hold the weights of linear layers in 4 or 8 bits.

    Raises:
        ConfigError: there is no such device.
        SurrogateError: there is no such model, it cannot be fetched or is not whole, it cannot serve as surrogate, or
            memory is not enough for it.
    """
    name = str(name)
    place = require_usable(device_of(device))
    dtype = dtype or (torch.float32 if place.type == "cpu" else torch.bfloat16)
    source = _source(name)
    _require_code_that_stays(name, source, trust_remote_code)
    # Small files first: what cannot serve is refused before its weights are fetched.
    config = _load(name, AutoConfig, source, trust_remote_code=trust_remote_code)
    own_code = AutoModelForImageTextToText.__name__ in (getattr(config, "auto_map", None) or {})
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not own_code:
        raise SurrogateError(f"{name}: not an image-text model ({config.model_type}): choose one that takes images")
    if getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None:
        raise SurrogateError(
            f"{name}: caps the scores of its attention, which the attention that mmguard reads does not (PaliGemma 2): "
            "take another model, such as PaliGemma or Gemma 3"
        )
    processor = load_processor(name, trust_remote_code)
    model, found = _load(
        name,
        AutoModelForImageTextToText,
        source,
        output_loading_info=True,
        trust_remote_code=trust_remote_code,
        use_safetensors=True,
        dtype=dtype,
        attn_implementation=IMPLEMENTATION,
        quantization_config=quantization_config,
    )
    _require_all_weights(name, model, found["missing_keys"])
    return Surrogate(name, moved(name, model, place), processor)


@contextmanager
def reading_weights(name: str) -> Iterator[None]:
    """Says what to do where weights cannot be read, or memory is not enough to.

    Raises:
        SurrogateError: instead of what is raised within.
    """
    try:
        yield
    except (RuntimeError, MemoryError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise SurrogateError(f"{name}: memory is not enough to load it: take a smaller model") from error
        raise SurrogateError(
            f"{name}: its weights cannot be read, or are not of the shapes that its config.json says: fetch it again, "
            f"with git-lfs if it was cloned. Cause: {' '.join(str(error).split())[:300]}"
        ) from error


def moved(name: str, model: Any, place: torch.device) -> Any:
    """A model with its weights on a device.

    Raises:
        SurrogateError: the memory there is not enough.
    """
    try:
        return model.to(place)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise SurrogateError(
            f"{name}: the memory of {place} is not enough for its weights: take a smaller model or another device"
        ) from error


def _require_all_weights(name: str, model: Any, missing: Iterable[str]) -> None:
    """Refuses files of another layout than the model's: transformers makes up what they lack at random."""
    own = dict(model.named_parameters())  # of weights that two parts share, one name
    if lacking := sorted(own.keys() & set(missing)):
        raise SurrogateError(
            f"{name}: its files lack {len(lacking)} of the weights ({lacking[0]}…), which would be random: save the "
            "model again with save_pretrained, after merging adapters, if it has any"
        )


def load_processor(name: str, trust_remote_code: bool = False) -> Any:
    """Loads what prepares a model's input, without the model.

    Args:
        name: as for `load_surrogate`.
        trust_remote_code: run code that comes with the model, which must be a folder.

    Raises:
        SurrogateError: it cannot be loaded, or does not serve.
    """
    source = _source(name)
    _require_code_that_stays(name, source, trust_remote_code)
    processor = _load(name, AutoProcessor, source, trust_remote_code=trust_remote_code)
    _check_processor(name, processor)
    return processor


def _source(name: str) -> str:
    return str(zoo.path(name.removeprefix("zoo:"))) if name.startswith("zoo:") else name


def _require_code_that_stays(name: str, source: str, trust_remote_code: bool) -> None:
    """What is run is what was looked at: on the hub it may be other code tomorrow."""
    if trust_remote_code and not Path(source).is_dir():
        raise SurrogateError(
            f"{name}: code of a model is run from a folder alone, where it stays as you have read it: "
            f"`hf download {name} --revision COMMIT --local-dir FOLDER`, and give the folder"
        )


def _load(name: str, auto: Any, source: str, **kwargs: Any) -> Any:
    try:
        with reading_weights(name):
            return auto.from_pretrained(source, **kwargs)
    except ImportError as error:  # some processors need a package of their own, and say which
        raise SurrogateError(f"{name}: {error}") from error
    except OSError as error:
        raise SurrogateError(
            f"{name}: cannot be read or fetched; give a folder, a Hugging Face hub id (private and gated "
            f"models: run `hf auth login` first) or zoo:NAME ({', '.join(zoo.NAMES)}). Cause: {error}"
        ) from error
    except (ValueError, KeyError) as error:
        raise SurrogateError(
            f"{name}: transformers {transformers.__version__} cannot build it: update transformers, or choose a model "
            "that needs no code of its own (of MiniCPM-V, openbmb/MiniCPM-V-4.6 does not); from Python, "
            f"`load_surrogate(FOLDER, trust_remote_code=True)` runs such code. Cause: {error}"
        ) from error


def _check_processor(name: str, processor: Any) -> None:
    if not isinstance(processor, ProcessorMixin) or not hasattr(processor, "image_processor"):
        raise SurrogateError(
            f"{name}: has no processor for images and text together: its preprocessor files are missing"
        )
    if not (processor.chat_template or processor.tokenizer.chat_template or takes_suffix(processor)):
        raise SurrogateError(f"{name}: has no chat template: choose the instruction-tuned variant of the model")
    if not processor.tokenizer.is_fast:
        raise SurrogateError(
            f"{name}: has a slow tokenizer, which does not say which characters a token covers: "
            "install `tokenizers` and `sentencepiece`, or choose a model that has a tokenizer.json"
        )
