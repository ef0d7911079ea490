"""Rounding to TF32, as asked for and without a trace in the process."""

import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from skdeepfeat._engines.tf32 import arithmetic

newer = pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"),
    reason="torch has one setting only",
)

# What users set, by the newer settings and the older ones.
SETTINGS = {
    "nothing": "pass",
    "all tf32": "b.fp32_precision = 'tf32'",
    "all ieee": "b.fp32_precision = 'ieee'",
    "cuda tf32": "b.cudnn.fp32_precision = 'tf32'",
    "cuda ieee": "b.cudnn.fp32_precision = 'ieee'",
    "conv none": "b.cudnn.conv.fp32_precision = 'none'",
    "conv ieee": "b.cudnn.conv.fp32_precision = 'ieee'",
    "matmul tf32": "b.cuda.matmul.fp32_precision = 'tf32'",
    "older matmul": "b.cuda.matmul.allow_tf32 = True",
    "older conv": "b.cudnn.allow_tf32 = False",
    "medium": "torch.set_float32_matmul_precision('medium')",
}

CODE = """
import sys, torch
from skdeepfeat._engines.tf32 import arithmetic, own_precision
b = torch.backends
get, put = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter
ABOVE = ("generic", "all"), ("cuda", "all"), ("mkldnn", "all")
PARTS = *ABOVE, *((kind, what) for kind in ("cuda", "mkldnn")
                  for what in ("matmul", "conv", "rnn"))

def older():
    found = []
    for read in (
        lambda: b.cuda.matmul.allow_tf32,
        lambda: b.cudnn.allow_tf32,
        torch.get_float32_matmul_precision,
    ):
        try:
            found.append(read())
        except RuntimeError:
            found.append("an error")
    return found

def state():
    "What holds, now and after whatever a user may set above."
    found = [older(), [get(*part) for part in PARTS]]
    for part in ABOVE:
        before = own_precision(part)
        for value in ("ieee", "tf32", "none"):
            put(*part, value)
            found.append([get(*part) for part in PARTS])
        put(*part, before)
    return found

exec(sys.argv[1])
before = state()
for precision in ("float32", "tf32"):
    with arithmetic(precision, "cuda"):
        rounds = b.cuda.matmul.fp32_precision == "tf32"
        assert rounds == (precision == "tf32")
        assert not [
            now for now, then in zip(older(), before[0], strict=True)
            if now == "an error" != then
        ]
    assert state() == before
    try:
        with arithmetic(precision, "cuda"):
            raise KeyError
    except KeyError:
        assert state() == before
"""


@newer
@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_the_settings_of_the_process_are_put_back_exactly(setting):
    found = subprocess.run(
        [sys.executable, "-c", CODE, setting], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr


class Seen(TorchDispatchMode):
    """Notes how convolutions are told to compute."""

    def __init__(self):
        super().__init__()
        self.told = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._convolution.default:
            self.told.append(args[-1])
        return function(*args, **(kwargs or {}))


def network():
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding="same"),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.ConvTranspose2d(8, 4, 3),
        torch.nn.Flatten(),
        torch.nn.Linear(4 * 18 * 18, 5),
    ).eval()


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_each_convolution_is_told_how_to_round(precision):
    net, x = network(), torch.rand(2, 3, 16, 16)
    with torch.inference_mode():
        expected = net(x)
        with Seen() as seen, arithmetic(precision, "cuda"):
            rows = net(x)
    assert seen.told == [precision == "tf32"] * 2
    assert torch.equal(rows, expected)


F = torch.nn.functional
W = torch.rand(4, 4, 3)
CALLS = {
    "one dimension": lambda x: F.conv1d(x[..., 0], W),
    "two": lambda x: F.conv2d(x, W[..., None], padding="same", stride=1),
    "three": lambda x: F.conv3d(x[..., None], weight=W[..., None, None]),
    "transposed": lambda x: F.conv_transpose2d(x, W[..., None], None, 2),
    "one image": lambda x: torch.conv2d(x[0], W[..., None]),
    "operation": lambda x: torch.ops.aten.conv2d(x, W[..., None]),
    "overload": lambda x: torch.ops.aten.conv2d.default(x, W[..., None]),
    "module": lambda x: torch.nn.Conv2d(4, 2, 1, padding_mode="circular", padding=1)(x),
    "graph": lambda x: torch.fx.symbolic_trace(torch.nn.Conv2d(4, 2, 1))(x),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("gradients", [False, True])
def test_whoever_calls_a_convolution_is_told(call, gradients):
    x = torch.rand(2, 4, 9, 9, requires_grad=gradients)
    with Seen() as seen, arithmetic("float32", "cuda"):
        rows = call(x)
    assert seen.told == [False]
    torch.manual_seed(0)
    with arithmetic("float32", "cuda"):
        rows = call(x)
    torch.manual_seed(0)
    assert torch.equal(rows, call(x))


def test_no_compiler_is_imported():
    code = (
        "import sys, torch; from skdeepfeat._engines.tf32 import arithmetic\n"
        "with arithmetic('float32', 'cuda'):\n"
        "    torch.nn.Conv2d(3, 4, 3)(torch.rand(1, 3, 8, 8))\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="run on a GPU with: python -m pytest -m gpu"
)
def test_a_gpu_rounds_only_when_asked():
    net, x = network().cuda(), torch.rand(8, 3, 16, 16, device="cuda")

    def error(precision):
        with torch.inference_mode(), arithmetic(precision, "cuda"):
            found = net(x).double()
        with torch.inference_mode():
            exact = net.double()(x.double())
        net.float()
        return ((found - exact).abs().max() / exact.abs().max()).item()

    assert error("float32") < 2e-6 < 5e-5 < error("tf32")
