"""Random weights at the sizes of real models, with the zoo's tokenizer: nothing to download."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf

from mmguard import zoo
from mmguard.lvlm.attention import IMPLEMENTATION
from mmguard.lvlm.surrogate import Surrogate


def qwen3_vl_4b() -> tuple[Any, Any]:
    """Configuration and processor of Qwen3-VL-4B-Instruct."""
    processor = hf.AutoProcessor.from_pretrained(zoo.path("qwen3vl-tiny"))
    images = processor.image_processor
    images.patch_size, images.merge_size, images.size = 16, 2, {"shortest_edge": 65536, "longest_edge": 16777216}
    config = hf.Qwen3VLConfig(
        text_config={
            "vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 262144,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 5000000, "mrope_section": [24, 20, 20], "mrope_interleaved": True
            },
        },
        vision_config={
            "depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "patch_size": 16,
            "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 2560,
            "num_position_embeddings": 2304, "deepstack_visual_indexes": [5, 11, 17],
        },
        tie_word_embeddings=True,
        **_ids(processor.tokenizer, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>",
               vision_start_token_id="<|vision_start|>", vision_end_token_id="<|vision_end|>"),
    )  # fmt: skip
    return config, processor


def minicpm_v_4_6() -> tuple[Any, Any]:
    """Configuration and processor of MiniCPM-V-4.6."""
    template = hf.AutoProcessor.from_pretrained(zoo.path("qwen3vl-tiny")).chat_template
    tokenizer = hf.AutoTokenizer.from_pretrained(
        zoo.path("qwen3vl-tiny"),
        extra_special_tokens={
            "image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "image_start_token": "<image>",
            "image_end_token": "</image>", "slice_start_token": "<slice>", "slice_end_token": "</slice>",
            "image_id_start_token": "<image_id>", "image_id_end_token": "</image_id>",
        },
    )  # fmt: skip
    processor = hf.MiniCPMV4_6Processor(
        hf.MiniCPMV4_6ImageProcessor(), hf.MiniCPMV4_6VideoProcessor(), tokenizer,
        chat_template=template.replace("<|vision_start|><|image_pad|><|vision_end|>", "<|image_pad|>"),
    )  # fmt: skip
    config = hf.MiniCPMV4_6Config(
        text_config=hf.Qwen3_5TextConfig(
            vocab_size=248320, hidden_size=1024, intermediate_size=3584, num_hidden_layers=24, num_attention_heads=8,
            num_key_value_heads=2, head_dim=256, linear_num_key_heads=16, linear_num_value_heads=16,
        ),
        vision_config={
            "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
            "patch_size": 14, "image_size": 980,
        },
        image_size=1120, tie_word_embeddings=True,
        **_ids(tokenizer, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>"),
    )  # fmt: skip
    return config, processor


SIZES = {"qwen3-vl-4b": qwen3_vl_4b, "minicpm-v-4.6": minicpm_v_4_6}


def random_surrogate(name: str, device: torch.device) -> Surrogate:
    """A model of these sizes in bfloat16.

    Args:
        name: one of `SIZES`.
        device: where the weights are drawn.
    """
    config, processor = SIZES[name]()
    with torch.device(device):
        model = hf.AutoModelForImageTextToText.from_config(
            config, dtype=torch.bfloat16, attn_implementation=IMPLEMENTATION
        )
    return Surrogate(name, model.to(device), processor)


def _ids(tokenizer: Any, **tokens: str) -> dict[str, int]:
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}
