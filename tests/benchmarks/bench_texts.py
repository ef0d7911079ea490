"""Measure features of texts: beside sentence-transformers, and beside word counts.

    python tests/benchmarks/bench_texts.py [path of sms_spam.tsv]

The encoder is a BERT of 4 layers with random weights, which is made here.
"""

import argparse
import csv
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skdeepfeat import PretrainedTextFeatures

sys.path.insert(0, str(Path(__file__).parents[1] / "texts"))
from encoders import save_encoder

SHARED = Path(__file__).parents[3] / "shared" / "data" / "texts" / "sms_spam.tsv"
SCORES = ("accuracy", "f1", "roc_auc")


def read_messages(path):
    """The messages, and whether each is spam."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [text for _, text in rows], np.array([label == "spam" for label, _ in rows])


def compare_heads(texts, y):
    """Print the scores of 5 folds, of our features and of word counts."""
    head = LogisticRegression(max_iter=1000)
    ours = PretrainedTextFeatures()
    both = PretrainedTextFeatures(pooling="meanmax")
    models = {
        "wordllama, mean": make_pipeline(ours, StandardScaler(), head),
        "wordllama, mean and max": make_pipeline(both, StandardScaler(), head),
        "TfidfVectorizer": make_pipeline(TfidfVectorizer(), head),
    }
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    for name, model in models.items():
        start = time.perf_counter()
        found = cross_validate(model, texts, y, cv=folds, scoring=SCORES)
        scores = ", ".join(f"{s} {found[f'test_{s}'].mean():.3f}" for s in SCORES)
        print(f"{name:24} {scores}, {time.perf_counter() - start:.1f} s")


def compare_speed(texts, width=128, repeats=3):
    """Print texts per second of sentence-transformers and of ours, alternately."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    folder = str(
        save_encoder(
            Path(tempfile.mkdtemp()) / "bert",
            hidden_size=width,
            intermediate_size=4 * width,
        )
    )
    transformer = Transformer(folder, max_seq_length=64)
    theirs = SentenceTransformer(modules=[transformer, Pooling(width)], device="cpu")
    ours = PretrainedTextFeatures(folder, cache=None)
    texts = list(dict.fromkeys(texts))
    computed = {}
    runs = {
        "sentence-transformers": lambda some: theirs.encode(some, batch_size=32),
        "ours": ours.transform,
    }
    seconds = {name: [] for name in runs}
    for run in runs.values():
        run(texts[:64])
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            computed[name] = run(texts)
            seconds[name].append(time.perf_counter() - start)
    rates = {name: len(texts) / np.median(s) for name, s in seconds.items()}
    difference = np.abs(computed["ours"] - computed["sentence-transformers"]).max()
    for name, rate in rates.items():
        print(f"{name:24} {rate:.0f} texts a second")
    ratio = rates["ours"] / rates["sentence-transformers"]
    print(f"ratio {ratio:.2f}, largest difference of a feature {difference:.1e}")
    print(ours.stats_["shares"])


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, nargs="?", default=SHARED)
    messages, is_spam = read_messages(parser.parse_args().path)
    compare_speed(messages)
    compare_heads(messages, is_spam)
