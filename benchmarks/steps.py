"""Quality against evaluations of the network, for each process and sampler, and after distillation.

    python benchmarks/steps.py --data DATA/hippocampus --minutes 20 [--distil-minutes 20] [--json FILE] [--plot PNG]

A model of each process is trained for the same time on the latents of one codec (that of ``diffusion.py``, whose work
is used again), and so is MONAI's tutorial recipe, which is drawn by DDIM in 50 steps. Every pair of process and sampler
draws the same requests with the same noise, within 2, 4, ... 64 evaluations: as many whole steps as fit (Heun's method
takes two a step, and one in the last). The model of the first process is then distilled, and its student drawn in up to
8. "frechet_excess" and "mmd_excess" are above the floor of real cases against real ones; "ccc" is by the segmenter,
"ccc_label" by the generated label, as means over the asked volumes; each figure is taken as in ``diffusion.py``.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from diffusion_bench import FOR_EVER, Bench, arm, open_bench, parser, seconds_of, shared_codec, telling, yardstick
from diffusion_draw import Drawn, answered, figures, mean_of_volumes, our_samples, uniform_requests
from diffusion_peer import tutorial, tutorial_samples

from medgen.config import DistilConfig
from medgen.diffusion.process import Process
from medgen.evaluation.reference import Reference
from medgen.files import atomic, write_json
from medgen.generation import distil
from medgen.generation.generator import Drawing, Generator
from medgen.models.codec import Codec
from medgen.models.condition import Condition
from medgen.models.seam import Prediction
from medgen.registry import resolve
from medgen.stages.run import distillation, schedule_of

matplotlib.use("Agg")

SAMPLERS = {
    "flow": ("euler", "heun", "dpmpp"),
    "vp": ("euler", "ancestral", "dpmpp", "plms"),
    "edm": ("heun", "dpmpp"),
}
EVALUATIONS = (2, 4, 8, 16, 32, 64)
MOST_OF_A_STUDENT = 8
_LEAST = 0.1  # of what a logarithmic axis shows: an excess may be 0 or below

Cell = dict[str, Any]


def evaluations_of(process: Process, sampler: str, steps: int) -> int:
    """How often a sampler asks the model."""
    calls = 0

    def model(x: torch.Tensor, sigma: torch.Tensor, cond: Condition, *, taps: Sequence[str] = ()) -> Prediction:
        nonlocal calls
        calls += 1
        return Prediction(torch.zeros_like(x))

    shape, nothing = (1, 1, 1, 1, 1), torch.zeros(1, 0)
    cond = Condition((), nothing, nothing.bool())
    solver = resolve("sampling", sampler, "sample")
    process.sample(model, shape, cond, solver, lambda step: torch.zeros(shape), steps=steps)
    return calls


def steps_within(process: Process, sampler: str, most: int) -> int:
    """The most steps that a number of evaluations allows, at least one."""
    return max((n for n in range(1, most + 1) if evaluations_of(process, sampler, n) <= most), default=1)


def cell(bench: Bench, found: Mapping[str, Any], drawn: Drawn) -> Cell:
    """One entry of the table."""
    excess = found["excess"]
    return {
        **{f"{key}_excess": excess[key]["value"] for key in ("frechet", "mmd")},
        "frechet_interval": [excess["frechet"]["low"], excess["frechet"]["high"]],
        "ccc": mean_of_volumes(found, bench.volumes, "segmenter")["ccc"],
        "ccc_label": mean_of_volumes(found, bench.volumes, "generated_label")["ccc"],
        "seconds_per_sample": round(drawn.seconds_per_sample, 3),
    }


def of_model(
    bench: Bench, reference: Reference, codec: Codec, model: Path, samplers: Sequence[str], most: Sequence[int]
) -> dict[str, dict[str, Cell]]:
    """Sampler -> evaluations -> entry."""
    loaded = Generator.load(model, device=bench.options.device)
    # A student draws with the guidance it has learnt, the arms with what the experiment says.
    learnt = "distilled" in loaded.model.spec.trained_on
    guidance = loaded.drawing.guidance if learnt else bench.config.generate.guidance
    requests = uniform_requests(bench, bench.options.n)
    rows = answered(loaded, requests)
    table: dict[str, dict[str, Cell]] = {}
    for sampler in samplers:
        for count in most:
            steps = steps_within(loaded.model.process, sampler, count)
            generator = Generator(loaded.model, Drawing(sampler, {}, steps, guidance), loaded.context)
            drawn = our_samples(bench, generator, model.parent, f"{model.name}-{sampler}-{count}", rows, codec)
            found = figures(bench, reference, model.parent, drawn, requests, resamples=200, pairs=40)
            made = cell(bench, found, drawn) | {"steps": steps}
            table.setdefault(sampler, {})[str(count)] = made
            print(f"{model.parent.name} {model.name} {sampler} {count}: {made}", flush=True)
    return table


def of_tutorial(
    bench: Bench, reference: Reference, codec: Codec, rows: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Cell], dict[str, float]]:
    """The tutorial's entries at 50 steps, and the floor."""
    peer, folder = tutorial(bench)
    requests, made, floor = uniform_requests(bench, bench.options.n), {}, {}
    for sampling in ("ddim_50_clipped", "ddim_50_unclipped"):
        drawn = tutorial_samples(bench, peer, folder, sampling, rows, codec)
        found = figures(bench, reference, folder, drawn, requests, resamples=200, pairs=40)
        made[sampling] = cell(bench, found, drawn)
        floor = {key: found["floor"][key]["value"] for key in ("frechet", "mmd")}
        print(f"tutorial {sampling}: {made[sampling]}", flush=True)
    return made, floor


def student(bench: Bench, model: Path, minutes: float, steps: int) -> Path:
    """Distil a model into one of few steps; its folder."""
    raw = {"steps": steps, "training": {"steps": FOR_EVER, "minutes": minutes, "batch": 8, "learning_rate": 3e-4}}
    c = DistilConfig.model_validate(raw)
    out = model.parent / f"distilled-{steps}-{minutes:g}"
    tell = telling(out.name)
    how, schedule = distillation(c, bench.config.seed), schedule_of(c.training)
    said = distil.distil(
        model, out, how, schedule, device=bench.options.device, on_progress=lambda *told: tell("distilled", *told)
    )
    print(distil.told(said), flush=True)
    return out


def lines(table: Mapping[str, Mapping[str, Mapping[str, Cell]]]) -> Iterator[tuple[str, Mapping[str, Cell]]]:
    """Every process and sampler by name, with its entries by evaluations."""
    for process, samplers in table.items():
        for sampler, cells in samplers.items():
            yield f"{process} {sampler}", cells


def show(result: Mapping[str, Any], evaluations: Sequence[int]) -> None:
    """Print the table: excess Fréchet distance and CCC."""
    for key, words in (("frechet_excess", "Fréchet distance above the floor"), ("ccc", "CCC by the segmenter")):
        print(f"\n{words + ', evaluations:':34}" + "".join(f"{n:>9}" for n in evaluations))
        for name, cells in lines(result["table"]):
            shown = [cells.get(str(n), {}).get(key) for n in evaluations]
            print(f"{name:34}" + "".join(f"{'-' if v is None else format(v, '.3g'):>9}" for v in shown))
        for name, made in result["tutorial"].items():
            print(f"tutorial {name}: {made[key]}")
    for name, said in result["aims"].items():
        print(f"{name}: {said}")


def plot(result: Mapping[str, Any], path: Path) -> None:
    """The table as a picture."""
    from matplotlib import pyplot

    panels = (("frechet_excess", "Fréchet distance above the floor", "log"), ("ccc", "CCC of volumes", "linear"))
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5))
    styles = {"flow": "-", "vp": "--", "edm": "-.", "distilled": ":"}
    evaluations = sorted({int(n) for _, cells in lines(result["table"]) for n in cells})
    for axis, (key, words, scale) in zip(axes, panels, strict=True):
        least = _LEAST if scale == "log" else -1.0
        for name, cells in lines(result["table"]):
            points = [(int(n), max(c[key], least)) for n, c in cells.items() if c[key] is not None]
            axis.plot(*zip(*points, strict=True), styles.get(name.split()[0], "-"), marker="o", ms=3, label=name)
        for (name, made), style in zip(result["tutorial"].items(), ("-", "--"), strict=True):
            if made[key] is not None:
                axis.axhline(max(made[key], least), color="grey", ls=style, lw=0.8, label=f"tutorial {name}")
        axis.set_xscale("log", base=2)
        axis.set_xticks(evaluations, [str(n) for n in evaluations])
        axis.set(yscale=scale, xlabel="evaluations", title=words)
    axes[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    pyplot.close(figure)


def aims(result: Mapping[str, Any]) -> dict[str, Any]:
    """What was aimed at, and what came."""
    table, said = result["table"], {}
    all_cells = [(name, int(n), c["frechet_excess"]) for name, cells in lines(table) for n, c in cells.items()]
    teacher_name = next(iter(table))
    of_32 = [(value, name) for name, n, value in all_cells if n == 32 and name.startswith(teacher_name)]
    theirs = min(made["frechet_excess"] for made in result["tutorial"].values())
    # The solver that the experiment names, not the luckiest of many noisy entries.
    chosen = table[teacher_name].get(result["sampler"], {}).get("8")
    if chosen is not None:
        mine, low, high = chosen["frechet_excess"], *chosen["frechet_interval"]
        found = {"ours": [mine, f"{teacher_name} {result['sampler']} 8"], "interval": [low, high], "tutorial": theirs}
        said["8 of ours against the tutorial's 50"] = {**found, "reached": mine <= theirs}
    students = table.get("distilled", {})
    fours = [cells["4"]["frechet_excess"] for cells in students.values() if "4" in cells]
    if fours and of_32:
        teacher, floor = min(of_32), result["floor"]["frechet"]
        # Of whole distances: the excess over the floor may be next to nothing.
        ratio = (min(fours) + floor) / (teacher[0] + floor)
        said["4 of the student against 32"] = {"student": min(fours), "32": teacher, "ratio": round(ratio, 3)}
        said["4 of the student against 32"]["reached"] = ratio <= 1.1
    return said


def foresee(bench: Bench, processes: Sequence[str], evaluations: Sequence[int], distil_minutes: float) -> None:
    """Say how many minutes of training and how many evaluations are to come."""
    o = bench.options
    training = o.codec_minutes + o.minutes * (len(processes) + 1) + distil_minutes
    combinations = sum(len(SAMPLERS[p]) for p in processes)
    count = o.n * (combinations * sum(evaluations) + 100 + sum(n for n in evaluations if n <= MOST_OF_A_STUDENT))
    network = torch.nn.Conv3d(32, 32, 3, padding=1).to(bench.device)
    x = torch.randn(o.batch, 32, *(n // 4 for n in bench.store.shape), device=bench.device)
    with torch.no_grad():
        each = 10 * seconds_of(lambda: network(x)) / o.batch
    print(
        f"foreseen: {training:.0f} minutes of training; {count} evaluations of a sample, about {count * each / 60:.0f}"
    )
    print(f"minutes of drawing; {combinations * len(evaluations)} entries to be measured", flush=True)


def main() -> None:
    """Train, draw, print the table, write JSON and picture."""
    made = parser(__doc__)
    made.add_argument("--processes", nargs="+", default=list(SAMPLERS), choices=list(SAMPLERS))
    made.add_argument("--evaluations", nargs="+", type=int, default=list(EVALUATIONS))
    made.add_argument("--distil-minutes", type=float, help="of distillation, those of an arm by default; 0 for none")
    made.add_argument("--student-steps", type=int, default=4, help="evaluations that the student is made for")
    made.add_argument("--plot", type=Path, help="the picture, steps.png beside the work by default")
    options = made.parse_args()
    began, bench = time.monotonic(), open_bench(options)
    minutes = options.minutes if options.distil_minutes is None else options.distil_minutes
    foresee(bench, options.processes, options.evaluations, minutes)
    reference, codec = yardstick(bench), shared_codec(bench)
    table, first_model = {}, None
    for process in options.processes:
        # The first arm of diffusion.py is of the config's own process, and need not be trained again.
        own = process == bench.config.diffusion.process
        model = arm(bench, "ours") if own else arm(bench, process, {"process": process, "process_options": {}})
        first_model = first_model or model
        table[process] = of_model(bench, reference, codec, model, SAMPLERS[process], options.evaluations)
    assert first_model is not None
    loaded = Generator.load(first_model, device=options.device)
    if minutes > 0:
        few = [n for n in options.evaluations if n <= MOST_OF_A_STUDENT]
        out = student(bench, first_model, minutes, options.student_steps)
        sampler = Generator.load(out, device=options.device).drawing.sampler
        table["distilled"] = of_model(bench, reference, codec, out, [sampler], few)
    requests = uniform_requests(bench, options.n)
    rows = [row.values for row in answered(loaded, requests)]
    theirs, floor = of_tutorial(bench, reference, codec, rows)
    result: dict[str, Any] = {
        "floor": floor,
        "table": table,
        "tutorial": theirs,
        "minutes": options.minutes,
        "samples": options.n,
        "sampler": bench.config.generate.sampler,
    }
    result["aims"] = aims(result)
    show(result, options.evaluations)
    picture = options.plot or bench.folder / "steps.png"
    plot(result, picture)
    print(f"picture: {picture}; {(time.monotonic() - began) / 60:.1f} minutes in all")
    if options.json:
        write_json(options.json, result)


if __name__ == "__main__":
    main()
