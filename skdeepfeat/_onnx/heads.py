"""A head of scikit-learn → a graph of ONNX, by skl2onnx: rows → predictions."""

import onnx
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType

from .._composites import Composite, GivenRows
from .extra import IR_VERSION, OPSETS


def convert_head(composite: Composite):
    """The graph "rows" (n, width) float32 → what the head predicts."""
    slices = composite.slices
    width = slices[-1].stop
    converter = _converter_of(slices)
    model = convert_sklearn(
        composite.head,
        initial_types=[("rows", FloatTensorType([None, width]))],
        target_opset=OPSETS,
        custom_shape_calculators={GivenRows: _shape_of(slices)},
        custom_conversion_functions={GivenRows: converter},
    )
    model.ir_version = IR_VERSION
    # skl2onnx writes for these versions, and then states the lowest that may do.
    del model.opset_import[:]
    model.opset_import.extend(
        onnx.helper.make_opsetid(domain, version) for domain, version in OPSETS.items()
    )
    return _without_dictionaries(model)


def _shape_of(slices):
    def shape(operator):
        """The width of the rows that a stand-in returns."""
        place = slices[operator.raw_operator.place]
        operator.outputs[0].type = FloatTensorType([None, place.stop - place.start])

    return shape


def _converter_of(slices):
    def convert(scope, operator, container):
        """A stand-in takes its part of the rows of all feature steps."""
        place = slices[operator.raw_operator.place]
        names = [scope.get_unique_variable_name(n) for n in ("start", "stop", "axis")]
        for name, value in zip(names, (place.start, place.stop, 1), strict=True):
            container.add_initializer(name, onnx.TensorProto.INT64, [1], [value])
        rows, out = operator.inputs[0].full_name, operator.outputs[0].full_name
        container.add_node(
            "Slice", [rows, *names], out, name=scope.get_unique_operator_name("Slice")
        )

    return convert


def _without_dictionaries(model):
    """The same graph with an array of probabilities in place of dictionaries."""
    graph = model.graph
    for node in [node for node in graph.node if node.op_type == "ZipMap"]:
        (output,) = [out for out in graph.output if out.name == node.output[0]]
        graph.node.remove(node)
        output.CopyFrom(
            onnx.helper.make_tensor_value_info(
                output.name, onnx.TensorProto.FLOAT, ["n", None]
            )
        )
        graph.node.append(
            onnx.helper.make_node("Identity", list(node.input), list(node.output))
        )
    return model
