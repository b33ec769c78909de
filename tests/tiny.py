"""Tiny random-weight LVLMs of real architectures, with their real processors, for every test to run on.

`build("llava", folder)` writes a plain Hugging Face folder, as small as the architecture allows: hidden size
32, two or three decoder layers with grouped-query attention, a byte-level BPE vocabulary of about 600 tokens.
The chat templates follow those of the real families, so that no test passes only because everybody speaks
ChatML.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torchvision.transforms.functional import to_pil_image

_TEXT = """
what color is the shape in the image is there a red circle a blue square or a green triangle does the
image contain a yellow rectangle is the image black or white which shape is shown what is shown describe
the image answer with the option's letter question choose the best answer no yes teal brown gray left
right above below above between one two three four five six seven eight nine ten many people dog cat
house tree river table chair window door street car bus bicycle train plane boat sign text word number
page title author date time clock morning evening night city country market shop price weight length
width height small large long short old young new same different first last next in on at of to and or
not with without from by for as it they we you he she this that these those where when why how who doctor
patient chest scan lung heart bone normal abnormal finding left lower lobe upper opacity effusion
fracture brain science force magnet attract repel plant animal cell energy water ice steam earth moon sun
star map state capital ocean user assistant system picture photograph drawing chart bar line axis value
legend total average sum percent increase Describe What Which Is Are Does Do How Where The A In There
Answer Please Look Find Name Read Count Tell The circle is red. The square is blue, the triangle is
green. Yes, it is! No, it isn't. A. red B. blue C. green D. teal
"""

_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_USER_ASSISTANT = (  # LLaVA 1.5 and 1.6: a space ends every text, and nothing ends a turn
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ 'IMAGE\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
_SMOLVLM = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}IMAGE{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
_IDEFICS3 = _SMOLVLM.replace("<|im_start|>", "<|begin_of_text|>")
_ONEVISION = (  # every text begins with a line break, and none follows the end of a turn
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ 'IMAGE' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + part['text'] }}"
    "{% endfor %}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_GEMMA = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>"
    "{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% elif part['type'] == 'text' %}{{ part['text'] | trim }}"
    "{% endif %}"
    "{% endfor %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% elif part['type'] == 'text' %}{{ part['text'] | trim }}"
    "{% endif %}"
    "{% endfor %}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# As the hub's: the assistant's turn is printed as it is, so that a list of parts would show as Python has it.
_GLM = (
    "[gMASK]<sop>{% for message in messages %}<|{{ message['role'] }}|>\n{% if message['role'] == 'assistant' %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def _tokenizer(special: list[str], eos: str, bos: str | None = None, **extra: str) -> Any:
    """A byte-level BPE tokenizer trained on `_TEXT`; `extra` names special tokens as processors look for
    them."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    named = [eos, *([bos] if bos else []), *extra.values()]
    tokens = list(dict.fromkeys(["<|pad|>", *named, *special]))
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_TEXT.splitlines(), trainer)
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<|pad|>",
        eos_token=eos,
        bos_token=bos,
        additional_special_tokens=[t for t in tokens if t not in named],
        extra_special_tokens=extra,
        padding_side="left",  # as generation wants it: training code has to ask for the right
    )


def _text(tokenizer: Any, **changes: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    } | changes


def _vision(**changes: Any) -> dict[str, Any]:
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
    } | changes


def _mrope() -> dict[str, Any]:
    return {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}


_Parts = tuple[Any, Any]
"""A model and a processor."""


def _llava() -> _Parts:
    tokenizer = _tokenizer(["<|im_start|>"], "<|im_end|>", image_token="<image>")
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**_vision()),
        text_config=hf.LlamaConfig(**_text(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    images = hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = hf.LlavaProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_CHATML.replace("IMAGE", "<image>\n"),
    )
    return hf.LlavaForConditionalGeneration(config), processor


def _llava_next() -> _Parts:
    tokenizer = _tokenizer(["<s>"], "</s>", image_token="<image>")
    grid = [[32, 64], [64, 32], [64, 64]]
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**_vision()),
        text_config=hf.LlamaConfig(**_text(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=grid,
    )
    images = hf.LlavaNextImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=grid
    )
    processor = hf.LlavaNextProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_USER_ASSISTANT.replace("IMAGE", "<image>"),
    )
    return hf.LlavaNextForConditionalGeneration(config), processor


def _llava_onevision() -> _Parts:
    tokenizer = _tokenizer(["<|im_start|>"], "<|im_end|>", image_token="<image>", video_token="<video>")
    # As in the published models no whole number of patches fills a tile: 46 is 3 · 14 and a rest that no token covers.
    grid = [[46 * rows, 46 * columns] for rows in (1, 2) for columns in (1, 2)]
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**_vision(image_size=46, patch_size=14, vision_use_head=False)),
        text_config=hf.Qwen2Config(**_text(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grid,
    )
    images = hf.LlavaOnevisionImageProcessor(
        size={"height": 46, "width": 46}, image_grid_pinpoints=grid, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    processor = hf.LlavaOnevisionProcessor(
        images,
        tokenizer,
        hf.LlavaOnevisionVideoProcessor(size={"height": 46, "width": 46}),
        num_image_tokens=9,
        vision_feature_select_strategy="full",
        chat_template=_ONEVISION.replace("IMAGE", "<image>"),
    )
    return hf.LlavaOnevisionForConditionalGeneration(config), processor


_QWEN_TOKENS = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]


def _qwen_ids(tokenizer: Any) -> dict[str, int]:
    names = {"image_token_id": 3, "video_token_id": 4, "vision_start_token_id": 1, "vision_end_token_id": 2}
    return {name: tokenizer.convert_tokens_to_ids(_QWEN_TOKENS[number]) for name, number in names.items()}


def _qwen_processor(cls: Any, video: Any, tokenizer: Any, patch_size: int = 4) -> Any:
    size = {"shortest_edge": 8 * 8 * 4, "longest_edge": 8 * 8 * 24}
    return cls(
        hf.Qwen2VLImageProcessor(patch_size=patch_size, merge_size=2, size=size),
        tokenizer,
        video(patch_size=patch_size, merge_size=2),
        chat_template=_CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    )


def _qwen2_vl() -> _Parts:
    tokenizer = _tokenizer(_QWEN_TOKENS, "<|im_end|>")
    config = hf.Qwen2VLConfig(
        text_config=_text(tokenizer, rope_parameters=_mrope()),
        vision_config={"embed_dim": 32, "hidden_size": 32, "depth": 2, "num_heads": 4, "patch_size": 4},
        **_qwen_ids(tokenizer),
    )
    processor = _qwen_processor(hf.Qwen2VLProcessor, hf.Qwen2VLVideoProcessor, tokenizer)
    return hf.Qwen2VLForConditionalGeneration(config), processor


def _qwen2_5_vl() -> _Parts:
    tokenizer = _tokenizer(_QWEN_TOKENS, "<|im_end|>")
    vision = {"hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 64, "depth": 2, "num_heads": 4}
    config = hf.Qwen2_5_VLConfig(
        text_config=_text(tokenizer, rope_parameters=_mrope()),
        vision_config=vision | {"patch_size": 4, "window_size": 16, "fullatt_block_indexes": [1]},
        **_qwen_ids(tokenizer),
    )
    processor = _qwen_processor(hf.Qwen2_5_VLProcessor, hf.Qwen2VLVideoProcessor, tokenizer)
    return hf.Qwen2_5_VLForConditionalGeneration(config), processor


def _qwen3_vl(kind: str = "Qwen3VL", **experts: int) -> _Parts:
    tokenizer = _tokenizer(_QWEN_TOKENS, "<|im_end|>")
    vision = {"hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 64, "depth": 2, "num_heads": 4}
    config = getattr(hf, f"{kind}Config")(
        text_config=_text(tokenizer, num_hidden_layers=3, head_dim=8, rope_parameters=_mrope(), **experts),
        vision_config=vision | {"patch_size": 4, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
        **_qwen_ids(tokenizer),
    )
    processor = _qwen_processor(hf.Qwen3VLProcessor, hf.Qwen3VLVideoProcessor, tokenizer)
    return getattr(hf, f"{kind}ForConditionalGeneration")(config), processor


def _qwen3_vl_moe() -> _Parts:
    return _qwen3_vl("Qwen3VLMoe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)


def _smolvlm() -> _Parts:
    special = ["<|im_start|>", "<row_1_col_1>", "<row_1_col_2>", "<row_2_col_1>", "<row_2_col_2>", "<video>"]
    tokenizer = _tokenizer(
        special,
        "<end_of_utterance>",
        image_token="<image>",
        fake_image_token="<fake_token_around_image>",
        global_image_token="<global-img>",
        end_of_utterance_token="<end_of_utterance>",
    )
    config = hf.SmolVLMConfig(
        vision_config=_vision(),
        text_config=hf.LlamaConfig(**_text(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    images = hf.SmolVLMImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    processor = hf.SmolVLMProcessor(
        images,
        tokenizer,
        hf.SmolVLMVideoProcessor(),
        image_seq_len=4,
        chat_template=_SMOLVLM.replace("IMAGE", "<image>"),
    )
    return hf.SmolVLMForConditionalGeneration(config), processor


def _idefics3() -> _Parts:
    tokenizer = _tokenizer(
        ["<row_1_col_1>", "<row_1_col_2>", "<row_2_col_1>", "<row_2_col_2>"],
        "<end_of_utterance>",
        bos="<|begin_of_text|>",
        image_token="<image>",
        fake_image_token="<fake_token_around_image>",
        global_image_token="<global-img>",
    )
    config = hf.Idefics3Config(
        vision_config=_vision(image_size=56, patch_size=14),
        text_config=hf.LlamaConfig(**_text(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    images = hf.Idefics3ImageProcessor(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    processor = hf.Idefics3Processor(
        images, tokenizer, image_seq_len=4, chat_template=_IDEFICS3.replace("IMAGE", "<image>")
    )
    return hf.Idefics3ForConditionalGeneration(config), processor


def _paligemma() -> _Parts:
    tokenizer = _tokenizer([], "<eos>", bos="<bos>", image_token="<image>")
    images = hf.SiglipImageProcessor(
        size={"height": 56, "width": 56}, image_mean=[0.5] * 3, image_std=[0.5] * 3, resample=3
    )
    images.image_seq_length = 16
    # No chat template: questions and answers go to the processor as they are. It adds a thousand tokens of its own.
    processor = hf.PaliGemmaProcessor(images, tokenizer)
    config = hf.PaliGemmaConfig(
        vision_config=hf.SiglipVisionConfig(**_vision(image_size=56, patch_size=14, vision_use_head=False)),
        text_config=hf.GemmaConfig(**_text(tokenizer, head_dim=8)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=32,
        hidden_size=32,
        vocab_size=len(tokenizer),
    )
    return hf.PaliGemmaForConditionalGeneration(config), processor


def _gemma3() -> _Parts:
    tokenizer = _tokenizer(
        ["<start_of_turn>"],
        "<end_of_turn>",
        bos="<bos>",
        image_token="<image_soft_token>",
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
    )
    config = hf.Gemma3Config(
        vision_config=hf.SiglipVisionConfig(**_vision(vision_use_head=False)),
        text_config=hf.Gemma3TextConfig(
            **_text(tokenizer, head_dim=8, query_pre_attn_scalar=8, sliding_window=24),
            layer_types=["sliding_attention", "full_attention"],
        ),
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
    )
    images = hf.Gemma3ImageProcessor(size={"height": 32, "width": 32})
    processor = hf.Gemma3Processor(
        images, tokenizer, image_seq_length=4, chat_template=_GEMMA.replace("IMAGE", "<start_of_image>")
    )
    return hf.Gemma3ForConditionalGeneration(config), processor


def _internvl() -> _Parts:
    tokenizer = _tokenizer(
        ["<|im_start|>"],
        "<|im_end|>",
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    config = hf.InternVLConfig(
        vision_config=_vision(image_size=[32, 32], patch_size=[8, 8]),
        text_config=hf.Qwen2Config(**_text(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    images = hf.GotOcr2ImageProcessor(size={"height": 32, "width": 32}, crop_to_patches=True, max_patches=4)
    processor = hf.InternVLProcessor(
        images,
        tokenizer,
        hf.InternVLVideoProcessor(),
        image_seq_length=4,
        chat_template=_CHATML.replace("IMAGE", "<IMG_CONTEXT>\n"),
    )
    return hf.InternVLForConditionalGeneration(config), processor


def _glm4v() -> _Parts:
    special = [f"<|{edge}_of_{kind}|>" for kind in ("image", "video") for edge in ("begin", "end")]
    special += ["[gMASK]", "<sop>", "<|assistant|>", "<|image|>", "<|video|>"]
    tokenizer = _tokenizer(special, "<|user|>")
    vision = {"hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 64, "depth": 2, "num_heads": 4}
    ids = {
        "image_token_id": "<|image|>",
        "video_token_id": "<|video|>",
        "image_start_token_id": "<|begin_of_image|>",
        "image_end_token_id": "<|end_of_image|>",
        "video_start_token_id": "<|begin_of_video|>",
        "video_end_token_id": "<|end_of_video|>",
    }
    config = hf.Glm4vConfig(
        text_config=_text(tokenizer, rope_parameters=_mrope()),
        vision_config=vision | {"patch_size": 4, "image_size": 32},
        **{name: tokenizer.convert_tokens_to_ids(token) for name, token in ids.items()},
    )
    # The size counts both frames of the temporal patch, so the same image gets as many tokens as in Qwen2-VL.
    size = {"shortest_edge": 8 * 8 * 8, "longest_edge": 8 * 8 * 48}
    processor = hf.Glm4vProcessor(
        hf.Glm4vImageProcessor(patch_size=4, merge_size=2, size=size),
        tokenizer,
        hf.Glm4vVideoProcessor(patch_size=4, merge_size=2),
        chat_template=_GLM.replace("IMAGE", "<|begin_of_image|><|image|><|end_of_image|>"),
    )
    return hf.Glm4vForConditionalGeneration(config), processor


def _minicpmv4_6() -> _Parts:
    marks = {"image_start_token": "<image>", "image_end_token": "</image>"}
    marks |= {"slice_start_token": "<slice>", "slice_end_token": "</slice>"}
    marks |= {"image_id_start_token": "<image_id>", "image_id_end_token": "</image_id>"}
    tokenizer = _tokenizer(
        ["<|im_start|>"], "<|im_end|>", image_token="<|image_pad|>", video_token="<|video_pad|>", **marks
    )
    linear = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2}
    layers = {"num_hidden_layers": 4, "layer_types": ["linear_attention", "full_attention"] * 2}
    config = hf.MiniCPMV4_6Config(
        vision_config=_vision(image_size=112, patch_size=14),
        text_config=hf.Qwen3_5TextConfig(**_text(tokenizer, head_dim=8, linear_num_value_heads=4, **linear, **layers)),
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        insert_layer_id=0,
    )
    processor = hf.MiniCPMV4_6Processor(
        hf.MiniCPMV4_6ImageProcessor(scale_resolution=112, max_slice_nums=4),
        hf.MiniCPMV4_6VideoProcessor(scale_resolution=112),
        tokenizer,
        chat_template=_CHATML.replace("IMAGE", "<|image_pad|>\n"),
    )
    return hf.MiniCPMV4_6ForConditionalGeneration(config), processor


def _mllama() -> _Parts:
    special = ["<|start_header_id|>", "<|end_header_id|>", "<|image|>", "<|python_tag|>"]
    tokenizer = _tokenizer(special, "<|eot_id|>", bos="<|begin_of_text|>")
    vision = _vision(attention_heads=4, num_global_layers=1, max_num_tiles=4, vision_output_dim=64)
    config = hf.MllamaConfig(
        vision_config=vision | {"intermediate_layers_indices": [0]},
        text_config=_text(tokenizer, num_hidden_layers=4, cross_attention_layers=[1, 3]),
        image_token_index=tokenizer.convert_tokens_to_ids("<|image|>"),
    )
    images = hf.MllamaImageProcessor(size={"height": 32, "width": 32}, max_image_tiles=4)
    processor = hf.MllamaProcessor(images, tokenizer, chat_template=_LLAMA3.replace("IMAGE", "<|image|>"))
    return hf.MllamaForConditionalGeneration(config), processor


_BUILDERS: dict[str, Callable[[], _Parts]] = {
    "llava": _llava,
    "qwen3_vl": _qwen3_vl,
    "smolvlm": _smolvlm,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "gemma3": _gemma3,
    "internvl": _internvl,
    "glm4v": _glm4v,
    "llava_next": _llava_next,
    "mllama": _mllama,
    "qwen3_vl_moe": _qwen3_vl_moe,
    "llava_onevision": _llava_onevision,
    "idefics3": _idefics3,
    "paligemma": _paligemma,
    "minicpmv4_6": _minicpmv4_6,
}

FAMILIES = tuple(_BUILDERS)
CHAT_FAMILIES = tuple(family for family in FAMILIES if family != "paligemma")
"""Those with a chat template."""


def build(family: str, folder: Path) -> Path:
    """Writes a tiny LVLM of `family` (one of `FAMILIES`) into `folder` and returns the folder.

    The weights depend on the family only. Every parameter is random, including those that the architecture
    starts at zero (gates, projectors), so that gradients reach the pixels.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, processor = _BUILDERS[family]()
        for name, parameter in model.named_parameters():
            if parameter.min() == parameter.max() and "norm" not in name and not name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.2)
            elif parameter.ndim > 1:
                parameter.data *= 5  # std 0.1: attention that is not uniform, logits that differ
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def language_model(folder: Path, special: Sequence[str] = (), positions: int = 40) -> Path:
    """Writes a tiny causal language model without images, for up to `positions` tokens, and returns the folder."""
    tokenizer = _tokenizer(["<s>", *special], "</s>", bos="<s>")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = hf.LlamaForCausalLM(hf.LlamaConfig(**_text(tokenizer, max_position_embeddings=positions)))
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data *= 5
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


_HOME = tempfile.TemporaryDirectory(prefix="mmguard-tiny-")


@functools.cache
def built(family: str) -> Path:
    """The folder of a tiny model, built once for all tests of this process; do not write into it."""
    return build(family, Path(_HOME.name) / family)


@functools.cache
def built_language_model() -> Path:
    """The folder of a tiny causal language model, likewise."""
    return language_model(Path(_HOME.name) / "language-model")


def pictures_of_noise(folder: Path, number: int, jpeg: Sequence[int] = ()) -> list[dict[str, str]]:
    """Pictures of several sizes in a folder, some of them JPEG files, and a row with a question for each."""
    rows = []
    for k in range(number):
        generator = torch.Generator().manual_seed(k)
        name = f"{k}.{'jpg' if k in jpeg else 'png'}"
        to_pil_image(torch.randint(0, 256, (3, 32 + k, 40), generator=generator, dtype=torch.uint8)).save(folder / name)
        rows.append({"file_name": name, "question": f"what is number {k}?", "answer": "blue" if k == 1 else "red"})
    return rows
