"""One visible loop, EMA, checkpoints, logs."""
