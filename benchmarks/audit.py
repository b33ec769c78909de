"""What the steps of an attacker's fine-tuning cost with TRL's loss, and with that of answers alone, on a CPU.

    python benchmarks/audit.py --steps 40

Runs are made in turn, on the same data, with the same seed; losses differ by rounding alone, and the largest difference
is shown. Seconds are those of the processor, so that others who use the machine count little. Only ratios carry over to
other machines.
"""

from __future__ import annotations

import argparse
import statistics
import time
from itertools import pairwise
from unittest.mock import patch

import torch
from trl.trainer.sft_trainer import SFTTrainer

from mmguard.auditing import attackers
from mmguard.auditing.arms import ImageStore, Row
from mmguard.config import AuditConfig
from mmguard.data.readers import read_dataset
from mmguard.data.tasks import target_text, user_text

ROWS = 64


def fine_tuned(name: str, rows: list[Row], store: ImageStore, steps: int) -> tuple[list[float], list[float]]:
    """Seconds of every step but the first, and the loss of every step."""
    config = AuditConfig(epochs=steps * AuditConfig().batch_size / len(rows))
    ends: list[float] = []
    losses: list[float] = []

    def on_step(share: float, loss: float) -> None:
        ends.append(time.process_time())
        losses.append(loss)

    attackers.fine_tune(name, rows, "lora", config, seed=0, device="cpu", store=store, on_step=on_step)
    return [after - before for before, after in pairwise(ends)], losses


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
    print("| attacker | TRL (ms a step) | answers alone (ms a step) | ratio | largest difference of a loss |")
    print("| --- | --- | --- | --- | --- |")
    for name in chosen.attacker:
        theirs: list[float] = []
        ours: list[float] = []
        for _ in range(chosen.turns):
            with patch.object(attackers._Trainer, "compute_loss", SFTTrainer.compute_loss):
                times, expected = fine_tuned(name, rows, store, chosen.steps)
                theirs += times
            times, losses = fine_tuned(name, rows, store, chosen.steps)
            ours += times
        slow, fast = (1000 * statistics.median(times) for times in (theirs, ours))
        apart = max(abs(one - other) for one, other in zip(expected, losses, strict=True))
        print(f"| {name} | {slow:.0f} | {fast:.0f} | {fast / slow:.2f} | {apart:.1g} |", flush=True)


if __name__ == "__main__":
    main()
