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
    # Blocks that share their weights, or are followed by more than the next block.
    "Albert": {**SIZES, "embedding_size": 16, "max_position_embeddings": 64},
    "DebertaV2, with a convolution": {
        **SIZES,
        "max_position_embeddings": 64,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "conv_kernel_size": 3,
    },
    # The states are changed once more at the end.
    "CLIPText": {**SIZES, "max_position_embeddings": 64, "initializer_factor": 4.0},
    "RobertaPreLayerNorm": {**SIZES, "max_position_embeddings": 66, "pad_token_id": 0},
    # Texts are padded inside, or the padding is seen.
    "Longformer": {
        **SIZES,
        "max_position_embeddings": 66,
        "pad_token_id": 0,
        "attention_window": 16,
    },
    "FNet": {**SIZES, "max_position_embeddings": 64},
    "ConvBert": {**SIZES, "max_position_embeddings": 64, "embedding_size": WIDTH},
    "MobileBert": {
        **SIZES,
        "max_position_embeddings": 64,
        "embedding_size": 16,
        "intra_bottleneck_size": 16,
    },
    # Decoders.
    "GPT2": {
        "n_embd": WIDTH,
        "n_layer": DEPTH,
        "n_head": 4,
        "n_positions": 64,
        "initializer_range": 0.3,
    },
    "Qwen3": {
        **SIZES,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
    },
}


def save_encoder(folder, architecture="Bert", seed=0, **options):
    """An encoder with random weights that are larger than usual, and its tokenizer."""
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    size = save_tokenizer(folder)
    about = {"vocab_size": size, **ARCHITECTURES[architecture], **options}
    family = architecture.partition(",")[0]
    config = getattr(transformers, f"{family}Config")(**about)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, f"{family}Model")(config)
        model.eval().save_pretrained(folder)
    return folder


def random_texts(n, longest=60, seed=0):
    """Texts of 1 to `longest` words."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, longest))) for _ in range(n)]
