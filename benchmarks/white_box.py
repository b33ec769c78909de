"""Every variant against every attacker on easy-VQA, with controls and intervals: the numbers of docs/benchmarks.md.

    python benchmarks/white_box.py --out out/easy-vqa --report docs/benchmarks.md

Each release and each fine-tuning run is a file under `--out`, made once: the benchmark can be stopped and started, and
two processes can share a folder if they are given other `--attacker`s or `--variant`s. Clean and control arms are the
same for all variants and run once. Variants that change both sides are held against `control`, `image` against
`random-noise`, `text` against `random-words`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

from mmguard.auditing.arms import ImageStore, pair, rows
from mmguard.auditing.attackers import fine_tune, load_attacker
from mmguard.auditing.evaluate import evaluate
from mmguard.auditing.stats import Estimate, Finding, Scores, analyse
from mmguard.config import AuditConfig, ProtectConfig, Variant
from mmguard.data.readers import read_dataset
from mmguard.protection.run import protect
from mmguard.release.verify import verify
from mmguard.types import Sample

VARIANTS: tuple[Variant, ...] = ("bph", "crs", "bph-max", "crs-max", "multimodal", "image", "text")
CONTROLS = ("clean", "control", "random-noise", "random-words")
MATCHED = {"image": "random-noise", "text": "random-words"}


def release_of(variant: Variant, arguments: argparse.Namespace) -> Path:
    """The release of a variant, made if it is not there."""
    folder: Path = arguments.out / variant
    if not (folder / "metadata.jsonl").is_file():
        config = ProtectConfig(
            variant=variant,
            rounds=arguments.rounds,
            top_c=arguments.top_c,
            inner_steps=arguments.inner_steps,
            inner_lr=arguments.inner_lr,
            inner_batch_size=arguments.inner_batch_size,
            lambda_bind=arguments.lambda_bind,
        )
        protect(arguments.train, [arguments.surrogate], config, folder, device="cpu")
    checked = verify(folder, arguments.train)
    if not checked.ok:
        raise SystemExit(f"{folder}: {checked.problems[:3]}")
    return folder


def answers(attacker: str, arm: str, seed: int, tests: list[Sample], arguments: argparse.Namespace) -> np.ndarray:
    """Which test questions an attacker answers correctly after training on an arm; `zero-shot` trains on nothing."""
    file: Path = arguments.out / "runs" / f"{attacker.replace(':', '-')}_{arm}_{seed}.json"
    if file.is_file():
        return np.array(json.loads(file.read_text()), dtype=bool)
    if arguments.finished:
        raise FileNotFoundError(file)
    config = AuditConfig(epochs=arguments.epochs, lr=arguments.lr, eval_batch_size=64)
    store = ImageStore()
    model = load_attacker(attacker, "cpu")
    if arm != "zero-shot":
        made_from: Variant = "bph" if arm in CONTROLS else arm  # type: ignore[assignment]
        released = read_dataset(release_of(made_from, arguments))
        pairing = pair(released, read_dataset(arguments.train))
        data = rows(arm if arm in CONTROLS else "release", pairing, model.words, seed)  # type: ignore[arg-type]
        model = fine_tune(attacker, data, "lora", config, seed, device="cpu", store=store)
    right = evaluate(model, tests, config, store)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(right.astype(int).tolist()))
    print(f"{attacker} {arm} seed {seed}: {right.mean():.3f}", file=sys.stderr, flush=True)
    return right


def findings(tests: list[Sample], arguments: argparse.Namespace) -> dict[str, list[Finding]]:
    """All findings by variant."""
    result: dict[str, list[Finding]] = {}
    groups = list(np.unique([str(sample.image) for sample in tests], return_inverse=True)[1])
    for attacker in arguments.attacker:
        zero_shot = answers(attacker, "zero-shot", 0, tests, arguments)

        def runs(arm: str, attacker: str = attacker) -> np.ndarray:
            return np.stack([answers(attacker, arm, seed, tests, arguments) for seed in range(arguments.seeds)])

        controls = {arm: runs(arm) for arm in CONTROLS if arm in ("clean", "control") or arguments.all_controls}
        for variant in arguments.variant:
            matched = MATCHED.get(variant, "control")
            try:
                correct = {
                    "clean": controls["clean"],
                    "release": runs(variant),
                    matched: controls[matched] if matched in controls else runs(matched),
                }
            except FileNotFoundError as error:
                print(f"left out: {attacker} {variant}, not run yet: {error}", file=sys.stderr)
                continue
            scores = Scores(attacker, "lora", correct, zero_shot, matched)
            result.setdefault(variant, []).extend(analyse([scores], groups)[0])
    return result


def page(found: dict[str, list[Finding]], tests: list[Sample], arguments: argparse.Namespace) -> str:
    """docs/benchmarks.md."""
    settings = {k: str(v) for k, v in vars(arguments).items() if k not in ("report", "out", "finished", "all_controls")}
    lines = [
        "# Benchmarks",
        "",
        "Written by `python benchmarks/white_box.py "
        + shlex.join(a for a in sys.argv[1:])
        + "`. Zoo models demonstrate the method; nothing here predicts how large models fare.",
        "",
        f"easy-VQA, {len(read_dataset(arguments.train).samples)} training questions, {len(tests)} test questions, "
        f"surrogate {arguments.surrogate}, LoRA attackers, {arguments.seeds} seeds. Accuracies in percent; differences "
        "in points with 95 % bootstrap intervals over seeds and test items. *Control cost*: what the same budget spent "
        "at random costs; above 5 points the attacker is *brittle*, and its numbers are no evidence. *G*: the share of "
        "the fine-tuning gain that the release removes beyond the control.",
        "",
        "| attacker | variant | zero-shot | clean | control | release | drop | control cost | beyond control | G | "
        "status |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for variant, many in found.items():
        for one in many:
            cells = [one.attacker, variant, f"{100 * one.zero_shot:.1f}"]
            cells += [f"{100 * one.accuracy[arm]:.1f}" for arm in ("clean", one.matched, "release")]
            cells += [_points(e) for e in (one.drop, one.control_cost, one.beyond_control)]
            cells += [_share(one.gain_removed), one.status]
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Settings: " + ", ".join(f"{k} {v}" for k, v in settings.items()) + "."]
    return "\n".join(lines) + "\n"


def _points(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    return f"{100 * estimate.value:.1f} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def _share(estimate: Estimate | None) -> str:
    return "–" if estimate is None else f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", default="easy-vqa:train:what:500")
    parser.add_argument("--test", default="easy-vqa:test:all-what:500")
    parser.add_argument("--surrogate", default="zoo:qwen3vl-tiny")
    parser.add_argument("--attacker", nargs="+", default=["zoo:qwen3vl-tiny", "zoo:llava-tiny", "zoo:smolvlm-tiny"])
    parser.add_argument("--variant", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--all-controls", action="store_true", help="run every control, not only the matched ones")
    parser.add_argument("--finished", action="store_true", help="report the runs that are there, make none")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=None)
    parser.add_argument("--lr", type=float, default=None)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--top-c", type=int, default=16)
    parser.add_argument("--inner-steps", type=int, default=ProtectConfig.inner_steps)
    parser.add_argument("--inner-lr", type=float, default=ProtectConfig.inner_lr)
    parser.add_argument("--inner-batch-size", type=int, default=ProtectConfig.inner_batch_size)
    parser.add_argument("--lambda-bind", type=float, default=ProtectConfig.lambda_bind)
    parser.add_argument("--out", type=Path, default=Path("out/easy-vqa"))
    parser.add_argument("--report", type=Path, default=None, help="write the page here")
    chosen = parser.parse_args()
    questions = read_dataset(chosen.test).samples
    all_findings = findings(questions, chosen)
    (chosen.out / "findings.json").write_text(
        json.dumps({v: [asdict(f) for f in many] for v, many in all_findings.items()}, indent=1)
    )
    text = page(all_findings, questions, chosen)
    if chosen.report:
        chosen.report.write_text(text, encoding="utf-8")
    print(text)
