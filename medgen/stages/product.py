"""Stages model, synthetic and report: what a run gives its user."""

from medgen.evaluation.report import write_report
from medgen.generation.contact import NAME, write_contact_sheet
from medgen.generation.dataset import generate
from medgen.generation.generator import Drawing, Generator
from medgen.generation.model import Kind, ModelSpec, build_network, save_model
from medgen.stages.codec import label_count, trained_codec
from medgen.stages.conditions import conditions, fit_encoder, fit_joint, plan_of
from medgen.stages.run import Run
from medgen.store.latents import Latents
from medgen.training.checkpoint import load_average


def model(run: Run) -> None:
    """Assemble the model folder."""
    c, store = run.config, run.store
    stored = Latents(run.folder / "latents")
    schema, _ = conditions(run)
    encoder, _ = fit_encoder(run)
    training = run.train_cases()
    codec = trained_codec(run)
    network = build_network(run.network_kind(), stored.mean.shape[1], encoder.schema)
    checkpoint = run.folder / "diffusion" / "checkpoint.safetensors"
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
        },
        trained_on={
            "cases": len(training),
            "subjects": len({store.cases[i].subject_id for i in training}),
            "validation": len(run.held_out_cases()),
            "skull_stripped": all(store.cases[i].quality.get("foreground") == "stripped" for i in training),
        },
    )
    save_model(run.folder / "model", spec, codec.state_dict(), load_average(checkpoint, "network", network))
    run.progress("model", 1, 1, str(run.folder / "model"))


def synthetic(run: Run) -> None:
    """Generate the dataset."""
    g = run.config.generate
    drawing = Drawing(g.sampler, g.sampler_options, g.steps, g.guidance, g.batch, g.space)
    generator = Generator.load(run.folder / "model", device=str(run.device), drawing=drawing)
    plan = plan_of(run, generator.model.joint)
    progress = run.stage_progress("synthetic")
    generate(
        generator,
        run.folder / "synthetic",
        g.n,
        plan,
        seed=g.seed,
        format=g.format,
        on_progress=lambda done, total: progress(done, total, "samples"),
    )
    write_contact_sheet(run.folder / "synthetic", run.folder / "synthetic" / NAME, format=g.format)


def report(run: Run) -> None:
    """Measure codec and samples."""
    r = run.config.report
    write_report(
        run.folder / "report",
        run.store,
        trained_codec(run),
        run.folder / "synthetic",
        run.prepare_options(),
        format=run.config.generate.format,
        device=run.device,
        workers=run.config.workers or 1,
        volume=r.volume,
        min_volume_r=r.min_volume_r,
        max_ssim_excess=r.max_ssim_excess,
    )
