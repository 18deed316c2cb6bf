"""Check of SavedModel folders before TensorFlow loads them: their graphs may read and write any file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Operations that compute arrays from arrays and do nothing else. Loops are not among them: they may never end.
ALLOWED = frozenset(
    """
    Abs Add AddN AddV2 All Any ArgMax ArgMin AvgPool BatchMatMul BatchMatMulV2 BatchMatMulV3 BatchToSpaceND BiasAdd
    Bitcast BitwiseAnd BroadcastArgs BroadcastTo Cast Ceil ClipByValue ConcatV2 Const Conv2D Conv2DBackpropInput Cos
    Cumsum DepthToSpace DepthwiseConv2dNative Div DivNoNan Einsum Elu EnsureShape Equal Erf Erfc Exp ExpandDims
    Expm1 Fill Floor FloorDiv FloorMod FusedBatchNormV3 GatherNd GatherV2 Greater GreaterEqual Identity IdentityN
    Inv IsFinite IsInf IsNan LeakyRelu Less LessEqual Log Log1p LogSoftmax LogicalAnd LogicalNot LogicalOr MatMul
    Max MaxPool Maximum Mean Min Minimum MirrorPad Mod Mul MulNoNan Neg NoOp NotEqual OnesLike Pack Pad PadV2
    PartitionedCall Placeholder Pow Prod Range Rank ReadVariableOp RealDiv Reciprocal Relu Relu6 Reshape
    ResizeBilinear ResizeNearestNeighbor ReverseV2 RightShift Rint Round Rsqrt Select SelectV2 Selu Shape ShapeN
    Sigmoid Sign Sin Size Slice Softmax Softplus Softsign SpaceToBatchND SpaceToDepth Split SplitV Sqrt Square
    SquaredDifference Squeeze StatefulPartitionedCall StopGradient StridedSlice Sub Sum Tan Tanh Tile TopKV2
    Transpose Unpack Where ZerosLike
    """.split()
)


def foreign_saved_model(path: Path) -> str:
    """Return the name of an operation in a SavedModel folder that is not allowed, `""` if there is none.

    What saves and restores weights is allowed where only TensorFlow's own loader can reach it, which does not run it:
    in functions that neither an object of the model nor another function names.

    Raises:
        ValueError: It is broken, or of TensorFlow 1.
    """
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    stored = saved_model_pb2.SavedModel()
    try:
        stored.ParseFromString((path / "saved_model.pb").read_bytes())
    except DecodeError as error:
        raise ValueError("saved_model.pb is damaged") from error
    for graph in stored.meta_graphs:
        if not graph.HasField("object_graph_def"):  # TensorFlow would run all of it
            raise ValueError("saved_model.pb holds no objects of TensorFlow 2")
        functions = {function.signature.name: function for function in graph.graph_def.library.function}
        for function in _reachable(functions, graph.object_graph_def.SerializeToString()):
            for node in function.node_def:
                if node.op not in ALLOWED:
                    return node.op
    return ""


def _reachable(functions: dict[str, Any], objects: bytes) -> Iterator[Any]:
    """Yield the functions that objects name, and those that these name, by any field of theirs."""
    waiting, seen = [objects], set()
    while waiting:
        content = waiting.pop()
        for name in functions.keys() - seen:
            if name.encode() in content:
                seen.add(name)
                waiting.append(functions[name].SerializeToString())
                yield functions[name]
