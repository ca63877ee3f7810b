"""The segmenter that gates, evaluation and utility share as code, not as weights."""
