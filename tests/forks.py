"""Computes in a process, forks it in every way, and prints what the children found.

Usage: python forks.py {torch,converted,read,tuned} folder

"prepare" forks nothing, and leaves converted networks for a later process to read.
"""

import faulthandler
import json
import multiprocessing
import os
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import joblib
import numpy as np

from skdeepfeat import (
    FeatureStore,
    FineTunedClassifier,
    PretrainedCNNFeatures,
    load_textures,
)

SECONDS = 80  # that each case may take
N = 6
SIBLINGS = 2
FORK = multiprocessing.get_context("fork")


def work(model, known, new):
    """What a child finds: features, and how many images it has computed."""
    found = []
    for X in (known, new):
        rows = model.transform(X)
        found += [rows, model.stats_["n_computed"]]
    return found, model.stats_["engine"], "torch" in sys.modules


def run(pipe, *arguments):
    pipe.send(work(*arguments))
    pipe.close()


def by_fork(*arguments):
    pipes = []
    for _ in range(SIBLINGS):
        receiver, sender = FORK.Pipe(duplex=False)
        if not os.fork():
            run(sender, *arguments)
            os._exit(0)
        pipes.append(receiver)
    return [pipe.recv() for pipe in pipes]


def by_process(*arguments):
    pipes = [FORK.Pipe(duplex=False) for _ in range(SIBLINGS)]
    for _, sender in pipes:
        FORK.Process(target=run, args=(sender, *arguments), daemon=True).start()
    return [receiver.recv() for receiver, _ in pipes]


def by_joblib(*arguments):
    parallel = joblib.Parallel(SIBLINGS, backend="multiprocessing")
    return parallel(joblib.delayed(work)(*arguments) for _ in range(SIBLINGS))


def by_executor(*arguments):
    with ProcessPoolExecutor(SIBLINGS, mp_context=FORK) as pool:
        futures = [pool.submit(work, *arguments) for _ in range(SIBLINGS)]
        return [future.result() for future in futures]


WAYS = (by_fork, by_process, by_joblib, by_executor)


def images():
    """Images that all differ."""
    X = load_textures().data.copy()
    for i in range(len(X)):
        X[i, 0, 0] = i % 256
        X[i, 0, 1] = i // 256
    return iter(np.split(X[: len(X) // N * N], len(X) // N))


def make_model(kind, cache):
    """An estimator that has not computed anything yet."""
    if kind != "tuned":
        return PretrainedCNNFeatures(
            engine="torch" if kind == "torch" else "openvino", cache=cache
        )
    data = load_textures()
    clf = FineTunedClassifier(head_epochs=1, epochs=1, augment="none", random_state=0)
    clf.fit(data.data[::20], data.target[::20])
    return clf.as_features(engine="torch", cache=cache)


def check(model, way, known, expected, new):
    """Fork, and compare with what this process computes."""
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    found = way(model, known, new)
    faulthandler.cancel_dump_traceback_later()
    alone = model.__class__(**{**model.get_params(deep=False), "cache": None})
    wanted = expected, alone.transform(new)
    errors = [
        np.abs(rows[place] - right).max() / np.abs(right).max()
        for rows, _, _ in found
        for place, right in zip((0, 2), wanted, strict=True)
    ]
    return {
        "way": way.__name__,
        "error": float(max(errors)),
        "known": [rows[1] for rows, _, _ in found],
        "new": [rows[3] for rows, _, _ in found],
        "engines": sorted({engine for _, engine, _ in found}),
        "torch": any(torch for _, _, torch in found),
    }


def main(kind, folder):
    warnings.simplefilter("error")
    X, found = images(), []
    ways = () if kind == "prepare" else WAYS
    caches = (None, FeatureStore(name="forks"), FeatureStore(Path(folder) / "store"))
    for cache in caches:
        model, known = make_model(kind, cache), next(X)
        expected = model.transform(known)
        for way in ways:
            case = check(model, way, known, expected, next(X))
            place = "none" if cache is None else "folder" if cache.path else "memory"
            found.append({"cache": place, **case})
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
