"""Tiny transformer encoders, saved as transformers saves them."""

import numpy as np

WORDS = (
    "free win cash prize call now hello are you at home for dinner see soon ok".split()
)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
DEPTH, WIDTH = 4, 32


def save_tokenizer(folder):
    """A word-piece tokenizer with a vocabulary of its own; returns its size."""
    from transformers import BertTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = [*SPECIAL, *WORDS, *letters, *".!?,'", *(f"##{x}" for x in letters)]
    ids = {word: i for i, word in enumerate(vocabulary)}
    BertTokenizerFast(vocab=ids, model_max_length=64).save_pretrained(folder)
    return len(vocabulary)


# Name of an architecture → its settings, beside depth and width.
HEADS = {"num_attention_heads": 4, "intermediate_size": 64, "initializer_range": 0.3}
SIZES = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, **HEADS}
ARCHITECTURES = {
    "Bert": {**SIZES, "max_position_embeddings": 64},
    "Roberta": {**SIZES, "max_position_embeddings": 66, "pad_token_id": 0},
    "MPNet": {**SIZES, "max_position_embeddings": 66, "pad_token_id": 0},
    "DistilBert": {
        "dim": WIDTH,
        "n_layers": DEPTH,
        "n_heads": 4,
        "hidden_dim": 64,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    },
    "DebertaV2": {
        **SIZES,
        "max_position_embeddings": 64,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
    },
    "ModernBert": {
        **SIZES,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "initializer_cutoff_factor": 2.0,
        "local_attention": 16,
    },
}


def save_encoder(folder, architecture="Bert", seed=0, **options):
    """An encoder with random weights that are larger than usual, and its tokenizer."""
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    size = save_tokenizer(folder)
    about = {"vocab_size": size, **ARCHITECTURES[architecture], **options}
    config = getattr(transformers, f"{architecture}Config")(**about)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, f"{architecture}Model")(config)
        model.eval().save_pretrained(folder)
    return folder


def random_texts(n, longest=60, seed=0):
    """Texts of 1 to `longest` words."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, longest))) for _ in range(n)]
