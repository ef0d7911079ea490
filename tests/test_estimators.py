"""scikit-learn's common checks on flat rows, and eleven that are not public."""

import pytest
from sklearn.base import clone
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import (
    estimator_checks_generator,
    parametrize_with_checks,
)

from skdeepfeat import FineTunedClassifier, PretrainedCNNFeatures

# The checks draw numbers of any size, targets of noise, and mix frames and arrays; all
# of these warn rightly.
pytestmark = [
    pytest.mark.filterwarnings("ignore::skdeepfeat.ImageWarning"),
    pytest.mark.filterwarnings("ignore::skdeepfeat.LayerWarning"),
    pytest.mark.filterwarnings("ignore:X (has|does not have valid) feature names"),
]

# Why a check is expected to fail; each is replaced by a test of our own.
EXPECTED_FAILURES = {
    "check_sample_weight_equivalence_on_dense_data": (
        "copies of an image come in other batches; tested statistically instead"
    ),
}
EXPECTED_EXTRA_FAILURES = {
    "check_get_feature_names_out_error": (
        "wants NotFittedError before fit, but names are known without it"
    ),
}
EXTRA_CHECKS = [
    "check_dataframe_column_names_consistency",
    "check_transformer_get_feature_names_out",
    "check_transformer_get_feature_names_out_pandas",
    "check_param_validation",
    "check_set_output_transform",
    "check_set_output_transform_pandas",
    "check_set_output_transform_polars",
    "check_global_output_transform_pandas",
    "check_global_set_output_transform_polars",
    "check_inplace_ensure_writeable",
    "check_get_feature_names_out_error",
]
CHECKS_WITHOUT_DATA = [
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_estimator_tags_renamed",
    "check_get_params_invariance",
    "check_mixin_order",
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_set_params",
    "check_valid_tag_types",
    "check_do_not_raise_errors_in_init_or_set_params",
]
# Also stated in the README.
NUMBER_OF_CHECKS = {PretrainedCNNFeatures: 45, FineTunedClassifier: 60}


def flat_rows():
    return PretrainedCNNFeatures("tiny", image_shape=(1, -1))


def flat_rows_choosing():
    return PretrainedCNNFeatures("tiny", image_shape=(1, -1), layer="auto")


def flat_rows_classifier():
    return FineTunedClassifier(
        "tiny",
        image_shape=(1, -1),
        head_epochs=10,
        epochs=3,
        learning_rate=0.01,
        augment="none",
        random_state=0,
    )


def expected_failures(estimator):
    return EXPECTED_FAILURES if isinstance(estimator, FineTunedClassifier) else {}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.DataConversionWarning")
@parametrize_with_checks(
    [flat_rows(), flat_rows_choosing(), flat_rows_classifier()],
    expected_failed_checks=expected_failures,
)
def test_common_check(estimator, check):
    check(estimator)


@pytest.mark.parametrize(
    "estimator", [flat_rows(), flat_rows_choosing(), flat_rows_classifier()]
)
def test_common_checks_are_not_switched_off(estimator):
    checks = list(estimator_checks_generator(estimator))
    assert len(checks) >= NUMBER_OF_CHECKS[type(estimator)]


@pytest.mark.parametrize("make", [flat_rows, flat_rows_choosing])
@pytest.mark.parametrize("name", EXTRA_CHECKS)
def test_extra_check(name, make, request):
    if make is flat_rows and name in EXPECTED_EXTRA_FAILURES:
        reason = EXPECTED_EXTRA_FAILURES[name]
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    estimator = make()
    getattr(estimator_checks, name)(type(estimator).__name__, clone(estimator))


@pytest.mark.parametrize("name", CHECKS_WITHOUT_DATA)
@pytest.mark.parametrize("kind", [PretrainedCNNFeatures, FineTunedClassifier])
def test_check_without_data_on_image_input(name, kind):
    check = getattr(estimator_checks, name)
    check(kind.__name__, kind("tiny"))
