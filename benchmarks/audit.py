"""What the steps of an attacker's fine-tuning cost, with and without what an audit spares them.

    python benchmarks/audit.py --steps 40

Runs are made in turn, on the same data, with the same seed: that the trained weights are equal is checked, too. Seconds
are those of the processor, so that others who use the machine count little. Only ratios carry over to other machines.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import AbstractContextManager, ExitStack, nullcontext
from itertools import pairwise
from unittest.mock import patch

import torch
from transformers import Trainer

from mmguard.auditing import attackers
from mmguard.auditing.arms import ImageStore, Row
from mmguard.config import AuditConfig
from mmguard.data.readers import read_dataset
from mmguard.data.tasks import target_text, user_text

ROWS = 64


def as_libraries_do() -> AbstractContextManager[object]:
    """Training with all that Transformers does in every step."""
    stack = ExitStack()
    stack.enter_context(patch.object(attackers, "_walked_once", lambda trainer: nullcontext()))
    stack.enter_context(patch.object(attackers._Trainer, "_clip_grad_norm", Trainer._clip_grad_norm))
    return stack


def fine_tuned(name: str, rows: list[Row], store: ImageStore, steps: int) -> tuple[list[float], torch.Tensor]:
    """Seconds of every step but the first, and all weights afterwards."""
    config = AuditConfig(epochs=steps * AuditConfig().batch_size / len(rows))
    ends: list[float] = []
    attacker = attackers.fine_tune(
        name, rows, "lora", config, seed=0, device="cpu", store=store,
        on_step=lambda share, loss: ends.append(time.process_time()),
    )  # fmt: skip
    weights = torch.cat([weight.detach().flatten() for weight in attacker.model.parameters()])
    return [after - before for before, after in pairwise(ends)], weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attacker", nargs="+", default=["zoo:mllama-tiny", "zoo:gemma3-tiny"])
    parser.add_argument("--steps", type=int, default=40, help="of each run")
    parser.add_argument("--turns", type=int, default=2, help="runs of each kind")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    samples = read_dataset(f"drawings:medical:train:{ROWS}").samples
    rows = [Row(one.id, one.image, user_text(one.question, one.options), target_text(one)) for one in samples]
    store = ImageStore()
    print("| attacker | as libraries do (ms a step) | spared (ms a step) | ratio | same weights |")
    print("| --- | --- | --- | --- | --- |")
    for name in chosen.attacker:
        plain: list[float] = []
        spared: list[float] = []
        same = True
        for _ in range(chosen.turns):
            with as_libraries_do():
                times, before = fine_tuned(name, rows, store, chosen.steps)
                plain += times
            times, after = fine_tuned(name, rows, store, chosen.steps)
            spared += times
            same = same and torch.equal(before, after)
        slow, fast = (1000 * statistics.median(times) for times in (plain, spared))
        print(f"| {name} | {slow:.0f} | {fast:.0f} | {fast / slow:.2f} | {'yes' if same else 'no'} |")


if __name__ == "__main__":
    main()
