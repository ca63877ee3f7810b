"""Model -> Model wrappers, one a file."""
