"""Tiny transformer encoders, saved as transformers saves them."""

import numpy as np

WORDS = (
    "free win cash prize call now hello are you at home for dinner see soon ok".split()
)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def save_tokenizer(folder):
    """A word-piece tokenizer with a vocabulary of its own; returns its size."""
    from transformers import BertTokenizerFast

    vocabulary = [*SPECIAL, *WORDS, *"abcdefghijklmnopqrstuvwxyz.!?,'"]
    vocabulary += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    path = folder / "vocab.txt"
    path.write_text("\n".join(vocabulary))
    ids = {word: i for i, word in enumerate(vocabulary)}
    BertTokenizerFast(vocab=ids, model_max_length=64).save_pretrained(folder)
    return len(vocabulary)


def save_bert(folder, seed=0, depth=4, width=32, **options):
    """A BERT with random weights that are larger than usual, and its tokenizer."""
    import torch
    from transformers import BertConfig, BertModel

    folder.mkdir(parents=True, exist_ok=True)
    config = BertConfig(
        vocab_size=save_tokenizer(folder),
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=4,
        intermediate_size=2 * width,
        max_position_embeddings=64,
        initializer_range=0.3,
        **options,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        BertModel(config).eval().save_pretrained(folder)
    return folder


def random_texts(n, longest=60, seed=0):
    """Texts of 1 to `longest` words."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, longest))) for _ in range(n)]
