"""to_onnx: a fitted estimator as one graph, compared with it, described and saved."""

from importlib.metadata import version

from .._composites import Composite, GivenRows, best_of, divide
from .._files import place_to_write, replacing
from .extra import require_extra

PRODUCER = "skdeepfeat"


def to_onnx(estimator, path=None, *, X=None, resize=False):
    """Export a fitted estimator, from pixels to predictions, as one graph of ONNX.

    The graph contains the network up to its layers, pooling, all steps after it and
    the weights. onnxruntime runs it without torch, scikit-learn or this package.

    Parameters
    ----------
    estimator : estimator
        A fitted :class:`PretrainedCNNFeatures` or :class:`FineTunedClassifier`, or a
        pipeline or another composite of scikit-learn that contains one.
    path : str or path, default=None
        File to write. An existing file is replaced. None writes no file.
    X : sequence of n_images images, default=None
        8-bit images on which the graph is compared with the estimator. None compares
        them on the textures of :func:`load_textures`; your own images are better.
    resize : bool, default=False
        Whether the graph resizes and crops photos itself. It then takes one photo of
        any size.

    Returns
    -------
    model : onnx.ModelProto
        The graph. Its input is

        images : uint8 of shape (n, side, side, 3)
            Images that are already resized and cropped; or, with `resize`,
        image : uint8 of shape (h, w, 3)
            One photo, upright and in RGB.

        Its outputs are those of the following that apply to the estimator:

        label : int64 or string of shape (n,)
            Predicted labels.
        probabilities : float32 of shape (n, n_classes)
            What `predict_proba` returns.
        scores : float32 of shape (n, n_classes) or (n,)
            Decision function of a linear classifier without probabilities, with a
            column for each class, or of an outlier detector.
        value : float32 of shape (n,) or (n, n_outputs)
            Predicted numbers of a regressor.
        features : float32 of shape (n, n_features)
            Output of an estimator that only transforms.

    Raises
    ------
    ImportError
        If the extra ``[onnx]`` is not installed.
    ValueError
        If a step cannot be converted, or predicts something else in ONNX than in
        scikit-learn: probabilities that differ by more than 1e-4, or another label,
        except where the two best classes tie. The message names the step and says what
        to use instead. Also if `value_range` is not that of 8-bit images, if a
        classifier was fitted with a single class or predicts several labels, or if
        `resize` is set and an estimator has ``decode="fast"``.
    OSError
        If the folder of `path` does not exist, or cannot be written.

    See Also
    --------
    embed_weights : A copy of an estimator that is saved with its weights.

    Notes
    -----
    The network is exported by torch, and the steps after it by skl2onnx [1]_. The
    metadata of the graph state the version of this package, the backbone, its weights
    with digest and licence, and the preprocessing in words and numbers.

    With ``resize=True``, the graph resizes as Pillow does, but in floats. For photos
    that get smaller, up to 6 bytes in ten thousand differ, by 1 of 255; for others, up
    to a tenth, by 1 or 2. The metadata "resize_largest_difference" and
    "resize_labels_changed" state by how much the predictions for X differ from those of
    the estimator.

    References
    ----------
    .. [1] `sklearn-onnx: Convert your scikit-learn model into ONNX
       <https://onnx.ai/sklearn-onnx/>`_.

    Examples
    --------
    >>> from sklearn.linear_model import RidgeClassifier
    >>> from sklearn.pipeline import make_pipeline
    >>> from skdeepfeat import PretrainedCNNFeatures, load_textures, to_onnx
    >>> textures = load_textures()
    >>> model = make_pipeline(PretrainedCNNFeatures(), RidgeClassifier())
    >>> model = model.fit(textures.data[::8], textures.target[::8])
    >>> graph = to_onnx(model)
    >>> [output.name for output in graph.graph.output]
    ['label', 'scores']
    """
    require_extra()
    if path is not None:
        path = place_to_write(path, "path of to_onnx")  # an export takes a while
    import onnx

    from .checking import expected_outputs
    from .examples import examples_of, refuse_fast
    from .heads import refuse_known
    from .metadata import describe

    composite, estimator, X = _of_photos(best_of(estimator), X)
    if resize:
        refuse_fast(composite)
    refuse_known(composite.head)
    examples = examples_of(composite, X)
    expected = expected_outputs(estimator, examples.X)
    model = _checked_graph(composite, examples, expected)
    about = describe(composite, estimator, examples.recipe)
    if resize:
        model, effect = _with_resize(model, examples, expected)
        about |= effect
    onnx.helper.set_model_props(model, about)
    model.producer_name, model.producer_version = PRODUCER, version(PRODUCER)
    onnx.checker.check_model(model)
    if path is not None:
        with replacing(path) as partial:
            partial.write_bytes(model.SerializeToString())
    return model


def _of_photos(estimator, X) -> tuple:
    """The divided estimator, itself, and images, without any tables around photos."""
    from .simpler import remove_words, without_tables

    simpler = without_tables(estimator)
    if simpler is not estimator and X is not None:
        X = divide(estimator).images_of(X)[0]
    composite = divide(simpler)
    remove_words(composite.head)
    return composite, simpler, X


def _checked_graph(composite: Composite, examples, expected: dict):
    """The graph of network and head, each compared with what it should compute."""
    from .checking import check_head, check_rows, run
    from .heads import convert_head
    from .networks import export_networks

    network = export_networks(composite.features, examples.recipe.image_size)
    rows = run(network, images=examples.pixels)["features"]
    check_rows(rows, composite, examples.X)
    if isinstance(composite.head, GivenRows):
        return network
    head = convert_head(composite, expected)
    check_head(head, composite, rows, expected)
    return _joined(network, head, "features", "rows")


def _with_resize(model, examples, expected: dict):
    """The graph for photos of any size, and by how much its predictions differ."""
    from .checking import check_resized
    from .resizing import resize_graph

    model = _joined(resize_graph(examples.recipe), model, "images", "images")
    return model, check_resized(model, examples.photos(), expected)


def _joined(first, second, output: str, input_: str):
    """One graph of two, whose names may be the same."""
    from onnx import compose

    first = compose.add_prefix(first, "before_", rename_inputs=False)
    second = compose.add_prefix(second, "after_", rename_outputs=False)
    joint = (f"before_{output}", f"after_{input_}")
    return compose.merge_models(first, second, [joint])
