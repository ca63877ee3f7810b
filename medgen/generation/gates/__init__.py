"""Gates between draw and export: one file a gate, found by its name as every plug-in is.

A gate is a module with ``build(context, *, <options>) -> Judge`` and ``ON``, whether it judges where nothing is said
of it. With ``measure(seen) -> {score: number}`` it also learns what real cases have: their scores are summed up when
the model folder is assembled, and come back as ``context.laws``; what its ``learn(rows)`` makes of them beside that
comes back as ``context.figures``. With ``check(**options)`` it refuses options that
only it can judge, and with ``recorded(**options)`` it says what a sidecar holds of them.
"""
