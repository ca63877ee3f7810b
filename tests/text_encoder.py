"""A text encoder of a few thousand random weights, written as Hugging Face writes one."""

from pathlib import Path

import torch

WORDS = ("small", "large", "normal", "ventricles", "old", "young", "brain", ",")


def write_tiny_encoder(folder: Path, *, width: int = 16, seed: int = 0) -> Path:
    """A BERT of one layer that knows ``WORDS``: config.json, model.safetensors and the tokenizer's files."""
    import transformers

    folder.mkdir(parents=True)
    vocabulary = folder.with_suffix(".vocab")
    vocabulary.write_text("\n".join(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)))
    transformers.BertTokenizer(str(vocabulary)).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=5 + len(WORDS),
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=width,
        max_position_embeddings=24,
    )
    torch.manual_seed(seed)
    transformers.BertModel(config).save_pretrained(folder)
    return folder
