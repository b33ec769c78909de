"""What the page says, in the words of people who own pictures."""

from __future__ import annotations

from dataclasses import dataclass

from mmguard.config import Variant


@dataclass(frozen=True)
class Strength:
    """How much of a change, and how much work, one word stands for."""

    said: str
    eps: int
    words: int
    rounds: int


STRENGTHS: dict[str, Strength] = {
    "gentle": Strength("Gentle: pictures change by at most 4 levels of 255, questions by 3 words; fastest", 4, 3, 2),
    "standard": Strength("Standard: at most 8 levels and 5 words; hard to see in photographs", 8, 5, 3),
    "strong": Strength("Strong: at most 12 levels and 7 words; visible in flat areas, and slowest", 12, 7, 5),
}

VARIANTS: dict[Variant, str] = {
    "crs": "Distract (recommended): pictures and words keep the model from looking where the answer is",
    "bph": "Shortcut: pictures and words offer an easy path to the answer that is missing in real data",
    "multimodal": "Plain: pictures and words are made easy to learn, without steering where the model looks",
    "crs-max": "Distract and resist: as Distract, and the data is made hard to learn (a thief may notice)",
    "bph-max": "Shortcut and resist: as Shortcut, and the data is made hard to learn (a thief may notice)",
    "image": "Pictures only: questions stay as they are; alone, we measured no effect",
    "text": "Words only: pictures stay as they are",
}

STAGES = {
    "Reading": "Reading the pictures",
    "Captioning": "Describing pictures that came without text",
    "Adapting": "Playing the thief, to see what is learned",
    "Perturbing": "Changing the pictures",
    "Searching": "Choosing the words",
    "Writing": "Writing the protected copy",
    "Verifying": "Checking the protected copy",
    "all runs are made": "Writing the report",
}
"""The stages of the program, and what people read."""

EFFORTS = {
    "quick": "Quick: each thief tries once; says whether anything happens, proves nothing",
    "thorough": "Thorough: each thief tries three times; minutes to hours",
}

NOT_PROTECTED = (
    "**Looking is not learning.** Whoever shows a protected picture to a model gets the same answer as before. Only "
    "*training* on the copy is hindered.",
    "**What is out is out.** Copies taken before, and models trained before, are not affected.",
    "**A determined thief can undo it**: by cutting the inserted words off, by strong JPEG, blur, gray or "
    "purification, or by mixing in other data.",
    "**Models unlike ours.** Against other models than the one used here, the effect is smaller, and may be none.",
    "It makes theft less useful. It is no lock and no proof, and says nothing of who owns a picture.",
)

ZOO_WARNING = (
    "**This page uses a tiny model** that comes with mmguard and runs on any laptop. It shows how the method works; "
    "it does **not** protect against large models. For that, start the page with a real one, on a computer with a GPU: "
    "`mmguard ui --surrogate Qwen/Qwen3-VL-4B-Instruct`."
)

FORMATS = """\
- **Just pictures** (JPEG, PNG, WebP, BMP, TIFF), if you like with a text file of the same name beside each: `cat.jpg`
  and `cat.txt`.
- **Pictures with questions**: a file `metadata.jsonl` beside them, each line
  `{"file_name": "cat.jpg", "question": "What is on the table?", "answer": "a cat"}`.
- **Tables** (CSV, TSV) with the columns `file_name`, `question`, `answer`; **COCO** captions; **LLaVA**, **ShareGPT**
  and **LLaMA-Factory** JSON.

Other files are ignored. Parquet, WebDataset and larger collections: `mmguard protect` on the command line."""
