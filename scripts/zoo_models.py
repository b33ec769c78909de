"""The zoo's architectures, with random weights: for each a function that builds a model and its processor.

A new one is such a function and a line in `MODELS`. Images become 96 pixels wide and 36 tokens (LLaVA: 64); Mllama
sees up to two tiles of 96 pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers as hf

from zoo_tokenizers import CHATML, GEMMA, LLAMA3, byte_level, unigram

Parts = tuple[Any, Any]
"""A model and its processor."""

_HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_AREA = {"shortest_edge": 96 * 96, "longest_edge": 96 * 96}
_PATCHES = {"patch_size": 8, "merge_size": 2, "temporal_patch_size": 2}


def _text(tokenizer: Any, **changes: Any) -> dict[str, Any]:
    """A decoder of four layers and about 0.8 M parameters, embeddings included."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 176,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    } | changes


def _ids(tokenizer: Any, **tokens: str) -> dict[str, int]:
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}


def llava() -> Parts:
    """LLaVA 1.5: a CLIP tower and a LLaMA decoder."""
    tokenizer = byte_level()
    return llava_of(tokenizer, hf.LlamaConfig(**_text(tokenizer, hidden_size=160, intermediate_size=448)))


def llava_of(tokenizer: Any, text_config: Any, **vision: Any) -> Parts:
    """LLaVA 1.5 with any decoder that speaks ChatML and knows `<image>`, and changes to the tower's configuration."""
    processor = hf.LlavaProcessor(
        image_processor=hf.CLIPImageProcessor(size={"shortest_edge": 96}, crop_size={"height": 96, "width": 96}),
        tokenizer=tokenizer, patch_size=12, chat_template=CHATML.replace("IMAGE", "<image>"),
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    config = hf.LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model", "hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4,
            "num_hidden_layers": 5, "image_size": 96, "patch_size": 12, "projection_dim": 128,
        } | vision,
        text_config=text_config, **_ids(tokenizer, image_token_index="<image>"), image_seq_length=64,
        tie_word_embeddings=text_config.tie_word_embeddings,
    )  # fmt: skip
    return hf.LlavaForConditionalGeneration(config), processor


def smolvlm() -> Parts:
    """SmolVLM: a SigLIP-like tower, a pixel shuffle and a LLaMA decoder."""
    tokenizer = byte_level(("<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<row_1_col_1>"))
    size = {"size": {"longest_edge": 96}, "max_image_size": {"longest_edge": 96}, "do_image_splitting": False, **_HALF}
    processor = hf.SmolVLMProcessor(
        image_processor=hf.SmolVLMImageProcessor(**size), tokenizer=tokenizer,
        video_processor=hf.SmolVLMVideoProcessor(
            video_sampling={"fps": 1, "max_frames": 4, "video_size": {"longest_edge": 96}}, **size
        ),
        image_seq_len=36, chat_template=CHATML.replace("IMAGE", "<image>"),
    )  # fmt: skip
    config = hf.SmolVLMConfig(
        vision_config={
            "hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4, "num_hidden_layers": 4,
            "image_size": 96, "patch_size": 8,
        },
        text_config=hf.LlamaConfig(**_text(tokenizer, hidden_size=160, intermediate_size=448)),
        **_ids(tokenizer, image_token_id="<image>"), scale_factor=2, tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return hf.SmolVLMForConditionalGeneration(config), processor


_QWEN_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_QWEN_TEMPLATE = CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")


def _qwen_ids(tokenizer: Any) -> dict[str, int]:
    return _ids(
        tokenizer, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>",
        vision_start_token_id="<|vision_start|>", vision_end_token_id="<|vision_end|>",
    )  # fmt: skip


def qwen3_vl(text: dict[str, Any], vision: dict[str, Any]) -> Parts:
    """Qwen3-VL in the size that the changes to its two configurations give."""
    tokenizer = byte_level(_QWEN_TOKENS)
    processor = hf.Qwen3VLProcessor(
        image_processor=hf.Qwen2VLImageProcessor(size=_AREA, **_PATCHES, **_HALF), tokenizer=tokenizer,
        video_processor=hf.Qwen3VLVideoProcessor(size=_AREA, **_PATCHES, **_HALF), chat_template=_QWEN_TEMPLATE,
    )  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    text = _text(tokenizer, rope_parameters=rope, **text)
    config = hf.Qwen3VLConfig(
        vision_config={
            "num_heads": 4, "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "out_hidden_size": text["hidden_size"], "num_position_embeddings": 256, "deepstack_visual_indexes": [1],
        } | vision,
        text_config=text, **_qwen_ids(tokenizer), tie_word_embeddings=True,
    )  # fmt: skip
    return hf.Qwen3VLForConditionalGeneration(config), processor


def qwen2_5_vl() -> Parts:
    """Qwen2.5-VL: windows of 48 pixels in the middle layer of its tower."""
    tokenizer = byte_level(_QWEN_TOKENS)
    processor = hf.Qwen2_5_VLProcessor(
        image_processor=hf.Qwen2VLImageProcessor(size=_AREA, **_PATCHES), tokenizer=tokenizer,
        video_processor=hf.Qwen2VLVideoProcessor(size=_AREA, **_PATCHES), chat_template=_QWEN_TEMPLATE,
    )  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
    config = hf.Qwen2_5_VLConfig(
        vision_config={
            "hidden_size": 80, "intermediate_size": 160, "num_heads": 5, "depth": 3, "patch_size": 8,
            "window_size": 48, "fullatt_block_indexes": [0, 2], "out_hidden_size": 128,
        },
        text_config=_text(tokenizer, rope_parameters=rope), **_qwen_ids(tokenizer), tie_word_embeddings=True,
    )  # fmt: skip
    return hf.Qwen2_5_VLForConditionalGeneration(config), processor


def glm4v() -> Parts:
    """GLM-4.1V: rotary positions on half of each head."""
    edges = [f"<|{edge}_of_{kind}|>" for kind in ("image", "video") for edge in ("begin", "end")]
    tokenizer = byte_level((*edges, "<|image|>", "<|video|>"))
    # Its sizes count both frames of a temporal patch.
    size = {edge: 2 * pixels for edge, pixels in _AREA.items()}
    processor = hf.Glm4vProcessor(
        image_processor=hf.Glm4vImageProcessor(size=size, **_PATCHES), tokenizer=tokenizer,
        video_processor=hf.Glm4vVideoProcessor(size=size, **_PATCHES),
        chat_template=CHATML.replace("IMAGE", "<|begin_of_image|><|image|><|end_of_image|>"),
    )  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3], "partial_rotary_factor": 0.5}
    config = hf.Glm4vConfig(
        vision_config={
            "hidden_size": 80, "intermediate_size": 160, "num_heads": 5, "depth": 3, "patch_size": 8,
            "image_size": 96, "out_hidden_size": 128,
        },
        text_config=_text(tokenizer, rope_parameters=rope),
        **_ids(
            tokenizer, image_token_id="<|image|>", video_token_id="<|video|>",
            image_start_token_id="<|begin_of_image|>", image_end_token_id="<|end_of_image|>",
            video_start_token_id="<|begin_of_video|>", video_end_token_id="<|end_of_video|>",
        ),
        tie_word_embeddings=True,
    )  # fmt: skip
    return hf.Glm4vForConditionalGeneration(config), processor


def internvl() -> Parts:
    """InternVL 3: a pixel shuffle and a Qwen2 decoder."""
    tokenizer = byte_level(
        start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>", video_token="<video>"
    )
    size = {"height": 96, "width": 96}
    processor = hf.InternVLProcessor(
        # Its processor always asks for tiles: one is the whole image.
        image_processor=hf.GotOcr2ImageProcessor(size=size, crop_to_patches=True, max_patches=1),
        tokenizer=tokenizer, video_processor=hf.InternVLVideoProcessor(size=size), image_seq_length=36,
        chat_template=CHATML.replace("IMAGE", "<IMG_CONTEXT>\n"),
    )  # fmt: skip
    config = hf.InternVLConfig(
        vision_config={
            "hidden_size": 96, "intermediate_size": 192, "num_attention_heads": 4, "num_hidden_layers": 3,
            "image_size": [96, 96], "patch_size": [8, 8], "layer_scale_init_value": 1.0,
        },
        text_config=hf.Qwen2Config(**_text(tokenizer)), **_ids(tokenizer, image_token_id="<IMG_CONTEXT>"),
        image_seq_length=36, tie_word_embeddings=True,
    )  # fmt: skip
    return hf.InternVLForConditionalGeneration(config), processor


def gemma3() -> Parts:
    """Gemma 3: a SigLIP tower, pooled, and sliding windows in every other layer."""
    tokenizer = unigram(
        ("<start_of_turn>",), bos="<bos>", eos="<end_of_turn>", image_token="<image_soft_token>",
        boi_token="<start_of_image>", eoi_token="<end_of_image>",
    )  # fmt: skip
    processor = hf.Gemma3Processor(
        image_processor=hf.Gemma3ImageProcessor(size={"height": 96, "width": 96}), tokenizer=tokenizer,
        image_seq_length=36, chat_template=GEMMA.replace("IMAGE", "<start_of_image>"),
    )  # fmt: skip
    config = hf.Gemma3Config(
        vision_config=hf.SiglipVisionConfig(
            hidden_size=96, intermediate_size=192, num_attention_heads=4, num_hidden_layers=4, image_size=96,
            patch_size=8, vision_use_head=False,
        ),
        text_config=hf.Gemma3TextConfig(
            **_text(tokenizer), query_pre_attn_scalar=32, sliding_window=64,
            layer_types=["sliding_attention", "full_attention"] * 2,
        ),
        **_ids(
            tokenizer, image_token_index="<image_soft_token>", boi_token_index="<start_of_image>",
            eoi_token_index="<end_of_image>",
        ),
        mm_tokens_per_image=36,
    )  # fmt: skip
    model = hf.Gemma3ForConditionalGeneration(config)
    # Transformers starts it at zero, which lets no image through.
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.02)
    return model, processor


def mllama() -> Parts:
    """Llama 3.2 Vision: two layers of its decoder look at the image by cross-attention."""
    tokenizer = unigram(
        ("<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>"), bos="<|begin_of_text|>", eos="<|eot_id|>",
        image_token="<|image|>",
    )  # fmt: skip
    processor = hf.MllamaProcessor(
        hf.MllamaImageProcessor(size={"height": 96, "width": 96}, max_image_tiles=2), tokenizer,
        chat_template=LLAMA3.replace("IMAGE", "<|image|>"),
    )  # fmt: skip
    config = hf.MllamaConfig(
        vision_config={
            "hidden_size": 80, "intermediate_size": 160, "attention_heads": 4, "num_hidden_layers": 2,
            "num_global_layers": 1, "image_size": 96, "patch_size": 12, "max_num_tiles": 2,
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]], "intermediate_layers_indices": [0],
            "vision_output_dim": 160,
        },
        text_config=_text(
            tokenizer, intermediate_size=152, num_hidden_layers=5, cross_attention_layers=[2, 4],
            tie_word_embeddings=False,
        ),
        **_ids(tokenizer, image_token_index="<|image|>"),
    )  # fmt: skip
    model = hf.MllamaForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if name.endswith(("attn_gate", "mlp_gate", "gate_attn", "gate_ffn")):  # transformers starts them closed
            torch.nn.init.ones_(parameter)
    return model, processor


def minicpmv() -> Parts:
    """MiniCPM-V 4.6: a Qwen3.5 decoder, half of it linear attention."""
    tokenizer = byte_level(
        image_token="<|image_pad|>", video_token="<|video_pad|>", image_start_token="<image_start>",
        image_end_token="</image>", slice_start_token="<slice>", slice_end_token="</slice>",
        image_id_start_token="<image_id>", image_id_end_token="</image_id>",
    )  # fmt: skip
    # "4x" merges patches once, behind the vision tower. "16x" does so a second time inside it, one attention call for
    # every four patches, which on a CPU costs as much as all the rest: that merger is never run, and so kept small.
    size = {"scale_resolution": 96, "patch_size": 8, "slice_mode": False, "downsample_mode": "4x"}
    processor = hf.MiniCPMV4_6Processor(
        image_processor=hf.MiniCPMV4_6ImageProcessor(**size), tokenizer=tokenizer,
        video_processor=hf.MiniCPMV4_6VideoProcessor(**size), chat_template=CHATML.replace("IMAGE", "<|image_pad|>"),
    )  # fmt: skip
    config = hf.MiniCPMV4_6Config(
        vision_config={
            "hidden_size": 80, "intermediate_size": 160, "num_attention_heads": 4, "num_hidden_layers": 3,
            "image_size": 96, "patch_size": 8, "window_kernel_size": [1, 1],
        },
        text_config=hf.Qwen3_5TextConfig(
            # The other way round than in the published model, so that the binding losses find attention to read.
            **_text(tokenizer), layer_types=["full_attention"] * 2 + ["linear_attention"] * 2,
            linear_key_head_dim=32, linear_value_head_dim=32, linear_num_key_heads=2, linear_num_value_heads=2,
        ),
        **_ids(tokenizer, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>"),
        image_size=96, downsample_mode="4x", tie_word_embeddings=True,
    )  # fmt: skip
    return hf.MiniCPMV4_6ForConditionalGeneration(config), processor


MODELS: dict[str, Callable[[], Parts]] = {
    "llava-tiny": llava,
    "smolvlm-tiny": smolvlm,
    "qwen3vl-micro": partial(
        qwen3_vl, {"hidden_size": 96, "num_attention_heads": 3, "num_key_value_heads": 1},
        {"hidden_size": 80, "intermediate_size": 160, "depth": 3},
    ),
    "qwen3vl-tiny": partial(
        qwen3_vl, {"hidden_size": 160, "intermediate_size": 448},
        {"hidden_size": 128, "intermediate_size": 384, "depth": 4},
    ),
    "qwen3vl-small": partial(
        qwen3_vl, {"hidden_size": 192, "intermediate_size": 400, "num_attention_heads": 6},
        {"hidden_size": 128, "intermediate_size": 384, "depth": 4},
    ),
    "qwen25vl-tiny": qwen2_5_vl,
    "internvl-tiny": internvl,
    "glm4v-tiny": glm4v,
    "minicpmv-tiny": minicpmv,
    "gemma3-tiny": gemma3,
    "mllama-tiny": mllama,
}  # fmt: skip
"""By name, the function that builds the model."""
