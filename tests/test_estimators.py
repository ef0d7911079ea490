"""scikit-learn's common checks on flat rows, and the eleven it keeps to itself."""

import pytest
from sklearn.base import clone
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import (
    estimator_checks_generator,
    parametrize_with_checks,
)

from skdeepfeat import PretrainedCNNFeatures

# The checks draw numbers of any size, and mix frames and arrays; both warn rightly.
pytestmark = [
    pytest.mark.filterwarnings("ignore::skdeepfeat.ImageWarning"),
    pytest.mark.filterwarnings("ignore:X (has|does not have valid) feature names"),
]

# Why a check is expected to fail; each is replaced by a test of our own.
EXPECTED_FAILURES: dict[str, str] = {}
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
NUMBER_OF_CHECKS = 45  # also stated in the README


def flat_rows():
    return PretrainedCNNFeatures("tiny", image_shape=(1, -1))


@parametrize_with_checks(
    [flat_rows()], expected_failed_checks=lambda estimator: EXPECTED_FAILURES
)
def test_common_check(estimator, check):
    check(estimator)


def test_common_checks_are_not_switched_off():
    assert len(list(estimator_checks_generator(flat_rows()))) >= NUMBER_OF_CHECKS


@pytest.mark.parametrize("name", EXTRA_CHECKS)
def test_extra_check(name, request):
    if name in EXPECTED_EXTRA_FAILURES:
        reason = EXPECTED_EXTRA_FAILURES[name]
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    estimator = flat_rows()
    getattr(estimator_checks, name)(type(estimator).__name__, clone(estimator))


@pytest.mark.parametrize("name", CHECKS_WITHOUT_DATA)
def test_check_without_data_on_image_input(name):
    check = getattr(estimator_checks, name)
    check("PretrainedCNNFeatures", PretrainedCNNFeatures("tiny"))
