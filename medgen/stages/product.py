"""Stages model, synthetic and report: what a run gives its user."""

import itertools
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from medgen.cohort.schema import volume_column
from medgen.evaluation.report import write_report
from medgen.files import read_json
from medgen.generation import left_out
from medgen.generation.contact import NAME, write_contact_sheet
from medgen.generation.dataset import generate
from medgen.generation.gates import panel
from medgen.generation.gates.cohort import acceptance, seen_cases
from medgen.generation.gates.panel import Gates
from medgen.generation.generator import Drawing, Generator
from medgen.generation.model import Kind, ModelSpec, build_network, read_spec, remember_text_encoder, save_model
from medgen.progress import Rate
from medgen.stages import fidelity, quality
from medgen.stages.ancestor import lineage
from medgen.stages.codec import trained_codec
from medgen.stages.conditions import conditions, fit_encoder, fit_joint, plan_of
from medgen.stages.distil import drawing_model
from medgen.stages.masks import copy_label_model, label_count, mask_input, mean_centre
from medgen.stages.run import Run
from medgen.steering import chain
from medgen.store.latents import Latents
from medgen.training import keep


def model(run: Run) -> None:
    """Assemble the model folder."""
    c, store = run.config, run.store
    stored = Latents(run.folder / "latents")
    schema, _ = conditions(run)
    encoder, _ = fit_encoder(run)
    training = run.train_cases()
    codec = trained_codec(run)
    masks = mask_input(run)
    network = build_network(run.network_kind(), stored.mean.shape[1], encoder.schema, masks)
    weights = run.folder / "diffusion" / keep.NAME
    labelled = label_count(store) > 0
    spec = ModelSpec(
        name=c.name,
        channels=store.channels,
        label_values=store.label_values if labelled else (),
        label_names=store.label_names if labelled else (),
        spacing_mm=store.spacing_mm,
        shape=store.shape,
        latent_shape=tuple(int(n) for n in stored.mean.shape[1:]),  # type: ignore[arg-type]
        codec=run.codec_kind(),
        process=Kind(c.diffusion.process, c.diffusion.process_options),
        network=run.network_kind(),
        encoder=encoder.to_json(),
        schema=schema.to_json(),
        joint=fit_joint(run).to_json(),
        derived=dict(c.covariates.derived),
        statistics={"mean": stored.statistics.mean, "std": stored.statistics.std},
        records=[{"geometry": store.cases[i].geometry, "intensity": store.cases[i].intensity} for i in training],
        sampling={
            "sampler": c.generate.sampler,
            "options": c.generate.sampler_options,
            "steps": c.generate.steps,
            "guidance": c.generate.guidance,
            # A second model is named from the folder of this one, so that both can be copied together.
            "steering": chain.moved(c.generate.steering, lambda path: _seen_from(run.folder / "model", path)),
            "gates": run.gate_setting().to_json(),
        },
        trained_on={
            "cases": len(training),
            "subjects": len({store.cases[i].subject_id for i in training}),
            "validation": len(run.held_out_cases()),
            "skull_stripped": all(store.cases[i].quality.get("foreground") == "stripped" for i in training),
            "licence": c.licence,
            "codec": {k: v for k, v in quality.figures(run).items() if k not in ("sizes_ml", "structures")},
            "codec_below": quality.shortfall(run),
            "ancestors": lineage(run),
            "dropped": {"all": c.diffusion.drop_all, "each": c.diffusion.drop_each},
            "kept": {k: v for k, v in keep.read_kept(weights).items() if k != "score"},
        },
        mask={"stride": masks.stride, "centre": mean_centre(store)} if masks else {},
    )
    if masks:
        copy_label_model(run, run.folder / "model")
    if spec.channels:  # gates judge pairs
        spec = replace(spec, gates=_learnt_by_gates(run, spec))
    if run.text_encoder is not None:
        remember_text_encoder(run.folder, run.text_encoder)
    save_model(run.folder / "model", spec, codec.state_dict(), keep.load_kept(weights, network))
    run.progress("model", 1, 1, str(run.folder / "model"))


def _learnt_by_gates(run: Run, spec: ModelSpec) -> dict[str, Any]:
    """What gates know of the training cases, and how many held-out cases they would accept."""
    _, rows = conditions(run)
    told = [*(volume_column(name) for name in spec.label_names[1:]), *spec.derived]
    cases, held_out = run.train_cases(), run.held_out_cases()
    done = itertools.count(1)
    learnt = panel.learn(
        seen_cases(run.store, cases, rows, told),
        lambda: run.progress("model", next(done), len(cases) + 1, "cases measured for the gates"),
    )
    gates = Gates.of(replace(spec, gates=learnt), run.gate_setting())
    return {**learnt, panel.HELD_OUT: acceptance(gates, seen_cases(run.store, held_out, rows, told))}


def synthetic(run: Run) -> None:
    """Generate the dataset."""
    g = run.config.generate
    generator = Generator.load(drawing_model(run), device=str(run.device))
    # A student draws as it was trained to; what the config says of sampling is what it learnt.
    drawing = replace(generator.drawing, batch=g.batch, space=g.space, tile=g.tile)
    if run.config.distil is None:
        drawing = Drawing(
            g.sampler, g.sampler_options, g.steps, g.guidance, g.batch, g.space, g.steering, g.tile, g.masks, g.edits
        )
    generator = Generator(generator.model, drawing, generator.context)
    plan = plan_of(run, generator.model.joint)
    gates = Gates.of(generator.model.spec, run.gate_setting(), drawing_model(run))
    progress, rate = run.stage_progress("synthetic"), Rate("samples")
    outcome = generate(
        generator,
        run.folder / "synthetic",
        g.n,
        plan,
        seed=g.seed,
        format=g.format,
        gates=gates,
        writers=g.writers,
        on_progress=lambda done, total: progress(done, total, rate(done, total)),
    )
    if outcome.acceptance is not None and not outcome.acceptance.accepted:
        outcome.acceptance.tally(0.0).stop()  # whatever share may be rejected, there is nothing to go on with
    write_contact_sheet(run.folder / "synthetic", run.folder / "synthetic" / NAME, format=g.format)


def _seen_from(folder: Path, path: Path) -> str:
    """A path relative to a folder."""
    return Path(os.path.relpath(path, folder)).as_posix()


def _gates_told(run: Run) -> dict[str, Any] | None:
    """How the draws fared, and how many held-out cases each gate would have accepted."""
    path = run.folder / "synthetic" / left_out.FOLDER / left_out.REPORT
    if not path.exists() or not (told := read_json(path))["draws"]:
        return None
    spec, _ = read_spec(run.folder / "model")
    return {**told, "held_out": spec.gates.get(panel.HELD_OUT)}


def report(run: Run) -> None:
    """Measure the samples, beside what the codec keeps."""
    r = run.config.report
    write_report(
        run.folder / "report",
        run.store,
        {**quality.figures(run), "below": quality.shortfall(run)},
        run.folder / "synthetic",
        run.prepare_options(),
        gates=_gates_told(run),
        format=run.config.generate.format,
        workers=run.config.workers or 1,
        volume=r.volume,
        min_volume_r=r.min_volume_r,
        max_ssim_excess=r.max_ssim_excess,
        fidelity=fidelity.measuring(run),
    )
