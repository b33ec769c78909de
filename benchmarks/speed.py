"""What protection costs against what training costs, side by side in one run: the numbers of docs/performance.md.

    python benchmarks/speed.py --report docs/performance.md

The steps of the first table are timed in turn, again and again, on the same model and batch, and medians are compared;
what takes minutes is timed once, both ways one after the other. Only ratios carry over to other machines. *Naive* is
what one would write first: eager attention that returns its matrices, one sample at a time, the clean reference anew in
every step, a full forward pass for every candidate word.

On a GPU, `--random qwen3-vl-4b` or `minicpm-v-4.6` takes random weights at the real sizes instead of the zoo.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from sizes import SIZES, random_surrogate
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mmguard import losses
from mmguard.config import ProtectConfig, Variant
from mmguard.lvlm.attention import IMPLEMENTATION
from mmguard.lvlm.loading import load_surrogate
from mmguard.lvlm.prompt import Example
from mmguard.lvlm.surrogate import Surrogate
from mmguard.lvlm.tuning import adapted
from mmguard.perturb import image as pgd
from mmguard.perturb import trigger as hotflip
from mmguard.perturb.budget import ImageBudget, apply, to_unit
from mmguard.perturb.objective import Objective
from mmguard.protection.batch import Item
from mmguard.protection.deltas import DeltaFile
from mmguard.protection.ensemble import Ensemble
from mmguard.protection.loop import optimise, start

QUESTION = "what is the color of the largest shape in this picture?"
FEW, MANY = 16, 64
"""Candidates a slot: ours, and the paper's."""
GROWTH = (
    ("96 x 96 pixels, 5 words", 96, 1, QUESTION),
    ("192 x 192 pixels", 192, 1, QUESTION),
    ("384 x 384 pixels", 384, 1, QUESTION),
    ("a question four times as long", 96, 1, " ".join([QUESTION] * 4)),
    ("two surrogates", 96, 2, QUESTION),
)
"""What a protection is timed with: in words, the width of pictures, the number of surrogates, the question."""
SIDE = 4096
"""Of the matrices whose product is the measure of what a device can do."""


def pictures(number: int, size: int) -> list[Tensor]:
    """Smooth random colours, uint8 `(3, size, size)`."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(number, 3, 8, 8, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    return list((images * 255).round().to(torch.uint8))


class Bench:
    """One model and one batch, in every way of working that is compared."""

    def __init__(self, surrogate: Surrogate, batch: int, size: int) -> None:
        self.surrogate = surrogate
        self.originals = pictures(batch, size)
        words = surrogate.admissible_tokens().words
        rng = random.Random(0)
        self.examples = [Example(QUESTION, "red", trigger=hotflip.random_trigger(words, 5, rng)) for _ in range(batch)]
        budget, generator = ImageBudget(8), torch.Generator().manual_seed(0)
        self.deltas = [budget.random(image, generator) for image in self.originals]
        self.protected = [to_unit(apply(i, d)) for i, d in zip(self.originals, self.deltas, strict=True)]
        self._adapted = adapted(surrogate, 8, 0)

    def __enter__(self) -> Bench:
        self.adapter = self._adapted.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._adapted.__exit__(*error)

    def train(self) -> None:
        """The floor: one supervised LoRA step on the batch."""
        encoded = self.surrogate.encode(self.examples, self.protected)
        self.adapter.step([(encoded, self.surrogate.pixels(self.protected))], len(self.examples), 1e-4)

    def step(self, variant: Variant) -> Callable[[], Any]:
        """One PGD step of ours; the clean reference is made here, once, as it is once a round."""
        ensemble = Ensemble([self.surrogate], ProtectConfig(variant=variant))
        references = ensemble.references(self.examples, [to_unit(image) for image in self.originals])

        def backward(images: list[Tensor]) -> None:
            ensemble.backward(self.examples, images, references)

        return lambda: pgd.descend(backward, self.originals, self.deltas, [ImageBudget(8)] * len(self.deltas))

    def naive_step(self) -> None:
        """One PGD step of CRS with eager attention matrices, sample by sample."""
        budget = ImageBudget(8)
        for example, original, delta in zip(self.examples, self.originals, self.deltas, strict=True):
            unit = to_unit(apply(original, delta)).requires_grad_(True)
            naive_loss(self.surrogate, example, unit, to_unit(original)).backward()
            assert unit.grad is not None
            budget.descend(original, delta, unit.grad)

    def torchattacks_step(self) -> Callable[[], Any]:
        """One step of torchattacks' PGD around the same model as a classifier of the first answer token."""
        import torchattacks

        # Triggers of the first sample for all, so that one position of the logits is the answer's in every row.
        alike = [replace(example, trigger=self.examples[0].trigger) for example in self.examples]
        encoded = self.surrogate.encode(alike, self.protected)
        first = int(encoded.roles.answer[0].int().argmax())
        assert (encoded.roles.answer.int().argmax(1) == first).all()
        before = torch.tensor([first - 1])

        class Classifier(torch.nn.Module):
            def forward(_self, images: Tensor) -> Tensor:  # noqa: N805 (`self` is the outer one)
                grid = images + ((images * 255).round() / 255 - images).detach()
                pixels = self.surrogate.pixels(list(grid))
                output = self.surrogate.model(**encoded.inputs, **pixels, use_cache=False, logits_to_keep=before)
                return output.logits[:, 0]

        classifier = Classifier().eval()
        attack = torchattacks.PGD(classifier, eps=8 / 255, alpha=1 / 255, steps=1, random_start=False)
        attack.device = self.surrogate.device
        labels, images = encoded.labels[:, first], torch.stack(self.protected).to(self.surrogate.device)
        return lambda: attack(images, labels)

    def error_minimising_round(self) -> None:
        """The published error-minimising schedule (Huang et al., 2021): one training step, then 20 steps of noise."""
        self.train()
        step = self.step("multimodal")
        for _ in range(20):
            step()

    def search(self, config: ProtectConfig) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """The trigger search of the first sample, ours and naive, over the same candidates."""
        example, image, original = self.examples[0], self.protected[0], to_unit(self.originals[0])
        ensemble = Ensemble([self.surrogate], config)
        references = ensemble.references([example], [original])

        def ours() -> hotflip.Trigger:
            (found,) = ensemble.search([example], [image], references)
            return found

        def naive() -> hotflip.Trigger:
            evaluation = Objective(self.surrogate, config)([example], [image], references[0])
            (gradient,) = torch.autograd.grad(evaluation.loss.sum(), evaluation.forward.embeddings)
            (scores,) = hotflip.scores(self.surrogate, evaluation.encoded, gradient, [example.trigger])
            words = self.surrogate.admissible_tokens().words

            def propose(trigger: hotflip.Trigger, slot: int) -> list[str]:
                return [trigger[slot], *hotflip.best(words, scores[slot], config.top_c)]

            @torch.no_grad()
            def exact(triggers: Sequence[hotflip.Trigger]) -> Tensor:
                one = [naive_loss(self.surrogate, replace(example, trigger=t), image, original) for t in triggers]
                return torch.stack(one)

            return hotflip.search(example.trigger, propose, exact)

        return ours, naive


def naive_loss(surrogate: Surrogate, example: Example, image: Tensor, original: Tensor) -> Tensor:
    """ℓ_joint of CRS with λ_bind = 2 over two layers, from `output_attentions` of the whole model."""

    def attention(example: Example, image: Tensor) -> tuple[Tensor, Any, Tensor]:
        encoded = surrogate.encode([example], [image])
        surrogate.model.set_attn_implementation("eager")
        try:
            output = surrogate.model(
                **encoded.inputs, **surrogate.pixels([image]), use_cache=False, output_attentions=True
            )
        finally:
            surrogate.model.set_attn_implementation(IMPLEMENTATION)
        rows = torch.stack([layer[0][:, encoded.roles.answer[0]].mean((0, 1)) for layer in output.attentions[:2]])
        loss = torch.nn.functional.cross_entropy(
            output.logits[0, :-1].float(), encoded.labels[0, 1:], ignore_index=-100
        )
        return rows[:, None], encoded, loss

    with torch.no_grad():
        clean, before, _ = attention(replace(example, trigger=()), original)
    rows, encoded, loss = attention(example, image)
    aligned = losses.align(clean, encoded.length - before.length, encoded.roles.trigger)
    return loss + 2 * losses.contrastive_routing_shift(aligned, rows)[0]


def say(what: str) -> None:
    """What is being measured, on standard error."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def seconds_of(way: Callable[[], Any], device: torch.device) -> float:
    """How long one call takes."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    way()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def clock(ways: dict[str, Callable[[], Any]], repeats: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each, timed in turn."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            say(f"{name}, {repeat} of {repeats}")
            spent = seconds_of(way, device)
            if repeat:  # the first is a warm-up
                times[name].append(spent)
    return {name: statistics.median(many) for name, many in times.items()}


STEPS = {
    "LoRA training step (the floor)": "train",
    "PGD step, no binding": "multimodal",
    "PGD step, BPH": "bph",
    "PGD step, CRS": "crs",
    "PGD step, torchattacks": "torchattacks",
    "PGD step, naive CRS": "naive",
}


def way_of(bench: Bench, kind: str) -> Callable[[], Any]:
    """The function behind a row of the first table."""
    if kind == "train":
        return bench.train
    if kind == "torchattacks":
        return bench.torchattacks_step()
    return bench.naive_step if kind == "naive" else bench.step(kind)


def peak_memory(kind: str, arguments: argparse.Namespace) -> float:
    """Bytes that a step needs beyond model and batch, at its peak, in a process of its own."""
    say(f"memory of {kind}")
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return float(pool.apply(_peak, (kind, arguments)))


def _peak(kind: str, arguments: argparse.Namespace) -> float:
    torch.set_num_threads(arguments.threads)
    surrogate = model(arguments)
    with Bench(surrogate, arguments.batch, arguments.image) as bench:
        way = way_of(bench, kind)
        if surrogate.device.type == "cuda":
            way()
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
            way()
            return torch.cuda.max_memory_allocated() - held
        held = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        way()
        return _status("VmHWM") - held


def _status(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * float(line.split()[1])


def items_of(number: int, size: int, folder: Path, config: ProtectConfig, words: Sequence[str]) -> list[Item]:
    """So many one-question items, their pictures on disk as in real work."""
    from torchvision.transforms.functional import to_pil_image

    from mmguard.types import Sample

    made = []
    for k, image in enumerate(pictures(number, size)):
        path = folder / f"{size}-{k}.png"
        to_pil_image(image).save(path)
        sample = Sample(id=str(k), image=path, question=QUESTION, answer="red", row=k)
        made.append(start(path, [sample], config, words))
    return made


def model(arguments: argparse.Namespace) -> Surrogate:
    """The zoo's model, made to take pictures at full size, or one with random weights at real sizes."""
    if arguments.random:
        return random_surrogate(arguments.random, torch.device(arguments.device))
    surrogate = load_surrogate(arguments.surrogate, arguments.device)
    size = getattr(surrogate.processor.image_processor, "size", None)
    if size is not None and "longest_edge" in size:
        surrogate.processor.image_processor.size = {"shortest_edge": 64 * 64, "longest_edge": 4096 * 4096}
    return surrogate


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def steps(arguments: argparse.Namespace) -> list[str]:
    """First table: single steps."""
    kinds = dict(STEPS)
    try:
        import torchattacks  # noqa: F401 (only whether it is there)
    except ImportError:
        kinds.pop("PGD step, torchattacks")
        print("torchattacks is not installed: its row is left out", file=sys.stderr)
    surrogate = model(arguments)
    with Bench(surrogate, arguments.batch, arguments.image) as bench:
        times = clock({n: way_of(bench, k) for n, k in kinds.items()}, arguments.repeats, surrogate.device)
        minimising = clock({"": bench.error_minimising_round}, 1, surrogate.device)[""]
    memory = {name: peak_memory(kind, arguments) for name, kind in kinds.items()}
    floor, least = next(iter(times.values())), next(iter(memory.values()))
    rows = [
        [name, f"{arguments.batch / times[name]:.1f}", f"{times[name] / floor:.2f}", f"{memory[name] / least:.2f}"]
        for name in kinds
    ]
    ours = times["PGD step, no binding"] * ProtectConfig.pgd_steps + floor
    most = ProtectConfig().inner_steps_for(1_000_000)
    return [
        "## One step",
        "",
        f"Batch of {arguments.batch} pictures of {arguments.image} x {arguments.image} pixels. Peak memory is what a "
        "step needs beyond model and batch.",
        "",
        *table(["", "samples/s", "time ÷ floor", "peak memory ÷ floor"], rows),
        "",
        f"A round of the published error-minimising schedule (one training step, 20 noise steps) costs "
        f"{minimising / floor:.1f} training steps, the paper's (one training step, {ProtectConfig.pgd_steps} noise "
        f"steps) without trigger search {ours / floor:.1f}. Our default trains for up to {most} steps of "
        f"{ProtectConfig.inner_batch_size} samples in a round, however many samples there are.",
        "",
    ]


def searches(arguments: argparse.Namespace) -> list[str]:
    """Second table: the trigger search by number of image tokens and candidates."""
    rows = []
    for size, top_c in [(arguments.search[0], FEW), *((size, MANY) for size in arguments.search)]:
        surrogate = model(arguments)
        with Bench(surrogate, 1, size) as bench:
            ours, naive = bench.search(ProtectConfig(variant="crs", top_c=top_c))
            ours()  # a warm-up; the naive way has 80 forward passes and more to warm up in
            begun = time.perf_counter()
            found = ours()
            between = time.perf_counter()
            same = naive() == found
            seconds, naive_seconds = between - begun, time.perf_counter() - between
            tokens = int(surrogate.encode(bench.examples[:1], bench.protected[:1]).roles.image.sum())
        rows.append(
            [str(tokens), str(top_c), f"{seconds:.2f}", f"{naive_seconds / seconds:.1f}", "yes" if same else "NO"]
        )
    return [
        "## Trigger search",
        "",
        "One sample, five slots, CRS. Both judge every candidate by its exact loss.",
        "",
        *table(["image tokens", "candidates a slot", "seconds", "naive ÷ ours", "same winners"], rows),
        "",
    ]


def whole(arguments: argparse.Namespace) -> list[str]:
    """Third table: whole protection, and its growth."""
    folder, surrogate = arguments.scratch, model(arguments)
    words = surrogate.admissible_tokens().words
    config = ProtectConfig(variant="crs", rounds=1, inner_steps=1, inner_batch_size=2, top_c=MANY)
    some = items_of(arguments.batch, 96, folder, config, words)
    ensemble = Ensemble([surrogate], config)
    with Bench(surrogate, 1, 96) as bench:
        _, naive_search = bench.search(config)

        def naive() -> None:
            bench.train()
            for _ in range(config.pgd_steps):
                bench.naive_step()
            naive_search()

        one = clock({"naive": naive}, 1, surrogate.device)["naive"]
    ours = clock({"ours": lambda: optimise(some, ensemble, config)}, 1, surrogate.device)["ours"] / len(some)
    lines = [
        "## Whole protection",
        "",
        f"One round of the paper's settings on a 96 x 96 picture, CRS: {ours:.2f} s a sample, naive ÷ ours "
        f"{one / ours:.1f}.",
        "",
    ]
    light = replace(config, pgd_steps=2, top_c=4)
    many = items_of(arguments.most, 64, folder, light, words)
    rows = []
    for number in (arguments.most // 10, arguments.most // 4, arguments.most // 2, arguments.most):
        file = DeltaFile(folder / "deltas.int8")
        for item in many[:number]:
            file.append(item.delta)
        chosen = [replace(item, delta=delta) for item, delta in zip(many, file.mapped(), strict=False)]
        held = _status("RssAnon")
        begun = time.perf_counter()
        optimise(chosen, Ensemble([surrogate], light), light)
        spent = time.perf_counter() - begun
        grown = (_status("RssAnon") - held) / 1e6
        rows.append([str(number), f"{1000 * spent / number:.1f}", f"{grown:.0f}"])
    lines += [
        "Growth with the number of pictures (64 x 64, one light round):",
        "",
        *table(["pictures", "milliseconds a sample", "memory grown, MB"], rows),
        "",
    ]
    grown_rows = []
    for label, size, members, question in GROWTH:
        made = [replace(i, samples=[replace(s, question=question) for s in i.samples]) for i in
                items_of(4, size, folder, light, words)]  # fmt: skip
        group = Ensemble([model(arguments) for _ in range(members)], light)
        spent = clock({"": lambda made=made, group=group: optimise(made, group, light)}, 1, surrogate.device)[""]
        grown_rows.append([label, f"{1000 * spent / len(made):.0f}"])
    lines += ["Growth with everything else:", "", *table(["", "milliseconds a sample"], grown_rows), ""]
    return lines


def utilisation(arguments: argparse.Namespace) -> list[str]:
    """Fourth table: how much of what the processor can multiply reaches the PGD step."""
    surrogate = model(arguments)
    device, dtype = surrogate.device, surrogate.model.dtype
    square = torch.randn(SIDE, SIDE, device=device, dtype=dtype)
    product = clock({"": lambda: square @ square}, arguments.repeats, device)[""]
    peak = 2 * SIDE**3 / product
    with Bench(surrogate, arguments.batch, arguments.image) as bench:
        rows = []
        for variant in ("multimodal", "bph", "crs"):
            step = bench.step(variant)
            with FlopCounterMode(display=False) as counter:
                step()
            spent = clock({variant: step}, arguments.repeats, device)[variant]
            operations = counter.get_total_flops()
            rows.append(
                [
                    variant,
                    f"{operations / arguments.batch / 1e9:.1f}",
                    f"{3600 * arguments.batch / spent:,.0f}",
                    f"{100 * operations / spent / peak:.0f} %",
                ]
            )
    return [
        "## Utilisation",
        "",
        f"PGD steps on {arguments.batch} pictures of {arguments.image} x {arguments.image} pixels, in "
        f"{str(dtype).removeprefix('torch.')}; operations as PyTorch counts them, against a product of two "
        f"{SIDE} x {SIDE} matrices on the same device.",
        "",
        *table(["", "GFLOP a picture and step", "picture steps/hour", "of the product's rate"], rows),
        "",
    ]


def alternatives(arguments: argparse.Namespace) -> list[str]:
    """Fifth table: what else could make a step faster; the layers themselves hold the attention tap and stay eager."""
    with ExitStack() as stack:
        ways, firsts = {}, {}
        for name in ("as it is", "torch.compile", "bfloat16"):
            surrogate = load_surrogate(
                arguments.surrogate, arguments.device, torch.bfloat16 if name == "bfloat16" else None
            )
            if name == "torch.compile":
                for module in surrogate.model.modules():
                    if type(module).__name__.endswith(("MLP", "VisionBlock")):
                        module.compile(dynamic=True)
            bench = stack.enter_context(Bench(surrogate, arguments.batch, arguments.image))
            ways[name] = bench.step("crs")
            firsts[name] = seconds_of(ways[name], surrogate.device)
        times = clock(ways, arguments.repeats, surrogate.device)
    base = times["as it is"]
    rows = [[name, f"{times[name] / base:.2f}", f"{firsts[name] / base:.0f}"] for name in ways]
    return [
        "## Alternatives",
        "",
        "A PGD step of CRS. A compiled step has to be compiled anew for most shapes of pictures.",
        "",
        *table(["", "time ÷ as it is", "first step ÷ as it is"], rows),
        "",
    ]


SECTIONS: dict[str, Callable[[argparse.Namespace], list[str]]] = {
    "steps": steps,
    "search": searches,
    "whole": whole,
    "utilisation": utilisation,
    "alternatives": alternatives,
}


def main() -> None:
    """Runs everything and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--surrogate", default="zoo:qwen3vl-tiny")
    parser.add_argument("--random", choices=list(SIZES), default=None, help="random weights at real sizes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--image", type=int, default=96)
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--search", type=int, nargs="+", default=[96, 256, 512], help="picture sizes, trigger search")
    parser.add_argument("--most", type=int, default=1000, help="pictures in the growth table")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--scratch", type=Path, default=Path("out/speed"))
    parser.add_argument("--report", type=Path, default=None, help="write the page here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    lines = [
        "# Performance",
        "",
        f"Written by `python benchmarks/speed.py {shlex.join(sys.argv[1:])}`: "
        f"{arguments.random or arguments.surrogate} on {arguments.device}, {arguments.threads} threads. "
        "Ratios carry over to other machines, seconds do not.",
        "",
    ]
    for name in arguments.only:
        lines += SECTIONS[name](arguments)
    text = "\n".join(lines)
    if arguments.report:
        arguments.report.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
