"""`mmguard demo`: from a dataset to a verdict with no arguments and no network, in minutes on two cores."""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision.transforms.functional import to_pil_image

from mmguard.auditing.report import AuditReport
from mmguard.auditing.run import audit
from mmguard.config import AuditConfig, ProtectConfig
from mmguard.data.images import load_image
from mmguard.data.readers import read_dataset
from mmguard.errors import ReleaseError
from mmguard.pages.pictures import difference
from mmguard.protection.run import protect
from mmguard.release.verify import verify

TRAIN, TEST = "easy-vqa:train:what:300", "easy-vqa:test:what:300"
SURROGATE = "zoo:qwen3vl-tiny"
ATTACKERS = ("zoo:qwen3vl-tiny", "zoo:llava-tiny")
"""The surrogate's architecture, and another one."""

# Less of everything than the defaults, so that two cores need minutes; the report says how few seeds it has. Weak
# binding is what docs/benchmarks.md was measured with.
PROTECT = ProtectConfig(
    variant="crs", rounds=2, pgd_steps=3, top_c=6, lambda_bind=0.3, inner_steps=40, inner_lr=3e-3, inner_batch_size=8
)
AUDIT = AuditConfig(seeds=1)


def run_demo(out: Path, show_progress: bool = True) -> AuditReport:
    """Protects 300 easy-VQA pictures, verifies the release, and audits it against controls.

    Args:
        out: folder for `release`, `release.record`, `report` and `before-after.png`.
        show_progress: bars with the time that remains, on standard error.

    Raises:
        ReleaseError: the folder holds a finished demo already, or the release does not verify.
    """
    release = protect(TRAIN, [SURROGATE], PROTECT, out / "release", device="cpu", show_progress=show_progress)
    check = verify(release.path, TRAIN)
    if not check.ok:
        raise ReleaseError(f"{release.path}: does not verify: {'; '.join(check.problems[:3])}")
    sample = read_dataset(TRAIN).samples[0]
    released = read_dataset(release.path).samples[0]
    before_after(sample.image, released.image, out / "before-after.png")
    return audit(
        release.path, TRAIN, TEST, ATTACKERS, AUDIT, out / "report",
        arms=("control",), progress=show_progress, device="cpu", jobs=None,
    )  # fmt: skip


def before_after(original: Path, released: Path, target: Path, scale: int = 4) -> None:
    """Saves original, released image and their difference times 16 (gray is no change) side by side."""
    before, after = load_image(original), load_image(released)
    strip = torch.cat([before, after, difference(before, after)], dim=2)
    strip = strip.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)
    to_pil_image(strip).save(target)
