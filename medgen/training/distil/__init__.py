"""Distillation: a student that needs a few evaluations where its teacher needs many; one objective a file."""
