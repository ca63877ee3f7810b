"""Model -> Model wrappers, one a file: ``wrap(model, *, <options>)``, chained by :mod:`medgen.steering.chain`."""
