"""What a synthetic dataset is worth: the same segmenter on different training sets, judged on held-out real cases."""
