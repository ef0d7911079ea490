"""to_onnx: a fitted estimator as one graph, checked and saved."""

from .._composites import GivenRows, divide
from .extra import IR_VERSION, require_extra


def to_onnx(estimator, path=None, *, X=None, resize=False):
    """thin"""
    require_extra()
    import onnx

    composite = divide(estimator)
    from .heads import convert_head
    from .networks import export_networks

    side = composite.features[0]._plan().pooled.source.input.image_size
    network = export_networks(composite.features, side)
    network.ir_version = IR_VERSION
    network.opset_import.append(onnx.helper.make_opsetid("ai.onnx.ml", 3))
    if isinstance(composite.head, GivenRows):
        return network
    head = onnx.compose.add_prefix(convert_head(composite), "head_")
    model = onnx.compose.merge_models(network, head, [("features", "head_rows")])
    if path:
        onnx.save(model, path)
    return model
