"""The command line: it parses, calls the Python API of the same names and prints. Heavy imports wait for a command.

Exit codes: 0 done; 1 failed (an error, or `verify` found a problem); 2 wrong usage; 3 done, but some samples or
experiments were left out; a dry run of `protect` exits as the run would.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypedDict, cast

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mmguard.config import (
    RECIPES,
    AuditConfig,
    EngineConfig,
    EngineName,
    ImageFormat,
    Lpips,
    Place,
    ProtectConfig,
    Scope,
    Variant,
    field_help,
)
from mmguard.data import benchmarks
from mmguard.data.sources import json_text
from mmguard.errors import ConfigError, MMGuardError
from mmguard.runtime.quiet import quiet_libraries
from mmguard.screen import files_table, printable, survey_tables, totals

if TYPE_CHECKING:
    from mmguard.config import Recipe
    from mmguard.lvlm.choose import Choice
    from mmguard.release.writer import Release

app = typer.Typer(
    help="Protect image-text data from being used to fine-tune vision-language models, and measure what that is worth.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# Without emoji: rich reads one in `easy-vqa:train:what`.
_out, _err = Console(emoji=False), Console(stderr=True, emoji=False)

_PROTECT, _AUDIT, _ENGINE = map(field_help, (ProtectConfig, AuditConfig, EngineConfig))
_DATASET = (
    "A folder or file of a known format (an image folder, conversations as JSON, COCO captions, a table, Parquet, "
    "WebDataset, pictures with or without captions), the URL of one, a hub dataset OWNER/NAME[:CONFIG], a benchmark "
    f"({', '.join(benchmarks.NAMES)}), easy-vqa[:train|test][:what|yes-no][:N], "
    "or a laboratory task drawings:DOMAIN[:train|test][:N]."
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
# typer takes no list of literals.
Recipes = Annotated[list[str], typer.Option(help=f"{_AUDIT['recipes']} {', '.join(RECIPES)}. Repeatable.")]
Attacks = Annotated[
    list[str] | None,
    typer.Option("--attack", help=f"{_AUDIT['attacks']} Repeatable."),
]
Device = Annotated[str, typer.Option(help="Where models run: auto, cpu, cuda, cuda:1…")]
Jobs = Annotated[
    int | None,
    typer.Option(min=1, help="Fine-tuning runs at a time; if not given, one a core on a CPU and one a GPU."),
]
Split = Annotated[str | None, typer.Option(help="Use only the rows of this split.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Use only the first so many images.")]


def _go_offline(wanted: bool) -> None:
    """Before the libraries of Hugging Face are imported, which read this once; runs started from here inherit it."""
    if wanted:
        os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"


Offline = Annotated[
    bool,
    typer.Option("--offline", callback=_go_offline, help="Use no network: what is not on this machine is not there."),
]


def _version(wanted: bool) -> None:
    if wanted:
        from mmguard import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def protect(
    dataset: Annotated[str, typer.Argument(help=_DATASET)],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            help="Folder of the release; the private record goes to OUT.record. With --preview, of the page.",
        ),
    ] = None,
    surrogate: Annotated[
        list[str],
        typer.Option(help="Model to optimise against: a hub id, a folder, zoo:NAME or auto. Repeat for an ensemble."),
    ] = ["auto"],  # noqa: B006 (typer reads the default and never changes it)
    variant: Annotated[Variant, typer.Option(help=_PROTECT["variant"])] = ProtectConfig.variant,
    eps: Annotated[int, typer.Option(help=_PROTECT["eps"])] = ProtectConfig.eps,
    trigger_words: Annotated[int, typer.Option(help=_PROTECT["trigger_words"])] = ProtectConfig.trigger_words,
    trigger_place: Annotated[Place, typer.Option(help=_PROTECT["trigger_place"])] = ProtectConfig.trigger_place,
    trigger_scope: Annotated[Scope, typer.Option(help=_PROTECT["trigger_scope"])] = ProtectConfig.trigger_scope,
    fluency: Annotated[str | None, typer.Option(help=_PROTECT["fluency"])] = None,
    fluency_top_k: Annotated[int, typer.Option(help=_PROTECT["fluency_top_k"])] = ProtectConfig.fluency_top_k,
    rounds: Annotated[int, typer.Option(help=_PROTECT["rounds"])] = ProtectConfig.rounds,
    inner_steps: Annotated[int | None, typer.Option(help=_PROTECT["inner_steps"])] = ProtectConfig.inner_steps,
    pgd_steps: Annotated[int, typer.Option(help=_PROTECT["pgd_steps"])] = ProtectConfig.pgd_steps,
    top_c: Annotated[int, typer.Option(help=_PROTECT["top_c"])] = ProtectConfig.top_c,
    lambda_bind: Annotated[float, typer.Option(help=_PROTECT["lambda_bind"])] = ProtectConfig.lambda_bind,
    inner_lr: Annotated[float | None, typer.Option(help=_PROTECT["inner_lr"])] = ProtectConfig.inner_lr,
    inner_batch_size: Annotated[int, typer.Option(help=_PROTECT["inner_batch_size"])] = ProtectConfig.inner_batch_size,
    batch_size: Annotated[int, typer.Option(help=_PROTECT["batch_size"])] = ProtectConfig.batch_size,
    max_pixels: Annotated[int, typer.Option(help=_PROTECT["max_pixels"])] = ProtectConfig.max_pixels,
    format: Annotated[ImageFormat, typer.Option(help=_PROTECT["format"])] = ProtectConfig.format,
    declare_no_training: Annotated[
        bool, typer.Option("--declare-no-training", help=_PROTECT["declare_no_training"])
    ] = ProtectConfig.declare_no_training,
    split: Split = None,
    limit: Limit = None,
    seed: Annotated[int, typer.Option(help=_PROTECT["seed"])] = ProtectConfig.seed,
    device: Device = "auto",
    engine: Annotated[EngineName, typer.Option(help=_ENGINE["engine"])] = EngineConfig.engine,
    workers: Annotated[int, typer.Option(help=_ENGINE["workers"])] = EngineConfig.workers,
    gpus_per_worker: Annotated[float | None, typer.Option(help=_ENGINE["gpus_per_worker"])] = None,
    address: Annotated[str | None, typer.Option(help=_ENGINE["address"])] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what would be done and what it would take, and write nothing."),
    ] = False,
    preview: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Only show the first N samples, before and after, on a page in OUT or a temporary folder.",
        ),
    ] = None,
    log: Annotated[Path | None, typer.Option(help="Append what is done, and when, to this file.")] = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Write a protected copy of DATASET to the folder OUT. The originals are never modified."""
    _require_one_thing(dry_run, preview, out, log, engine)
    with _reporting(as_json):
        config = ProtectConfig(
            variant=variant, eps=eps, trigger_words=trigger_words, trigger_place=trigger_place,
            trigger_scope=trigger_scope, fluency=fluency, fluency_top_k=fluency_top_k, rounds=rounds,
            inner_steps=inner_steps, pgd_steps=pgd_steps, top_c=top_c, lambda_bind=lambda_bind, inner_lr=inner_lr,
            inner_batch_size=inner_batch_size, batch_size=batch_size, max_pixels=max_pixels, format=format,
            declare_no_training=declare_no_training, seed=seed,
        )  # fmt: skip
        crew = EngineConfig(engine, workers, gpus_per_worker, address)
        from mmguard.protection.prepare import chosen

        names = chosen(surrogate, config, device, _tell_choice)
        options: _Options = {"split": split, "limit": limit, "device": device, "show_progress": not as_json}
        if dry_run:
            left_out = _survey(dataset, names, config, out, options, as_json)
        elif preview is not None:
            left_out = _preview(dataset, names, config, out, preview, options, as_json)
        else:
            assert out is not None
            left_out = _protect(dataset, names, config, crew, out, log, options, as_json)
        if left_out:
            raise typer.Exit(3)


@app.command()
def verify(
    release: Annotated[Path, typer.Argument(help="Folder written by `mmguard protect`.")],
    original: Annotated[str, typer.Option(help=f"What was protected. {_DATASET}")],
    eps: Annotated[int | None, typer.Option(help="Image budget; from the record if not given.")] = None,
    trigger_words: Annotated[int | None, typer.Option(help="Text budget; from the record if not given.")] = None,
    split: Split = None,
    limit: Limit = None,
    record: Annotated[
        Path | None, typer.Option(help="Private folder of the release; the one beside it if not given.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Re-read a release from disk and check it against the original: budgets, sizes, texts, ids."""
    with _reporting(as_json):
        from mmguard.release.verify import verify as run

        result = run(
            release, original, eps=eps, trigger_words=trigger_words, split=split, limit=limit, record=record,
            show_progress=not as_json,
        )  # fmt: skip
        if as_json:
            _print_json(result.to_dict())
        else:
            for problem in result.problems:
                _out.print(f"[red]problem[/] {escape(printable(problem))}", highlight=False)
            for note in result.notes:
                _out.print(f"[yellow]note[/] {escape(printable(note))}", highlight=False)
            state = "[green]verified[/]" if result.ok else "[red]not what it should be[/]"
            _out.print(
                f"{release}: {state}. {result.images} images, {result.samples} samples, largest change "
                f"{result.max_eps}/255, at most {result.max_words} inserted words, {len(result.left_out)} left out.",
                highlight=False,
            )
        if not result.ok:
            raise typer.Exit(1)


@app.command()
def publish(
    release: Annotated[Path, typer.Argument(help="Folder written by `mmguard protect`; never its record.")],
    to: Annotated[
        str,
        typer.Argument(
            metavar="TO", help="Dataset of the Hugging Face hub, OWNER/NAME, or the URL of a folder (s3://, gs://…)."
        ),
    ],
    private: Annotated[bool, typer.Option("--private", help="Only where none but its owner sees it.")] = False,
    as_json: Json = False,
) -> None:
    """Upload a release to the Hugging Face hub or another store, and nothing of its record."""
    with _reporting(as_json):
        from mmguard.release.publish import publish as run

        url = run(release, to, private)
        if as_json:
            _print_json({"url": url})
        else:
            _out.print(f"Published: {url}", highlight=False, markup=False)


@app.command()
def audit(
    release: Annotated[Path, typer.Argument(help="Folder that would be published; only its files are read.")],
    original: Annotated[str, typer.Option(help=f"What was protected: for the clean arm and the controls. {_DATASET}")],
    test: Annotated[str, typer.Option(help=f"Clean test set with other images. {_DATASET}")],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder of the report; finished runs in it are not run again.")
    ],
    attacker: Annotated[
        list[str] | None,
        typer.Option(
            help="Model that a thief fine-tunes: hub id, folder or zoo:NAME. Repeatable; "
            "the measured ones of the zoo if not given."
        ),
    ] = None,
    recipe: Recipes = ["lora"],  # noqa: B006 (typer never changes it)
    attack: Attacks = None,
    seeds: Annotated[int, typer.Option(help=_AUDIT["seeds"])] = AuditConfig.seeds,
    epochs: Annotated[float | None, typer.Option(help=_AUDIT["epochs"])] = AuditConfig.epochs,
    lr: Annotated[float | None, typer.Option(help=_AUDIT["lr"])] = AuditConfig.lr,
    split: Split = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Train on the first so many released images alone.")] = None,
    test_split: Annotated[str | None, typer.Option(help="Use only the test rows of this split.")] = None,
    test_limit: Annotated[int | None, typer.Option(min=1, help="Use only the first so many test images.")] = None,
    max_pixels: Annotated[int, typer.Option(help=_AUDIT["max_pixels"])] = AuditConfig.max_pixels,
    seed: Annotated[int, typer.Option(help=_AUDIT["seed"])] = AuditConfig.seed,
    jobs: Jobs = None,
    device: Device = "auto",
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Fine-tune attackers on a release, on clean data and on controls, and report what the protection is worth."""
    with _reporting(as_json):
        from mmguard.auditing.run import audit as run

        config = AuditConfig(
            recipes=tuple(cast("list[Recipe]", recipe)), attacks=tuple(attack or ()), seeds=seeds, epochs=epochs,
            lr=lr, max_pixels=max_pixels, seed=seed,
        )  # fmt: skip
        report = run(
            release, original, test, attackers=attacker, config=config, out=out, device=device, split=split,
            limit=limit, test_split=test_split, test_limit=test_limit, progress=not as_json, jobs=jobs,
        )  # fmt: skip
        if as_json:
            _print_json(report.to_dict())
        else:
            from rich.markdown import Markdown

            _out.print(Markdown(report.to_markdown(provenance=False)))
            _out.print(f"Report: {out / 'report.html'}, {out / 'report.md'}, {out / 'report.json'}", highlight=False)


@app.command()
def trace(
    release: Annotated[Path, typer.Argument(help="Folder that would be published; only its files are read.")],
    original: Annotated[str, typer.Option(help=f"What was protected. {_DATASET}")],
    surrogate: Annotated[str, typer.Option(help="Model whose attention is followed: a hub id, a folder or zoo:NAME.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for trace.html, trace.json and figures.")],
    split: Split = None,
    limit: Annotated[int, typer.Option(min=1, help="One question of each of the first so many images.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of controls and bootstrap.")] = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Show where a model's attention goes on a release, against the original and against random changes."""
    with _reporting(as_json):
        from mmguard.trace.masses import trace as run
        from mmguard.trace.page import to_dict, verdict, write

        found = run(
            release, original, surrogate, split=split, limit=limit, seed=seed, device=device, show_progress=not as_json
        )
        write(found, out)
        if as_json:
            _print_json(to_dict(found))
        else:
            _out.print(f"{verdict(found)}\nPage: {out / 'trace.html'}", highlight=False, markup=False)


@app.command()
def stealth(
    release: Annotated[Path, typer.Argument(help="Folder that would be published; only its files are read.")],
    original: Annotated[str, typer.Option(help=f"What was protected. {_DATASET}")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder for stealth.md and stealth.json.")] = None,
    lm: Annotated[
        str | None,
        typer.Option(help="Causal language model for perplexities: hub id, folder or GGUF file; GPT-2 if at hand."),
    ] = None,
    lpips: Annotated[
        Lpips, typer.Option(help="Network of LPIPS: alex or vgg are fetched if need be, auto takes what is at hand.")
    ] = "auto",
    judge_sheet: Annotated[Path | None, typer.Option(help="Write blind questions for judges to this file.")] = None,
    judge: Annotated[
        str | None,
        typer.Option(help="Send them, images included, to this OpenAI-compatible API; its key: MMGUARD_JUDGE_KEY."),
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="Name of the model that judges there.")] = None,
    judge_replies: Annotated[Path | None, typer.Option(help="Score the replies in this file instead.")] = None,
    judge_pairs: Annotated[int, typer.Option(help="Ask about so many pairs, each of another image.")] = 50,
    split: Split = None,
    limit: Limit = None,
    seed: Annotated[int, typer.Option(help="Seed of controls, bootstrap and judges' questions.")] = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure how visible a protection is, beside random changes of the same size, and have it judged."""
    with _reporting(as_json):
        from mmguard.auditing.stealth import stealth as run
        from mmguard.auditing.stealth_judge import JudgeConfig

        report = run(
            release, original, lpips=lpips, lm=lm, out=out, split=split, limit=limit, seed=seed,
            judging=JudgeConfig(judge_sheet, judge, judge_model, judge_replies, judge_pairs),
            device=device, show_progress=not as_json,
        )  # fmt: skip
        if as_json:
            _print_json(report.to_dict())
        else:
            from rich.markdown import Markdown

            _out.print(Markdown(report.to_markdown()))


@app.command()
def bench(
    config: Annotated[Path, typer.Option(help="YAML file with defaults and experiments; see configs/.")],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Folder of releases, runs and results; out/NAME for NAME.yaml if not given."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Fine-tuning runs of every arm, whatever the file says.")
    ] = None,
    jobs: Jobs = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is there and what would be made.")] = False,
    taken_from: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            help="Take experiments of the same settings, and runs on the same data, from this results.jsonl, whatever "
            "machine wrote it; repeatable.",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Write the page of results to this Markdown file, too, and .json and .jsonl beside it."),
    ] = None,
    device: Device = "auto",
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Make the releases and audits that a file describes, and tables of them; what is there is not made again."""
    with _reporting(as_json):
        from mmguard.bench.config import load_bench
        from mmguard.bench.page import means
        from mmguard.bench.results import read_lines
        from mmguard.bench.run import run_bench, survey, write

        matrix = load_bench(config, seeds)
        folder = out if out is not None else Path("out") / config.stem
        lines = [line for path in taken_from or () for line in read_lines(path)]
        if dry_run:
            states = list(survey(matrix, folder, device, lines))
            if as_json:
                _print_json([vars(state) for state in states])
            else:
                for state in states:
                    _out.print(str(state), highlight=False, markup=False)
            return
        results = run_bench(
            matrix, folder, lines=lines, jobs=jobs, device=device, progress=not as_json,
            say=lambda text: _err.print(text, highlight=False, markup=False),
        )  # fmt: skip
        if report is not None:
            write(results, report)
        if as_json:
            _print_json(results.to_dict())
        else:
            from rich.markdown import Markdown

            _out.print(Markdown(means(results)))
            _out.print(
                f"Results: {folder / 'results.html'}, {folder / 'results.md'}, {folder / 'results.json'}",
                highlight=False,
            )
        if not results.complete:
            raise typer.Exit(3)


@app.command()
def surrogates(as_json: Json = False) -> None:
    """List the models that come with mmguard, and what --surrogate auto would choose here."""
    with _reporting(as_json):
        from mmguard import zoo

        models = [zoo.info(name) for name in zoo.NAMES]
        if as_json:
            _print_json(
                [
                    {
                        "name": f"zoo:{m.name}",
                        "family": m.family,
                        "parameters": m.parameters,
                        "path": str(m.path),
                    }
                    for m in models
                ]
            )
            return
        table = Table("name", "family", "parameters", "folder")
        for m in models:
            table.add_row(f"zoo:{m.name}", m.family, f"{m.parameters:,}", str(m.path))
        _out.print(table)
        from mmguard.lvlm.choose import choose_surrogate

        choice = choose_surrogate()
        _out.print(f"--surrogate auto is {choice.name} here: {choice.reason}", highlight=False)


@app.command()
def cache(
    clear: Annotated[
        bool, typer.Option("--clear", help="Remove it all; what is needed again is copied or unpacked again.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show which unprotected copies of datasets mmguard keeps on this machine, and remove them."""
    with _reporting(as_json):
        from mmguard.data import cache as kept

        found = kept.sizes()
        if clear:
            kept.clear()
        if as_json:
            _print_json({"folder": str(kept.root()), "bytes": found, "removed": clear})
            return
        said = ", ".join(f"{name} {size / 1e6:,.1f} MB" for name, size in found.items()) or "nothing"
        _out.print(
            f"{kept.root()}: {'removed' if clear else 'holds'} {said}.", highlight=False, markup=False, soft_wrap=True
        )


@app.command()
def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for release, record and report.")] = Path(
        "mmguard-demo"
    ),
    as_json: Json = False,
) -> None:
    """Protect 300 pictures, play the thief, and show the result: no arguments, no network, minutes on two cores."""
    with _reporting(as_json):
        from mmguard.demo import run_demo

        report = run_demo(out, show_progress=not as_json)
        if as_json:
            _print_json(report.to_dict())
            return
        from rich.markdown import Markdown

        _out.print(Markdown(report.to_markdown(provenance=False)))
        _out.print(
            f"\nLook at {out / 'release'} (may be published), {out / 'release.record'} (must not), "
            f"{out / 'report' / 'report.html'}, and {out / 'before-after.png'}.\n"
            "Your own data: mmguard protect FOLDER -o RELEASE, then mmguard verify and mmguard audit.",
            highlight=False,
        )


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on this computer; 0 for any.")] = 7860,
    surrogate: Annotated[
        str, typer.Option(help="Model to protect against: a hub id, a folder or zoo:NAME.")
    ] = "zoo:qwen3vl-tiny",
    attacker: Annotated[
        list[str] | None, typer.Option(help="Model for tests. Repeatable; the measured ones of the zoo if not given.")
    ] = None,
    device: Device = "auto",
    open_browser: Annotated[bool, typer.Option("--open", help="Show the page in the browser.")] = False,
) -> None:
    """Serve a web page, on this computer only, that protects and audits. Needs `pip install 'mmguard[ui]'`."""
    with _reporting(as_json=False):
        from mmguard.ui.serve import require_gradio, serve

        require_gradio()
        from mmguard.ui.jobs import Models

        serve(
            Models(surrogate, tuple(attacker or ()), device), port, open_browser,
            lambda address: _out.print(f"{address}  (this computer only; Ctrl-C ends it)", highlight=False),
        )  # fmt: skip


class _Options(TypedDict):
    """What `protect`, its dry run and its preview take alike."""

    split: str | None
    limit: int | None
    device: str
    show_progress: bool


def _require_one_thing(dry_run: bool, preview: int | None, out: Path | None, log: Path | None, engine: str) -> None:
    if dry_run and preview is not None:
        raise typer.BadParameter("--dry-run and --preview exclude each other: give one")
    if log is not None and (dry_run or preview is not None):
        raise typer.BadParameter("--log is for protections: leave it out with --dry-run and --preview")
    if engine != "local" and (dry_run or preview is not None):
        raise typer.BadParameter("--engine is for protections: leave it out with --dry-run and --preview")
    if out is None and not dry_run and preview is None:
        raise typer.BadParameter("give the folder of the release: --out OUT (or --dry-run, or --preview N)")


def _protect(
    dataset: str,
    names: list[str],
    config: ProtectConfig,
    engine: EngineConfig,
    out: Path,
    log: Path | None,
    options: _Options,
    as_json: bool,
) -> bool:
    """Protects and says what came of it; whether something was left out."""
    from mmguard import __version__
    from mmguard.protection.run import protect as run
    from mmguard.runtime.log import logging_to

    _require_log_apart(log, out, dataset)
    with logging_to(log) as lines:
        lines.info("mmguard %s protects %s to %s with %s: %s, %s", __version__, dataset, out, names, config, options)
        release = run(dataset, names, config, out, engine=engine, **options)
        for failure in release.failed:
            lines.warning("left out: %s: %s", printable(failure.where), printable(failure.reason))
        lines.info("done: %d images, %d samples, %d left out", release.images, release.samples, len(release.failed))
    if as_json:
        _print_json(_release_dict(release))
    else:
        _print_release(release)
    return bool(release.failed)


def _require_log_apart(log: Path | None, out: Path, dataset: str) -> None:
    """A log is none of the originals, none of what is published, and does not make the release's folder first."""
    if log is None:
        return
    from mmguard.release.layout import record_folder

    file, release = log.resolve(), out.resolve()
    for folder in (release, record_folder(release), Path(dataset).resolve()):
        if folder in (file, *file.parents):
            raise ConfigError(f"log {log}: lies in {folder}: choose a file beside it")


def _survey(
    dataset: str, names: list[str], config: ProtectConfig, out: Path | None, options: _Options, as_json: bool
) -> bool:
    """Says what a protection would do; whether something would be left out."""
    from mmguard.protection.survey import survey

    found = survey(dataset, names, config, out, **options)
    if as_json:
        _print_json(found.to_dict())
    else:
        for table in survey_tables(found):
            _out.print(table)
        _out.print(f"Dry run: nothing was written. {found.cost.method}", highlight=False, markup=False)
    return bool(found.left_out)


def _preview(
    dataset: str,
    names: list[str],
    config: ProtectConfig,
    out: Path | None,
    samples: int,
    options: _Options,
    as_json: bool,
) -> bool:
    """Writes a page with the first samples; whether something of them was left out."""
    from mmguard.protection.preview import preview

    made = preview(dataset, names, config, out, samples=samples, **options)
    if as_json:
        failed = [{"where": f.where, "reason": f.reason} for f in made.failed]
        _print_json({"preview": str(made.page), "images": made.images, "samples": made.samples, "failed": failed})
    else:
        for failure in made.failed:
            _err.print(f"left out: {printable(f'{failure.where}: {failure.reason}')}", highlight=False, markup=False)
        _out.print(
            f"Preview: {made.page} ({made.images} images, {made.samples} samples)\n"
            "It is no release, and private: it shows originals and words.",
            highlight=False, markup=False, soft_wrap=True,
        )  # fmt: skip
    return bool(made.failed)


def _tell_choice(choice: Choice) -> None:
    _err.print(f"Surrogate: {choice.name}, since {choice.reason}", highlight=False)


def _release_dict(release: Release) -> dict[str, Any]:
    return {
        "release": str(release.path),
        "record": str(release.record),
        "images": release.images,
        "samples": release.samples,
        "surrogates": release.surrogates,
        "failed": [{"where": f.where, "reason": f.reason} for f in release.failed],
        "files": totals(release.files),
        "captions": release.captions,
        "pictures": release.pictures,
        "own_card": str(release.own_card) if release.own_card else None,
        "configurations": release.configurations,
    }


def _print_release(release: Release) -> None:
    # Paths stay in one piece, to be copied.
    say = partial(_out.print, highlight=False, markup=False, soft_wrap=True)
    _out.print(files_table(release.files))
    say(f"Release: {release.path} ({release.images} images, {release.samples} samples, {len(release.failed)} left out)")
    pictures = release.pictures
    formats = ", ".join(f"{count} {name}" for name, count in pictures["formats"].items())
    size, before = (f"{pictures[key] / 1e6:,.1f}" for key in ("bytes", "original_bytes"))
    say(f"Files:   {formats}, {size} MB (originals {before} MB)")
    for note, count in pictures["notes"].items():
        say(f"         {count} {'picture' if count == 1 else 'pictures'}: {note}")
    if release.surrogates:
        ours = any(name.startswith("zoo:") for name in release.surrogates)
        caution = ": models to try the method with, no protection against large ones" if ours else ""
        say(f"Against: {', '.join(release.surrogates)}{caution}")
    if release.own_card:
        say(f"Card:    {release.path / release.own_card.name} is new: copy from yours what readers need")
        if len(release.configurations) > 1:
            say(
                f"         Yours lists the configurations {', '.join(release.configurations)}: in the release they are "
                "one dataset. To keep them apart, protect the folder of each by itself"
            )
    if release.captions:
        example = next(iter(release.captions.values()))
        say(
            f"Texts:   {len(release.captions)} pictures came without; protected against the surrogate's own captions, "
            f"which are in the record (the first: {example})"
        )
    if release.config.inserts_triggers and not any(file.words for file in release.files):
        say(
            "Words:   none, since there are no questions to put them into: pictures alone carry the protection, "
            "which is the weak case"
        )
    warning = "never publish this folder: it tells a thief how to undo the protection"
    say(Text.assemble(f"Record:  {release.record}  ", (warning, "bold")))
    say(f"Table:   {release.record / 'files.csv'} says what became of each")


def _print_json(value: Any) -> None:
    typer.echo(json_text(value))


@contextmanager
def _reporting(as_json: bool) -> Iterator[None]:
    """Turns the errors that mmguard raises on purpose into one line and exit code 1; others keep their traceback."""
    quiet_libraries()
    try:
        yield
    except MMGuardError as error:
        _fail(error, as_json)
    except KeyboardInterrupt:
        _err.print("interrupted", highlight=False)
        raise typer.Exit(130) from None


def _fail(error: MMGuardError, as_json: bool) -> NoReturn:
    if as_json:
        _print_json({"error": type(error).__name__, "message": str(error)})
    message = "\n".join(printable(line) for line in str(error).split("\n"))
    _err.print(f"[red]error:[/] {escape(message)}", highlight=False)
    raise typer.Exit(1) from error


def main() -> None:
    """Entry point of the `mmguard` command."""
    sys.exit(app())


if __name__ == "__main__":
    main()
