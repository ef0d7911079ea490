"""Compare timm's networks in this package with timm itself.

    python tools/check_timm.py                   # about 100 architectures
    python tools/check_timm.py resnet18 --openvino

Weights are random, with random statistics of norms, so that no step leaves its input
as it is. Nothing is downloaded.
"""

import argparse
import json
import time
from dataclasses import replace

import torch

from skdeepfeat._backbones.layouts import LAYOUTS
from skdeepfeat._backbones.registry import resolve_backbone
from skdeepfeat._backbones.weights import RandomWeights
from skdeepfeat._engines.base import PooledLayers
from skdeepfeat._networks.activations import activations_of
from skdeepfeat._networks.building import trial_network
from skdeepfeat._networks.layers import aliased_layers
from skdeepfeat._networks.sharing import SharedNetwork
from skdeepfeat._networks.stages import MOST_BLOCKS
from skdeepfeat._networks.structure import bind, structure_of

SMALL = 128  # pixels, for networks that take any size
TOLERANCE = 1e-5  # of the largest value
NAMES = """
resnet18 resnet26d resnetv2_50 resnetv2_50x1_bit resnet50_clip seresnext26t_32x4d
resnest14d ecaresnet26t skresnet18 res2net50_26w_4s regnety_016 regnetx_002 nf_regnet_b0
dm_nfnet_f0 nf_resnet50 densenet121 dpn68 dla34 vgg11_bn vgg11 efficientnet_b0
tf_efficientnet_b0 tf_efficientnet_lite0 efficientnetv2_rw_t tf_efficientnetv2_b0
mobilenetv2_100 mobilenetv3_small_100 mobilenetv4_conv_small fbnetv3_b lcnet_050
ghostnet_100 ghostnetv2_100 mnasnet_100 tinynet_e hardcorenas_a mixnet_s spnasnet_100
semnasnet_100 mobileone_s0 repvgg_a0 fastvit_t8 repvit_m0_9 levit_128s
efficientformer_l1 efficientformerv2_s0 edgenext_xx_small mobilevit_xxs mobilevitv2_050
efficientvit_b0 efficientvit_m0 convnext_atto convnextv2_atto inception_next_atto
convmixer_768_32 poolformer_s12 caformer_s18 hgnet_tiny hgnetv2_b0 starnet_s1 rdnet_tiny
nasnetalarge pnasnet5large xception41 legacy_xception inception_v3 inception_v4
inception_resnet_v2 hrnet_w18_small cspresnet50 darknet53 vit_tiny_patch16_224
vit_small_patch14_dinov2 vit_small_patch16_dinov3 vit_base_patch16_siglip_224
vit_base_patch16_clip_224 eva02_tiny_patch14_224 deit_tiny_distilled_patch16_224
deit3_small_patch16_224 cait_xxs24_224 xcit_nano_12_p16_224 beit_base_patch16_224
swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swin_s3_tiny_224 twins_svt_small
pvt_v2_b0 hiera_tiny_224 maxvit_tiny_tf_224 coatnet_0_rw_224 davit_tiny tiny_vit_5m_224
gcvit_xxtiny mvitv2_tiny convit_tiny coat_tiny crossvit_9_240 tnt_s_patch16_224
pit_ti_224 volo_d1_224 nest_tiny_jx mixer_b16_224 resmlp_12_224 gmlp_s16_224
sequencer2d_s focalnet_tiny_srf selecsls42b tresnet_m
""".split()


def randomised(net):
    """Give norms, scales and gains values of no special meaning."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point() and tensor.ndim == 1:
                low, high = (0.8, 1.2) if "mean" not in name else (-0.1, 0.1)
                tensor.uniform_(low, high, generator=generator)
    return net


def images(size):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(2, 3, size, size, generator=generator)


def difference(found, expected):
    """The largest difference, relative to the largest value."""
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max().clamp(1e-9))


def is_same(found, expected):
    """Whether the places of two activations are the same, in any order."""
    if difference(found, expected) < TOLERANCE:
        return True
    return difference(found.sort(2)[0], expected.sort(2)[0]) < TOLERANCE


def as_maps(layer, value):
    """The places of an activation, as (n, channels, places)."""
    return LAYOUTS[layer.layout].as_maps(value).flatten(2)


def random_network(backbone):
    """The structure of a network at a small size, a network with random weights in
    double precision, so that no rounding adds up, and two images."""
    size = backbone.input.image_size if backbone.size_option else SMALL
    net = randomised(trial_network(backbone, size)).double()
    return structure_of(backbone, size), net, images(size).double()


def compare(name, openvino=False, layers=None):
    """What the package and timm compute for a network, at these layers, or at those
    that are found without the table."""
    backbone = replace(resolve_backbone(f"timm/{name}"), layers=layers)
    start = time.perf_counter()
    layers = aliased_layers(backbone)
    seconds = round(time.perf_counter() - start, 2)
    structure, net, x = random_network(backbone)
    source = RandomWeights(backbone, backbone.input.scaled(len(x[0, 0])), 0)
    nodes = tuple(dict.fromkeys(layer.node for layer in layers))
    node_of = {layer.alias: layer.node for layer in layers}
    with torch.no_grad():
        plain = bind(structure, net, nodes)(x)
        expected = net.forward_head(net.forward_features(x), pre_logits=True)
        scores = net(x)
        stages = compare_stages(net, x, layers, plain)
        network = SharedNetwork(net.to(memory_format=torch.channels_last))
        rewritten = activations_of(network, source, nodes)
        fast = rewritten(x.contiguous(memory_format=torch.channels_last))
    logits = plain[node_of["logits"]] if "logits" in node_of else expected
    found = {
        "name": name,
        "seconds": seconds,
        "traced": structure.traceable,
        "fault": structure.fault,
        "penultimate": difference(plain[node_of["penultimate"]], expected),
        "logits": difference(logits, scores),
        "faster": max(difference(fast[n], plain[n]) for n in nodes),
        "layers": " ".join(node_of),
        **stages,
    }
    if openvino:
        found["openvino"] = converts(source, layers)
    return found


def compare_stages(net, x, layers, values):
    """Which stages are what timm gives, and which of those of timm are missing."""
    if not hasattr(net, "forward_intermediates"):
        return {"stages": "not in timm"}
    try:
        given = net.forward_intermediates(x, intermediates_only=True)
    except Exception as error:
        return {"stages": f"not in timm: {error}"}
    given = [value.flatten(2) for value in given]
    blocks = [layer for layer in layers if layer.layout != "vector"]
    maps = {layer.alias: as_maps(layer, values[layer.node]) for layer in blocks}
    wrong = [
        alias
        for alias, value in maps.items()
        if alias != "stem" and not any(is_same(value, v) for v in given)
    ]
    missing = [
        i
        for i, value in enumerate(given)
        if not any(is_same(v, value) for v in maps.values())
    ]
    return {"stages": len(given), "wrong": wrong, "missing": missing}


def converts(source, layers):
    """Whether OpenVINO computes the same, or why not."""
    from skdeepfeat._engines.openvino_conversion import convert

    last = [layer for layer in layers if layer.alias == "penultimate"]
    pooled = [(layer, "avg") for layer in last]
    try:
        convert(PooledLayers.of(source, b"", pooled))
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    return "same"


def is_good(found):
    close = found["penultimate"] < TOLERANCE and found["logits"] < TOLERANCE
    missing = found.get("missing") and found["stages"] <= MOST_BLOCKS
    stages = not found.get("wrong") and not missing
    return found["traced"] and close and stages and found["faster"] < 1e-3


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--openvino", action="store_true")
    options = parser.parse_args()
    for name in options.names:
        try:
            shipped = resolve_backbone(f"timm/{name}").layers
            found = compare(name, options.openvino, shipped)
            print("good" if is_good(found) else "BAD", json.dumps(found), flush=True)
        except Exception as error:
            print("ERROR", name, type(error).__name__, str(error)[:300], flush=True)


if __name__ == "__main__":
    main()
