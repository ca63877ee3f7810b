"""Edits of label maps, one kind a file: ``edit(scene, target, rng, *, ...)``, chained by :mod:`medgen.edit.chain`."""
