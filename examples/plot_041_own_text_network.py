"""
Can a small text network be reused?
===================================

A 1-D convolutional network learns which library a docstring is from.
Its frozen layers are then features for another task with few examples:
to tell three other libraries apart.
"""

import inspect
from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy import linalg, ndimage, signal, stats
from sklearn import ensemble, metrics
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import ShuffleSplit, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from skdeepfeat import PretrainedTextFeatures, TextBackbone, list_layers

old = [np, signal, stats, metrics, nn, torch]
new = [linalg, ndimage, ensemble]


def docstrings(modules):
    found = []
    for i, module in enumerate(modules):
        things = filter(callable, vars(module).values())
        docs = sorted({inspect.getdoc(x) or "" for x in things})[1:150]
        found += [(" ".join(doc.split()[:60]), i) for doc in docs]
    return [text for text, _ in found], np.array([i for _, i in found])


texts, y = docstrings(old)

# %%
# The vocabulary: the words that occur more than once. 0 is the padding.
counts = Counter(" ".join(texts).split())
words = [word for word, n in counts.items() if n > 1]
vocabulary = {word: i for i, word in enumerate(words, 1)}


def tokenize(text):
    return [vocabulary[w] for w in text.split() if w in vocabulary]


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(len(words) + 1, 32, padding_idx=0)
        self.conv1 = nn.Conv1d(32, 48, 3, padding=1)
        self.conv2 = nn.Conv1d(48, 64, 3, padding=1)
        self.head = nn.Linear(64, len(old))

    def forward(self, tokens):
        x = self.embedding(tokens).transpose(1, 2)
        x = self.conv2(self.conv1(x).relu()).relu()
        return self.head(x.amax(2))


torch.manual_seed(0)
net = ConvNet()
tokens = [torch.tensor(tokenize(text) or [0]) for text in texts]
tokens = nn.utils.rnn.pad_sequence(tokens, batch_first=True)
data = TensorDataset(tokens, torch.tensor(y))
optimizer = torch.optim.Adam(net.parameters(), 0.003)
for _ in range(6):
    for some, labels in DataLoader(data, 64, shuffle=True):
        optimizer.zero_grad()
        nn.CrossEntropyLoss()(net(some), labels).backward()
        optimizer.step()
backbone = TextBackbone.from_module(net, tokenize=tokenize)
print(list_layers(backbone))

# %%
# The new task has 30 examples. All depths are computed in one pass.
texts, y = docstrings(new)
folds = ShuffleSplit(8, train_size=30, random_state=0)
scores = {}
for layer in [layer.alias for layer in list_layers(backbone)]:
    features = PretrainedTextFeatures(backbone, layer=layer)
    model = make_pipeline(features, StandardScaler(), RidgeClassifier())
    scores[layer] = cross_val_score(model, texts, y, cv=folds)
figure, axes = plt.subplots(figsize=(6.5, 3), layout="constrained")
means = [score.mean() for score in scores.values()]
axes.bar_label(axes.barh(list(scores), means), fmt="%.2f", padding=3)
axes.axvline(np.bincount(y).max() / len(y), color="grey", linestyle=":")
axes.invert_yaxis()
axes.set(xlim=(0, 1.1), xlabel="accuracy; dotted: the largest class")
axes.set_title("Three libraries told apart by 30 docstrings")
figure.savefig("own_text_network.png", dpi=150)
plt.show()
