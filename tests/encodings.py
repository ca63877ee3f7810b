"""Latents of given arrays, without a codec."""

from medgen.store.latent_writer import LatentWriter


def write_latents(folder, mean, logvar, cases, mirrored=None, **arrays):
    """Write rows as an encoding does and open them; every case counts as one that trains."""
    with LatentWriter(folder, len(mean)) as writer:
        for r, case in enumerate(cases):
            row = {"mean": mean[r], "logvar": logvar[r], **{name: array[r] for name, array in arrays.items()}}
            writer.add(row, case, mirrored=bool(mirrored and mirrored[r]))
        return writer.finish(None, set(cases))
