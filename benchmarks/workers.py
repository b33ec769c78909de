"""What a second Ray worker gains: images per second with one worker and with two, side by side in one run.

    OMP_NUM_THREADS=1 python benchmarks/workers.py

It needs two idle cores. Only batches are timed: loading and adapting surrogates are the driver's, whatever the engine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import ExitStack

from mmguard.config import EngineConfig, ProtectConfig
from mmguard.data.readers import read_dataset
from mmguard.protection.engine import Engine, Job, engine_of
from mmguard.protection.ensemble import Ensemble
from mmguard.protection.loop import batches
from mmguard.protection.prepare import begin, ensemble_of
from mmguard.protection.ray_engine import RayEngine


def rate(engine: Engine, jobs: list[Job], ensemble: Ensemble, config: ProtectConfig) -> float:
    """Images per second through all batches."""
    began = time.perf_counter()
    done = sum(len(batch) for _, batch in engine.protect(jobs, ensemble, config, lambda stage, amount: None))
    return done / (time.perf_counter() - began)


def main() -> None:
    """Prints rates and their ratio; the engines take turns, so that what slows the machine slows both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--surrogate", default="zoo:qwen3vl-tiny")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    config = ProtectConfig(batch_size=arguments.batch_size, pgd_steps=2, top_c=8)
    data = read_dataset(f"drawings:science:train:{arguments.images}")
    ensemble = ensemble_of([arguments.surrogate], config, "cpu")
    assert ensemble is not None
    items, _ = begin(data, config, ensemble)
    jobs = list(enumerate(batches(items, config.batch_size)))
    rates: dict[int, list[float]] = {1: [], 2: []}
    with ExitStack() as stack:
        stack.enter_context(ensemble.adaptable())
        # Both pools at once would need room for three: each is made for its turn, and warmed up.
        for _ in range(arguments.repeats):
            for workers, found in rates.items():
                with engine_of(EngineConfig("ray", workers=workers), [arguments.surrogate], config, "cpu") as engine:
                    assert isinstance(engine, RayEngine)
                    while engine.present < workers:  # one that loads late would be missed in what is timed
                        rate(engine, jobs[: 2 * workers], ensemble, config)
                    rate(engine, jobs[: 2 * workers], ensemble, config)
                    found.append(rate(engine, jobs, ensemble, config))
    one, two = (statistics.median(found) for found in rates.values())
    print(f"images per second: {one:.2f} with one worker, {two:.2f} with two: {two / one:.2f} x")
    ratios = [b / a for a, b in zip(rates[1], rates[2], strict=True)]
    print(f"pairs of turns: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")


if __name__ == "__main__":
    main()
