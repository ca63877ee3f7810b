"""The command line: parse, load the config, call one function. Heavy imports wait inside the commands."""

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from medgen import __version__
from medgen.errors import BoundError, InputError

app = typer.Typer(
    name="medgen",
    help="From a cohort of 3D medical images to a vetted synthetic dataset of image and label pairs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
train_app = typer.Typer(no_args_is_help=True, help="Train one network of an experiment.")
model_app = typer.Typer(no_args_is_help=True, help="Look at a model folder, or make one of published weights.")
app.add_typer(train_app, name="train")
app.add_typer(model_app, name="model")

_INTERRUPTED = 130
# What the file system refuses and a user can mend: a file where a folder is wanted, no rights, a full disk or quota.
_USERS_ERRORS = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS}
_USERS_ERRORS |= {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

ConfigFile = Annotated[Path, typer.Argument(help="Experiment file (YAML).")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override the config, for example generate.n=32.")
]
Force = Annotated[bool, typer.Option("--force", help="Go on with a codec below its thresholds (autoencoder.accept).")]
RunFolder = Annotated[Path | None, typer.Option("--out", help="Run folder, runs/NAME by default.")]


def main() -> None:
    """Entry point: 2 and one sentence for what a user can mend, 3 for a missed bound, 130 for an interrupt."""
    try:
        code = app(standalone_mode=False)
    except BoundError as error:
        _stop(str(error), 3)
    except InputError as error:
        _stop(str(error), 2)
    except OSError as error:
        if error.errno not in _USERS_ERRORS:
            raise
        _stop(f"{error.filename or 'the output folder'}: {error.strerror}; mend that and run the same command again", 2)
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except Exception as error:
        # A word of the command line that is wrong. The class has moved between versions of typer, so ask what it can.
        say = getattr(error, "format_message", None)
        if say is None:
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            getattr(error, "show")()  # noqa: B009 (mypy does not know the class)
            sys.exit(2)
        _stop(f"{' '.join(say().split()).rstrip('.')}; see medgen --help", 2)
    if code == _INTERRUPTED:  # typer turns an interrupt into this code before it comes here
        _stop("stopped; run the same command again to go on", _INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


def _stop(sentence: str, code: int) -> NoReturn:
    print(f"medgen: {sentence}", file=sys.stderr)
    sys.exit(code)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        print(f"medgen {__version__}")
        raise typer.Exit


@app.command(epilog="Example: `medgen demo demo`")
def demo(
    out: Annotated[Path, typer.Argument(help="Run folder to write.")] = Path("demo"),
    overrides: Overrides = None,
    force: Force = False,
) -> None:
    """The whole way on the embedded phantom cohort: phantoms, training, at least 16 synthetic pairs, figures."""
    packaged = Path(__file__).with_name("phantom.yaml")  # the wheel carries it; a checkout has it in configs/
    config = packaged if packaged.exists() else Path(__file__).parents[1] / "configs" / "phantom.yaml"
    _experiment(config, overrides, out, None, force)


@app.command(epilog="Example: `medgen run configs/oasis.yaml --set data.root=$DATA/oasis`")
def run(
    config: ConfigFile,
    overrides: Overrides = None,
    until: Annotated[str | None, typer.Option(help="Last stage to run.")] = None,
    folds: Annotated[
        str | None,
        typer.Option(
            metavar="K|FILE",
            help="A model for each fold, which has seen none of the fold's validation cases: how many folds, or a "
            "splits_final.json (data.folds).",
        ),
    ] = None,
    out: RunFolder = None,
    force: Force = False,
) -> None:
    """Run all stages of an experiment; what is done and unchanged is skipped, what was killed goes on.

    Exit code 3 where a figure misses a bound of the config: the codec's (the run stops before anything is trained on
    its latents) or the report's (the run is complete).
    """
    said = [f"data.folds={folds}"] if folds is not None else []
    _experiment(config, [*(overrides or ()), *said], out, until, force)


def _experiment(
    config: Path, overrides: list[str] | None, out: Path | None, until: str | None, force: bool = False
) -> None:
    from medgen import pipeline
    from medgen.config import load
    from medgen.progress import Display
    from medgen.summary import folds_summary, summary
    from medgen.training.distributed import leave

    experiment = load(config, tuple(overrides or ()))
    folder = out or experiment.runs / experiment.name
    with Display() as display:
        report = pipeline.run_experiment(experiment, folder=folder, until=until, force=force, on_progress=display)
    leave()
    if int(os.environ.get("RANK", "0")):
        return  # under torchrun the first process speaks
    if not report:
        print(f"done until {until}: {folder}")
        return
    told = folds_summary if "folds" in report else summary
    print(told(folder, report, experiment.report.volume))
    if report["failures"]:
        raise typer.Exit(3)


@train_app.command("autoencoder", epilog="Example: `medgen train autoencoder configs/phantom.yaml`")
def train_autoencoder(config: ConfigFile, overrides: Overrides = None, out: RunFolder = None) -> None:
    """Train the codec (and prepare the cohort where that is not done) and measure it; resumes after a kill."""
    _experiment(config, overrides, out, "quality")


@app.command(epilog="Example: `medgen encode configs/phantom.yaml`")
def encode(config: ConfigFile, overrides: Overrides = None, out: RunFolder = None, force: Force = False) -> None:
    """Encode the cohort into latents, training the codec first where that is not done."""
    _experiment(config, overrides, out, "latents", force)


@train_app.command("diffusion", epilog="Example: `medgen train diffusion configs/phantom.yaml`")
def train_diffusion(
    config: ConfigFile, overrides: Overrides = None, out: RunFolder = None, force: Force = False
) -> None:
    """Train the diffusion model and write the model folder; resumes after a kill."""
    _experiment(config, overrides, out, "model", force)


@app.command(epilog="Example: `medgen evaluate configs/phantom.yaml`")
def evaluate(config: ConfigFile, overrides: Overrides = None, out: RunFolder = None, force: Force = False) -> None:
    """Measure an experiment's codec and samples; stages that are missing run first."""
    _experiment(config, overrides, out, "report", force)


@app.command(epilog="Example: `medgen utility configs/hippocampus.yaml --set data.root=$DATA/hippocampus --sizes 5,20`")
def utility(
    config: ConfigFile,
    overrides: Overrides = None,
    out: RunFolder = None,
    sizes: Annotated[
        str | None, typer.Option(metavar="N,N,all", help="Numbers of labelled cases, in place of utility.sizes.")
    ] = None,
    arms: Annotated[
        str | None, typer.Option(metavar="ARM,ARM", help="In place of utility.arms, such as classical,synthetic.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Trainings of each arm, in place of utility.seeds.")] = None,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the summary there.")] = None,
) -> None:
    """Measure what synthetic pairs are worth: the same segmenter with and without them, on held-out real cases.

    A generator is trained for each number of labelled cases and sees no other label, and no held-out case. The primary
    comparison is the one that the config names, whatever is asked for here. Arms that are done are not trained again;
    a killed evaluation goes on with the same command. Exit code 3 where a generator failed and the rest is measured.
    """
    from medgen import pipeline
    from medgen.config import load
    from medgen.evaluation.utility.table import print_table
    from medgen.files import write_json
    from medgen.progress import Display

    said = list(overrides or ())
    experiment = load(config, tuple(said))
    narrowed = [f"utility.{key}=[{words}]" for key, words in (("sizes", sizes), ("arms", arms)) if words is not None]
    narrowed += [f"utility.seeds={seeds}"] if seeds is not None else []
    if narrowed:
        # Which comparison decides was fixed before anything was left out.
        primary = experiment.utility.primary.size or experiment.utility.sizes[0]
        experiment = load(config, (*said, f"utility.primary.size={primary}", *narrowed))
    folder = out or experiment.runs / experiment.name
    if experiment.utility.seeds < 3:
        print(f"warning: {experiment.utility.seeds} seeds are few; 3 tell how much trainings differ", file=sys.stderr)
    with Display() as display:
        found = pipeline.run_utility(experiment, folder=folder, on_progress=display)
    if json is not None:
        write_json(json, found)
    print_table(found)
    print(f"{folder / 'utility' / 'utility.md'}, learning curves in {folder / 'utility' / 'learning_curves.png'}")
    if found["failures"]:
        raise typer.Exit(3)


@app.command(epilog="Example: `medgen phantom phantoms --n 64 --spacing 3`")
def phantom(
    out: Annotated[Path, typer.Argument(help="Folder of the BIDS dataset to write.")],
    n: Annotated[int, typer.Option(min=1, help="Number of cases.")] = 64,
    spacing: Annotated[float, typer.Option(min=1, max=8, help="Voxel size in mm.")] = 3.0,
    seed: Annotated[int, typer.Option(help="Seed of the cohort.")] = 0,
    missing: Annotated[float, typer.Option(min=0, max=0.99, help="Share of covariate cells left n/a.")] = 0.0,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes, all cores by default.")] = None,
) -> None:
    """Write the embedded cohort: phantoms with known age, sex and ventricle volume, as a BIDS dataset."""
    from medgen.cohort.phantom import write_phantom
    from medgen.progress import Display

    with Display() as display:
        write_phantom(
            out,
            n=n,
            spacing_mm=spacing,
            seed=seed,
            workers=workers,
            missing=missing,
            on_progress=lambda done, total: display("phantom", done, total, "cases"),
        )
    print(f"{n} phantoms in {out}")


@app.command(epilog="Example: `medgen prepare my_bids_folder --out prepared`")
def prepare(
    path: Annotated[Path, typer.Argument(help="A cohort (folder or table) or an experiment file.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the prepared store.")],
    spacing: Annotated[float | None, typer.Option(min=0.01, help="Voxel size in mm, the cohort's by default.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes.")] = None,
    overrides: Overrides = None,
) -> None:
    """Orient, resample, normalise and crop a cohort into arrays, with the way back recorded; resumes after a kill."""
    from medgen import config as configs
    from medgen.progress import Display
    from medgen.stages.ancestor import with_ancestor
    from medgen.stages.check import check
    from medgen.stages.data import prepare_into
    from medgen.stages.run import Run

    sets = (*([f"prepare.spacing_mm={spacing}"] if spacing else []), *(overrides or ()))
    if path.suffix in (".yaml", ".yml"):
        experiment = configs.load(path, sets)
        if experiment.data.root is None:
            raise InputError(f"{path} names no data.root; for the phantom use: medgen run {path} --until prepared")
    else:
        raw: dict[str, Any] = {"name": "prepare", "data": {"root": str(path)}, "prepare": {}}
        experiment = configs.build(raw, str(path), sets)
    with Display() as display:
        run = Run(with_ancestor(experiment), out, display)
        check(run)
        store = prepare_into(run, out, workers)
    shape, mm = " x ".join(map(str, store.shape)), " x ".join(f"{s:g}" for s in store.spacing_mm)
    print(f"{len(store.cases)} cases of {shape} voxels at {mm} mm in {out}")


@app.command(epilog="Example: `medgen doctor my_bids_folder`")
def doctor(
    path: Annotated[Path, typer.Argument(help="A cohort (folder or table), an experiment file or a model folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")] = False,
    measure: Annotated[bool, typer.Option(help="Also measure time and memory by a few real steps.")] = True,
    tflops: Annotated[
        float | None,
        typer.Option(
            min=1e-6, help="Compute an experiment's costs for another machine, at so many TFLOP/s sustained (not peak)."
        ),
    ] = None,
    bandwidth: Annotated[
        float | None, typer.Option(min=0.001, help="GB/s of memory that the other machine sustains, with --tflops.")
    ] = None,
    memory: Annotated[
        float | None, typer.Option(min=0.1, help="GiB of memory of the other machine's device, with --tflops.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Say what is wrong, what is odd and what a run will cost; exits with 2 where something is wrong.

    Costs are measured on this machine, and with --tflops computed for another: operations and memory are counted
    exactly, and rates are what you say they are.
    """
    import json

    from medgen.doctor import diagnose, print_table
    from medgen.doctor.counted import Machine
    from medgen.progress import Display

    machine = None
    if tflops is not None:
        machine = Machine(tflops, bandwidth, None if memory is None else int(memory * 2**30))
    elif bandwidth is not None or memory is not None:
        raise InputError("--bandwidth and --memory are of another machine; say how fast it is with --tflops")
    with Display() as display:
        diagnosis = diagnose(
            path, measure=measure, overrides=tuple(overrides or ()), machine=machine, on_progress=display
        )
    if as_json:
        print(json.dumps(diagnosis.to_json(), indent=2))
    else:
        print_table(diagnosis)
    wrong = diagnosis.of("wrong")
    if wrong:
        more = f" (and {len(wrong) - 1} more things are wrong)" if len(wrong) > 1 else ""
        raise InputError(f"{wrong[0].what}{more}")


@app.command(epilog='Example: `medgen generate runs/oasis/model OUT --n 32 --where "age=60..80,sex=F" --seed 0`')
def generate(
    model: Annotated[Path, typer.Argument(help="Model folder.")],
    out: Annotated[Path, typer.Argument(help="Folder of the dataset to write.")],
    n: Annotated[
        int | None, typer.Option(min=1, help="Size of the dataset: a row of --requests each, else 16, by default.")
    ] = None,
    where: Annotated[str, typer.Option(help="What is asked for, for example age=60..80,sex=F.")] = "",
    requests: Annotated[Path | None, typer.Option(help="A CSV or TSV with one request a row.")] = None,
    match: Annotated[str | None, typer.Option(help="`real`: covariates as in the cohort.")] = None,
    balance: Annotated[str | None, typer.Option(help="Flatten the joint, for example age:10y,sex.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the dataset.")] = 0,
    shard: Annotated[str, typer.Option(help="i/N: make every N-th sample, from the i-th.")] = "1/1",
    format: Annotated[str, typer.Option(help="bids, nnunet or decathlon.")] = "bids",
    sampler: Annotated[str | None, typer.Option(help="Solver, the model's by default.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the solver.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="Classifier-free guidance, 1 for none.")] = None,
    steering: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STEP",
            help="In place of the model's steering, the first innermost: `threshold`, "
            "`{kind: cfg, scale: 2, interval: [0.3, 10]}`, `none`; may be given several times.",
        ),
    ] = None,
    gate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GATE",
            help="Beside the model's gates: `agreement`, `{request: {tolerance: 0.5}}`, `topology: off`, or `none`; "
            "may be given several times.",
        ),
    ] = None,
    attempts: Annotated[int | None, typer.Option(min=1, help="Draws of a sample until the gates accept one.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples at a time; 1 is exactly reproducible.")] = 1,
    writers: Annotated[int | None, typer.Option(min=1, help="Threads that write while the next are drawn.")] = None,
    tile: Annotated[int | None, typer.Option(min=1, help="Voxels decoded at once, along each axis.")] = None,
    space: Annotated[str, typer.Option(help="native: a training case's grid; grid: the model's.")] = "native",
    masks: Annotated[
        Path | None,
        typer.Option(
            help="Label maps for images to follow, in place of the label model's: a label file, a folder of them, or a "
            "run's `prepared` folder."
        ),
    ] = None,
    edit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="EDIT",
            help="Change masks before images follow them: `warp`, `{kind: volume, structure: ventricles}` (grown or "
            "shrunk to what is asked), `{kind: lesion_remove, label: lesion}`; may be given several times, in order.",
        ),
    ] = None,
    text_encoder: Annotated[
        Path | None, typer.Option(help="Folder of the model's text encoder, where it has moved.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Allow requests the cohort never covers.")] = False,
) -> None:
    """Write a synthetic dataset; a second run completes what is missing and rewrites nothing.

    Gates judge every draw and reject what is unlike the cohort, misses its request or copies a training case; what is
    rejected is drawn again. Exit code 3 where they reject most draws.
    """
    from dataclasses import replace

    from medgen.cohort.requests import plan
    from medgen.generation.contact import NAME, write_contact_sheet
    from medgen.generation.dataset import Shard
    from medgen.generation.dataset import generate as write_dataset
    from medgen.generation.gates import setting as gating
    from medgen.generation.gates.panel import Gates
    from medgen.generation.generator import Generator, steered
    from medgen.progress import Display, Rate

    if space not in ("native", "grid"):
        raise InputError(f"--space is native or grid, not '{space}'")
    part = Shard.parse(shard)
    generator = Generator.load(model, device=device, text_encoder=text_encoder)
    d = generator.drawing
    if sampler is not None and sampler != d.sampler:
        d = replace(d, sampler=sampler, options={})
    if steering:
        d = steered(d, parse_steering(steering))
    scale = d.guidance if guidance is None else guidance
    d = replace(d, steps=steps or d.steps, guidance=scale, batch=batch, space=space, tile=tile)
    d = replace(d, masks=masks, edits=parse_entries(edit or (), "--edit", "{kind: warp}"))
    generator = Generator(generator.model, d, generator.context)
    chosen = plan(
        generator.schema,
        generator.model.joint,
        where=where,
        table=requests,
        match=match,
        balance=balance,
        force=force,
    )
    said = gating.parse(gate or (), gating.from_json(generator.model.spec.sampling.get("gates", {})))
    judges = Gates.of(generator.model.spec, replace(said, attempts=attempts or said.attempts), model)
    rate = Rate("samples")
    with Display() as display:
        outcome = write_dataset(
            generator,
            out,
            n or chosen.length or 16,
            chosen,
            seed=seed,
            shard=part,
            format=format,
            gates=judges,
            writers=writers,
            on_progress=lambda done, total: display("generate", done, total, rate(done, total)),
        )
        if outcome.made or (outcome.found and not (out / NAME).exists()):
            write_contact_sheet(out, out / NAME, format=format)
    if outcome.beyond:
        print(f"extrapolation: {outcome.beyond} of {outcome.made} samples", file=sys.stderr)
    for line in outcome.acceptance.lines() if outcome.acceptance else ():
        print(line, file=sys.stderr)
    pace = f" ({outcome.pace()})" if outcome.made else ""
    there = f"{outcome.found} were there; dataset in {out}, contact sheet {out / NAME}"
    print(f"{outcome.made} samples made{pace}, {there}")


@app.command(epilog="Example: `medgen combine runs/oasis $nnUNet_raw/Dataset101_Oasis --format nnunet`")
def combine(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run, with or without folds.")],
    out: Annotated[Path, typer.Argument(help="Folder of the dataset to write.")],
    format: Annotated[str, typer.Option(help="bids, nnunet or decathlon.")] = "nnunet",
) -> None:
    """Write a run's real and synthetic cases as one dataset, whose folds keep synthetic cases in training.

    Beside the data lie splits_final.json and, for MONAI, a datalist for each fold.
    """
    from medgen.progress import Display
    from medgen.stages.folds import combine_run, told

    with Display() as display:
        found = combine_run(folder, out, format=format, on_progress=display)
    print(f"{told(found)} in {out}")


def parse_steering(words: list[str]) -> tuple[dict[str, Any], ...]:
    """``--steering`` options: a kind, or a YAML mapping with the kind and its options; ``none`` alone for none.

    Raises:
        InputError: neither.
    """
    return () if words == ["none"] else parse_entries(words, "--steering", "{kind: cfg, scale: 2}")


def parse_entries(words: Sequence[str], option: str, example: str) -> tuple[dict[str, Any], ...]:
    """Options that are each a kind, or a YAML mapping with the kind and its options.

    Raises:
        InputError: neither.
    """
    import yaml

    steps = []
    for word in words:
        try:
            step = yaml.safe_load(word)
        except yaml.YAMLError:
            step = None
        step = {"kind": step} if isinstance(step, str) else step
        if not isinstance(step, dict) or step.get("kind", "none") == "none":
            raise InputError(f"{option} is a kind or a mapping such as {example}, not '{word}'")
        steps.append(step)
    return tuple(steps)


@model_app.command("distil", epilog="Example: `medgen model distil runs/oasis/model fast --steps 4 --minutes 30`")
def model_distil(
    model: Annotated[Path, typer.Argument(help="Model folder, the teacher.")],
    out: Annotated[Path, typer.Argument(help="Model folder to write.")],
    steps: Annotated[int, typer.Option(min=1, help="Evaluations that a sample will take.")] = 4,
    kind: Annotated[str | None, typer.Option(help="What the student minimises.")] = None,
    teacher_steps: Annotated[int | None, typer.Option(min=1, help="Steps of the teacher.")] = None,
    training_steps: Annotated[int | None, typer.Option(min=1, help="Steps of training.")] = None,
    minutes: Annotated[float | None, typer.Option(min=0.01, help="End of the training by the clock.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Samples at a time in training.")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=1e-9)] = None,
    drop: Annotated[
        float | None,
        typer.Option(min=0, max=0.99, help="Chance of leaving covariates open; 0 for a model that needs them all."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the training.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
) -> None:
    """Make a model that draws in a few steps what MODEL draws in many, with its guidance; no case is needed for it.

    A killed training goes on with the same command.
    """
    from medgen import config as configs
    from medgen.generation import distil
    from medgen.progress import Display
    from medgen.stages.run import distillation, schedule_of

    said = {"steps": steps, "kind": kind, "teacher_steps": teacher_steps, "drop": drop}
    trained = {"steps": training_steps, "minutes": minutes, "batch": batch, "learning_rate": learning_rate}
    c = configs.DistilConfig()
    training = c.training.model_copy(update={name: value for name, value in trained.items() if value is not None})
    c = c.model_copy(update={**{n: v for n, v in said.items() if v is not None}, "training": training})
    with Display() as display:
        found = distil.distil(
            model,
            out,
            distillation(c, seed),
            schedule_of(c.training),
            device=device,
            on_progress=lambda done, total, remark: display("distil", done, total, remark),
        )
    if "rmse" in found:  # the first process of several measures it
        print(f"model folder {out}: {distil.told(found)}")


@model_app.command("show", epilog="Example: `medgen model show runs/phantom/model`")
def model_show(folder: Annotated[Path, typer.Argument(help="Model folder.")]) -> None:
    """Check a model folder's files against their SHA-256 and print its card."""
    from medgen.generation.model import read_spec

    read_spec(folder)
    print((folder / "README.md").read_text(encoding="utf-8"))


@model_app.command("import", epilog="Example: `medgen model import BUNDLE brain_ldm --layout brain_ldm`")
def model_import(
    source: Annotated[Path, typer.Argument(help="Weight file (.pt, .pth, .safetensors), or a bundle's folder.")],
    out: Annotated[Path, typer.Argument(help="Model folder to write.")],
    layout: Annotated[str, typer.Option(help="brain_ldm or maisi.")],
    autoencoder: Annotated[
        Path | None, typer.Option(help="The autoencoder's file, where SOURCE is the diffusion model's.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="The bundle's JSON, for what shapes of weights do not tell.")
    ] = None,
    shape: Annotated[
        tuple[int, int, int] | None, typer.Option(metavar="X Y Z", help="Voxels of the grid, as published by default.")
    ] = None,
    spacing: Annotated[
        tuple[float, float, float] | None, typer.Option(metavar="X Y Z", help="Voxel size in mm (maisi).")
    ] = None,
    modality: Annotated[str | None, typer.Option(help="Comma-separated, such as mri_t1,mri_t2 (maisi).")] = None,
    scale_factor: Annotated[
        float | None, typer.Option(min=1e-9, help="Latents are multiplied by it; the file's by default.")
    ] = None,
) -> None:
    """Convert published weights from local files to a model folder; nothing is downloaded, licences stay the source's.

    The original networks and medgen's are run on the same input, and weights that make them differ are refused.
    """
    from medgen.generation.published import import_model

    given: dict[str, Any] = {"config": config, "shape": shape, "spacing_mm": spacing, "scale_factor": scale_factor}
    given["modality"] = tuple(m.strip() for m in modality.split(",")) if modality else None
    options = {name: value for name, value in given.items() if value is not None}
    differences = import_model(source, out, layout=layout, autoencoder=autoencoder, **options)
    told = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
    print(f"model folder {out} (largest difference to the original networks: {told}); read {out / 'README.md'}")
