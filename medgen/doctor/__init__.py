"""What is wrong with a cohort, an experiment or a model, what is odd, and what it will cost."""
