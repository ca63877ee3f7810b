"""Import of published weights, one layout a file; the only room that imports ``generative``.

A layout is a module with ``convert(source, *, <options>) -> Imported``, found by its name.
"""
