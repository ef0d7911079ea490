"""FineTunedClassifier: its parameters, and how it is fitted."""

from dataclasses import fields, replace
from numbers import Real

from sklearn.utils import check_random_state
from sklearn.utils.validation import check_consistent_length

from .._backbones.saved import saved_digest
from .._features import PretrainedCNNFeatures
from .._images.input import read_input, set_input_tags
from .._images.windows import IMAGES
from .._report import FitTask, Report, say
from .._validation import (
    Interval,
    StrOptions,
    WholeNumber,
    check_cache,
    check_image_shape,
    check_labels,
    check_value_range,
    check_weights,
    with_callbacks,
)
from .labels import HoldOut, Labels
from .prediction import SHARED, TunedNetwork


class FineTunedClassifier(TunedNetwork):
    """Classifier of images that trains a new head and the top of a pretrained network.

    The new head first learns alone, on features of the untouched network that are
    computed once (`head_epochs`). The top blocks are then unfrozen and learn together
    with the head (`epochs`), lower blocks at lower rates [1]_. Neither the weights nor
    the statistics of frozen blocks change by a bit. Unfrozen norms learn too, but keep
    the statistics of the pretraining if there was one.

    Parameters
    ----------
    backbone : str or Backbone, default="mini"
        The network, as in :class:`PretrainedCNNFeatures`.
    weights : str, path, tuple, or None, default="default"
        The initial weights, as in :class:`PretrainedCNNFeatures`; None trains from
        random weights, best with ``unfreeze="all"``.
    unfreeze : int or str, default=1
        What learns in addition to the head: a number of blocks from the top, 0 for the
        head alone, "all", or the alias of the lowest layer that learns.
    head_epochs : int, default=3
        Epochs of the head alone. It learns from standardised features without
        augmentation, so these epochs cost almost nothing.
    epochs : int, default=10
        Epochs of head and blocks together; with ``unfreeze=0``, further epochs of the
        head.
    learning_rate : float, default=1e-3
        Peak learning rate of the head, reached after a quarter of the steps of AdamW.
        While a head of one layer learns alone, its rate is ten times as high.
    layer_decay : float, default=0.5
        Ratio of the learning rate of a block to that of the block above it. With
        ``weights=None`` all blocks learn at the same rate, since there is nothing to
        preserve.
    weight_decay : float, default=0.01
        Weight decay of AdamW; does not apply to biases and norms.
    batch_size : int, default=32
        Approximate number of images per step: batches have nearly equal sizes.
    augment : {"none", "light", "standard", "strong"} or callable, default="standard"
        Random changes of the training images: mirrored and shifted ("light"); mirrored,
        cropped and recoloured ("standard"); or, in addition, one random step of
        TrivialAugment and random erasing ("strong"). A callable takes one uint8 tensor
        (3, h, w) and returns another, of which the centre is used; for the same results
        in every fit, it must draw random numbers from torch, as transforms of
        torchvision do. With "none" the frozen blocks are computed only once.
    label_smoothing : float, default=0.0
        Share of each label that is distributed over all classes.
    dropout : float, default=0.0
        Dropout probability before the last layer of the new head.
    class_weight : dict, "balanced" or None, default=None
        Weights of the classes, as in other classifiers of scikit-learn.
    early_stopping : bool, default=False
        Whether to hold images out, stop when their accuracy no longer improves, and
        keep the best epoch of each phase: the most accurate one, and of several, the
        one with the smallest loss.
    validation_fraction : float, default=0.1
        Share of the images held out, stratified by class; only with `early_stopping`.
    n_iter_no_change : int, default=5
        Number of epochs to wait for an improvement; only with `early_stopping`.
    warm_start : bool, default=False
        Whether to continue from the last fit, without training the head alone again.
    image_shape, value_range, image_size : default=None
        As in :class:`PretrainedCNNFeatures`.
    protocols : tuple of str, default=()
        As in :class:`PretrainedCNNFeatures`.
    on_error : {"raise", "nan"}, default="raise"
        What happens to an image that cannot be read or has no finite features.
        "raise" raises :class:`ImageError` with its row. "nan" gives it a row of nan in
        `predict_proba` and `decision_function` and leaves it out of `fit`, with a
        warning; `predict` has no label for it and always raises.
    device : str, default="auto"
        "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:<index>".
    precision : {"float32", "bfloat16"}, default="float32"
        Precision of training, under autocast. Predictions are made in "float32".
    engine : {"auto", "torch", "openvino"}, default="auto"
        What runs the network in predictions, as in :class:`PretrainedCNNFeatures`.
    cache : "memory", path, FeatureStore, or None, default="memory"
        Where the features behind the predictions are stored, as in
        :class:`PretrainedCNNFeatures`.
    n_jobs : int or None, default=None
        Number of threads that decode images. None means all cores, unlike in
        scikit-learn, where it means 1.
    random_state : int, RandomState or None, default=None
        Controls shuffling, augmentation, dropout and new weights. On a CPU, the same
        seed gives the same classifier, bit for bit, also in several threads, if no code
        of yours draws from torch's global generator in another thread meanwhile.
    verbose : int, default=0
        Above 0, a line is printed for each epoch.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels.
    history_ : list of dict
        One entry for each epoch: "phase" ("head" or "joint"), "epoch", "loss",
        "accuracy" (of the training images, during the epoch), "learning_rate",
        "seconds", and with `early_stopping` also "validation_accuracy" and
        "validation_loss".
    n_iter_ : int
        Number of epochs.
    weights_ : dict of dict of str to ndarray
        The tuned "tail" and "head", and the "scaling" of what enters the head, which
        further training needs.
    seed_ : int
        The seed drawn from `random_state`.
    errors_ : list of tuple (int, str, str)
        Row, source and reason of the images that the last fit or prediction of this
        thread could not use.
    frozen_digest_ : str
        Hexadecimal digest of the weights that training started from and of their
        preprocessing.
    n_features_in_ : int
        Number of columns seen in `fit`; only for flat rows, data frames and named
        Series.
    feature_names_in_ : ndarray of shape (1,)
        Name of the column seen in `fit`; only for data frames and named Series.

    See Also
    --------
    PretrainedCNNFeatures : Features of a frozen network for any classifier.
    recommend_strategy : Find out which of them suits your images.

    Notes
    -----
    Pickles hold the tuned blocks and the head. The frozen blocks are loaded from the
    same place as in `fit`, and refused if they have changed.

    `fit` checks that the features of the images are finite before it trains anything.
    Most fits compute these features anyway, so the check costs nothing. Where they do
    not (images held out with ``head_epochs=0``, and augmented images in a fit that
    continues another one), only images with pixel values out of range are checked;
    these pass through the network once more.

    References
    ----------
    .. [1] Howard, Ruder, "Universal Language Model Fine-tuning for Text
       Classification", 2018.

    Examples
    --------
    >>> from skdeepfeat import FineTunedClassifier, load_textures
    >>> textures = load_textures()
    >>> X, y = textures.data[::8], textures.target[::8]
    >>> clf = FineTunedClassifier(epochs=1, random_state=0).fit(X, y)
    >>> clf.predict(X[:3]).shape
    (3,)
    """

    _parameter_constraints: dict = {
        "unfreeze": [WholeNumber(0), str],
        "head_epochs": [WholeNumber(0)],
        "epochs": [WholeNumber(0)],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "layer_decay": [Interval(Real, 0, 1, closed="right")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "batch_size": [WholeNumber(1)],
        "augment": [StrOptions({"none", "light", "standard", "strong"}), callable],
        "label_smoothing": [Interval(Real, 0, 1, closed="left")],
        "dropout": [Interval(Real, 0, 1, closed="left")],
        "class_weight": [dict, StrOptions({"balanced"}), None],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [WholeNumber(1)],
        "warm_start": ["boolean"],
        **{
            name: PretrainedCNNFeatures._parameter_constraints[name]
            for name in ("backbone", "weights", "image_size", "verbose", *SHARED)
        },
        "device": [str],
        "precision": [StrOptions({"float32", "bfloat16"})],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        backbone="mini",
        *,
        weights="default",
        unfreeze=1,
        head_epochs=3,
        epochs=10,
        learning_rate=1e-3,
        layer_decay=0.5,
        weight_decay=1e-2,
        batch_size=32,
        augment="standard",
        label_smoothing=0.0,
        dropout=0.0,
        class_weight=None,
        early_stopping=False,
        validation_fraction=0.1,
        n_iter_no_change=5,
        warm_start=False,
        image_shape=None,
        value_range=None,
        image_size=None,
        protocols=(),
        on_error="raise",
        device="auto",
        precision="float32",
        engine="auto",
        cache="memory",
        n_jobs=None,
        random_state=None,
        verbose=0,
    ):
        self.backbone = backbone
        self.weights = weights
        self.unfreeze = unfreeze
        self.head_epochs = head_epochs
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.layer_decay = layer_decay
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.augment = augment
        self.label_smoothing = label_smoothing
        self.dropout = dropout
        self.class_weight = class_weight
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.warm_start = warm_start
        self.image_shape = image_shape
        self.value_range = value_range
        self.image_size = image_size
        self.protocols = protocols
        self.on_error = on_error
        self.device = device
        self.precision = precision
        self.engine = engine
        self.cache = cache
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    @with_callbacks
    def fit(self, X, y, sample_weight=None):
        """Train on images and their labels.

        Parameters
        ----------
        X : sequence of n_images images
            As in :class:`PretrainedCNNFeatures`.
        y : array-like of shape (n_images,)
            Labels of any type, of at least two classes.
        sample_weight : array-like of shape (n_images,), default=None
            Weights of the images; images of weight 0 are left out.

        Returns
        -------
        self : FineTunedClassifier
            The fitted classifier.

        Raises
        ------
        ImageError
            If images cannot be read or have no finite features; raised before anything
            is trained. With ``on_error="nan"``, only if a class has no other images.
        OSError
            If the decoded images do not fit in the folder for temporary files.
        ValueError
            If `y` has one class only, or `unfreeze` is deeper than the network.
        WeightsError
            If the initial weights cannot be found or do not fit the network.
        """
        continues = self.warm_start and hasattr(self, "weights_")
        with FitTask(self, X, "epoch") as task:
            return self._train(X, y, sample_weight, None, continues, task.step_done)

    def partial_fit(self, X, y, classes=None, sample_weight=None):
        """Train for one more epoch on these images.

        The first call trains the head alone first, as `fit` does. Each call runs
        through a full cycle of learning rates. No images are held out.

        Parameters
        ----------
        X : sequence of n_images images
            As in `fit`.
        y : array-like of shape (n_images,)
            Labels.
        classes : array-like of shape (n_classes,), default=None
            All labels that can occur in any call; required in the first call.
        sample_weight : array-like of shape (n_images,), default=None
            Weights of the images.

        Returns
        -------
        self : FineTunedClassifier
            The fitted classifier.

        Raises
        ------
        ValueError
            If the first call has no `classes`, another call has other ones, or
            ``class_weight="balanced"``; also as in `fit`.
        """
        continues = hasattr(self, "weights_")
        if self.class_weight == "balanced":
            raise ValueError(
                "class_weight='balanced' cannot be computed from the images of a "
                "single call of partial_fit. Pass the weights as a dict."
            )
        if classes is None and not continues:
            raise ValueError(
                "The first call of partial_fit needs all labels that can occur in any "
                "call. Pass, for example, classes=np.unique(y)."
            )
        return self._train(X, y, sample_weight, classes, continues, epochs=1)

    # Fit ----------------------------------------------------------------------------

    def _train(
        self, X, y, sample_weight, classes, continues, stop=lambda: False, epochs=None
    ):
        """Do what fit and partial_fit share."""
        images, labels = self._check_input(X, y, sample_weight, classes, continues)
        seed, first_seed = self._seeds(continues)
        anew = "call fit with warm_start=False"
        source, key = self._frozen_source(anew) if continues else self._source(seed)
        self._frozen_features(first_seed).fit(images)  # refuse now what would fail late

        from .fitted import Fitted
        from .training import Start, as_in_a_fresh_process
        from .tuned_part import find_tuned_part

        tuned = find_tuned_part(source, self.unfreeze)
        previous = Fitted(**self.weights_) if continues else None
        start = Start(source, key, tuned, len(labels.classes), previous)
        regime = self._regime(seed, epochs)
        is_part = epochs is not None
        holds_out = self.early_stopping and not is_part
        hold_out = HoldOut(self.validation_fraction, first_seed) if holds_out else None
        with as_in_a_fresh_process():
            training_set = self._read(images, labels, hold_out, source.input)
            fitted = self._tune(start, training_set, regime, stop, not is_part)
        self.classes_ = labels.classes
        self.seed_ = first_seed
        self.frozen_digest_ = saved_digest(source, by_values=True)
        self._keep(fitted, continues)
        return self

    def _check_input(self, X, y, sample_weight, classes, continues):
        """Images and labels, after all checks that need no network."""
        self._validate_params()
        check_image_shape(self.image_shape)
        check_cache(self.cache)
        allow_nan = self.on_error == "nan"
        images = read_input(self, X, reset=not continues, allow_nan=allow_nan)
        y = check_labels(self, y)
        check_consistent_length(images, y)
        weights = check_weights(sample_weight, len(y))
        earlier = self.classes_ if continues else None
        return images, Labels.encode(y, weights, self.class_weight, classes, earlier)

    def _seeds(self, continues) -> tuple[int, int]:
        """Seeds of this fit, and of the first one that it continues."""
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        if not continues:
            return seed, seed
        seed = (self.seed_ + self.n_iter_) % 2**31  # other batches than before
        return seed, self.seed_

    def _read(self, images, labels, hold_out, spec):
        """Decode the images that count."""
        from .data import read_training_set

        value_range = check_value_range(self.value_range)
        return read_training_set(
            images, labels, hold_out, spec, value_range, self.n_jobs
        )

    def _tune(self, start, training_set, regime, stop, needs_all_classes):
        """Train without the images that cannot be read or have no finite features."""
        from .data import UnusableImages
        from .training import fine_tune

        def epoch_done(entry):
            self._print_epoch(entry)
            return stop()

        raises, errors = self.on_error == "raise", training_set.images.errors
        report = Report(self, len(training_set.labels.targets), IMAGES)
        while True:
            training_set = training_set.without(errors, raises, needs_all_classes)
            for error in errors:
                report.fail(error)
            try:
                return fine_tune(start, *training_set.split(), regime, epoch_done)
            except UnusableImages as found:
                errors = found.errors

    def _keep(self, fitted, continues) -> None:
        """Store what training produced."""
        names = ("tail", "head", "scaling")
        self.weights_ = {name: getattr(fitted, name) for name in names}
        earlier = vars(self)["history_"] if continues else []
        self.history_ = [*earlier, *fitted.history]
        self.n_iter_ = len(self.history_)

    def _regime(self, seed, epochs):
        """The parameters of training, as one value."""
        from .training import Regime

        names = {field.name for field in fields(Regime)} - {"seed"}
        regime = Regime(**{name: getattr(self, name) for name in names}, seed=seed)
        return regime if epochs is None else replace(regime, epochs=epochs)

    def _print_epoch(self, entry) -> None:
        """Print a line about an epoch, if verbose."""
        if self.verbose:
            seen = "validation_accuracy"
            held_out = f", held out {entry[seen]:.3f}" if seen in entry else ""
            say(
                f"{entry['phase']:5} epoch {entry['epoch']}: loss {entry['loss']:.4f}, "
                f"accuracy {entry['accuracy']:.3f}{held_out}, {entry['seconds']:.1f} s"
            )

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        set_input_tags(tags, self.image_shape)
        return tags
