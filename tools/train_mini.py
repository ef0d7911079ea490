"""
Train the backbone that ships with the package
==============================================

``"mini"`` is the trunk of EfficientNet-Lite0, which from small images computes features
like those that two networks, its teachers, compute from large ones (knowledge
distillation, Hinton et al. 2015; many crops of few images suffice, Asano & Saeed 2022).
The teachers are Lite0 itself at 224 pixels, whose maps it reproduces channel by
channel, and Lite2 at 260 pixels, whose features and class scores must follow linearly
from its own. A quarter of the batches have the size of the first teacher, so that the
weights serve large images as well.

    python tools/train_mini.py --photos PHOTOS --out run

``PHOTOS`` is a folder of JPEG files; the teachers come with ``skdeepfeat[lite]``.
Training has two steps, which can both be resumed by repeating the command: the views
and the teachers' answers are computed once into ``run/views``, then the student is
trained on them. ``run/average.pth`` is the averaged student. ``python
tools/pack_mini.py run/average.pth`` packs it for the wheel, and ``python
tests/benchmarks/bench_mini.py`` says what it is worth on images that are not used here.
"""

import argparse
import copy
import json
import math
import time
from pathlib import Path

import numpy as np
import openvino
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from skdeepfeat._backbones.weights import resolve_source
from skdeepfeat._networks.building import build_network

TEACHER_SIZES = {"efficientnet_lite0": 224, "efficientnet_lite2": 260}
LARGE, BETWEEN = 224, 128  # sides of views in pixels

# What the teachers answer for a view: name → (channels, side of the pooled grid).
TARGETS = {
    "middle": (112, 7),  # maps of Lite0
    "last": (320, 4),
    "features": (1280, 1),  # averages of Lite0's last maps
    "other_features": (1280, 1),  # those of Lite2
    "logits": (1000, 1),  # class scores of Lite2
}
LOSS_WEIGHTS = {
    "middle": 0.1,
    "last": 0.3,
    "features": 1.0,
    "other_features": 0.5,
    "logits": 0.3,
}
MIDDLE, LAST = 9, 15  # blocks whose maps are compared


# Views: photos → crops → the teachers' answers --------------------------------------


def load_photos(folder):
    """All photos of a folder as RGB images, sorted by name."""
    return [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.jp*g"))]


def render_fractal(rng, size=256):
    """One iterated function system over coloured noise, with shapes unlike photos."""
    coarse = rng.integers(0, 256, (rng.integers(2, 12),) * 2 + (3,), dtype=np.uint8)
    canvas = np.asarray(Image.fromarray(coarse).resize((size, size), Image.BICUBIC))
    maps = rng.uniform(-1, 1, (rng.integers(2, 6), 2, 3))
    points = np.zeros((4000, 2))
    canvas = canvas.copy()
    for _ in range(30):
        chosen = maps[rng.integers(len(maps), size=len(points))]
        points = np.einsum("nij,nj->ni", chosen[:, :, :2] * 0.7, points)
        points += chosen[:, :, 2]
        pixels = ((np.tanh(points) + 1) * (size - 1) / 2).astype(int)
        canvas[pixels[:, 0], pixels[:, 1]] = rng.integers(0, 256, 3)
    return Image.fromarray(canvas)


def random_crop(image, rng, side):
    """A crop of 8 to 100 % of the area, with aspect ratio up to 4:3, resized."""
    width, height = image.size
    area = width * height * rng.uniform(0.08, 1)
    ratio = math.exp(rng.uniform(-0.29, 0.29))
    w = min(width, math.sqrt(area * ratio))
    h = min(height, math.sqrt(area / ratio))
    left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
    box = (left, top, left + w, top + h)
    return np.asarray(image.resize((side, side), Image.BICUBIC, box=box))


def distort(views, rng):
    """Change the colours of all views, remove those of a tenth, blur a fifth, and blend
    a fifth."""
    n, side = len(views), views.shape[-1]

    def uniform(low, high, *shape):
        return torch.from_numpy(rng.uniform(low, high, (n, *shape, 1, 1))).float()

    grey = views.mean(1, keepdim=True)
    colour = uniform(0.4, 1.6, 1)
    colour[torch.from_numpy(rng.random(n) < 0.1)] = 0
    views = grey + (views - grey) * colour
    views = (views - 0.5) * uniform(0.6, 1.4, 1) + 0.5 + uniform(-0.2, 0.2, 1)
    tint = uniform(0.85, 1.15, 3)
    tint[colour.flatten() == 0] = 1
    views = views * tint
    small = torch.from_numpy(rng.random(n) < 0.2)
    if small.any():
        low_side = int(rng.integers(24, 80))
        low = F.interpolate(views[small], low_side, mode="bilinear", antialias=True)
        views[small] = F.interpolate(low, side, mode="bilinear")
    share = uniform(0.5, 1, 1)
    share[torch.from_numpy(rng.random(n) < 0.8)] = 1
    return (share * views + (1 - share) * views.roll(1, 0)).clamp(0, 1)


def resized(views, side):
    """Views in [0, 1] of another side."""
    if views.shape[-1] == side:
        return views
    return F.interpolate(views, side, mode="bicubic", antialias=True).clamp(0, 1)


class Compared(nn.Module):
    """What an EfficientNet-Lite computes on the way, and its class scores."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        net, found = self.net, []
        x = net.act0(net.bn0(net.conv_stem(net.pad(x))))
        for index, block in enumerate(net.blocks):
            x = block(x)
            if index in (MIDDLE, LAST):
                found.append(x)
        features = net.act1(net.bn1(net.conv_head(x))).mean((2, 3))
        return *found, features, net.fc(features)


def load_network(name):
    """A network of the package with its published weights."""
    return build_network(resolve_source(name, "default", 0, None))[0]


class Teacher:
    """A network of the package in bfloat16, as OpenVINO runs it."""

    def __init__(self, name, batch):
        self.side = TEACHER_SIZES[name]
        example = torch.zeros(batch, 3, self.side, self.side)
        model = openvino.convert_model(
            Compared(load_network(name)),
            example_input=example,
            input=[tuple(example.shape)],
        )
        hints = {"INFERENCE_PRECISION_HINT": "bf16"}
        self.model = openvino.Core().compile_model(model, "CPU", hints)

    def __call__(self, views):
        """Maps of two blocks, features and class scores of views in [0, 1]."""
        answers = self.model([(resized(views, self.side) * 2 - 1).numpy()])
        return [torch.from_numpy(np.array(answer)) for answer in answers.values()]


def answers_of(teachers, views):
    """The teachers' answers in the order and the shapes of `TARGETS`."""
    middle, last, features, _ = teachers[0](views)
    _, _, other, logits = teachers[1](views)
    found = dict(zip(TARGETS, (middle, last, features, other, logits), strict=True))
    return {
        name: F.adaptive_avg_pool2d(
            found[name].reshape(len(views), channels, *found[name].shape[2:] or (1, 1)),
            side,
        ).half()
        for name, (channels, side) in TARGETS.items()
    }


def open_views(folder, n_views, size, mode):
    """The memory maps of the views in two sizes and of the teachers' answers."""
    shapes = {"large": (3, LARGE, LARGE), "small": (3, size, size)}
    shapes |= {name: (c, side, side) for name, (c, side) in TARGETS.items()}
    return {
        name: np.lib.format.open_memmap(
            folder / f"{name}.npy",
            mode=mode,
            dtype=np.float16 if name in TARGETS else np.uint8,
            shape=(n_views, *shape),
        )
        for name, shape in shapes.items()
    }


def as_bytes(views):
    """Views in [0, 1] as bytes."""
    return (views * 255).round().byte().numpy()


def render_views(folder, photos, n_views, size, seed, batch=16):
    """Write the views and the answers to disk in batches; resumes if interrupted."""
    folder.mkdir(parents=True, exist_ok=True)
    progress = folder / "done.json"
    done = json.loads(progress.read_text()) if progress.exists() else 0
    maps = open_views(folder, n_views, size, "r+" if done else "w+")
    teachers = (
        [Teacher(name, batch) for name in TEACHER_SIZES] if done < n_views else []
    )
    started, side = time.monotonic(), max(TEACHER_SIZES.values())
    for start in range(done, n_views, batch):
        rng = np.random.default_rng([seed, start])
        chosen = rng.integers(len(photos), size=batch)
        crops = np.stack([random_crop(photos[i], rng, side) for i in chosen])
        views = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255
        views = distort(views, rng)
        stop = min(start + batch, n_views)
        for name, answer in answers_of(teachers, views).items():
            maps[name][start:stop] = answer[: stop - start]
        for name, side_ in (("large", LARGE), ("small", size)):
            maps[name][start:stop] = as_bytes(resized(views, side_))[: stop - start]
        progress.write_text(json.dumps(stop))
        if start // batch % 50 == 0:
            rate = (stop - done) / (time.monotonic() - started)
            print(f"{stop:>7} of {n_views} views, {rate:.0f} a second", flush=True)
    return maps


# Student ----------------------------------------------------------------------------


class Student(nn.Module):
    """A copy of Lite0 with its class scores, and a linear map to Lite2's features.

    Batch norms keep their statistics, as batches of two sizes would mix them.
    """

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.to_other = nn.Linear(1280, 1280)

    def train(self, mode=True):
        """Keep all modules in eval mode: nothing here depends on the mode but norms."""
        return super().train(False)

    def forward(self, x):
        middle, last, features, logits = Compared(self.net)(x)
        return {
            "middle": F.adaptive_avg_pool2d(middle, TARGETS["middle"][1]),
            "last": F.adaptive_avg_pool2d(last, TARGETS["last"][1]),
            "features": features[:, :, None, None],
            "other_features": self.to_other(features)[:, :, None, None],
            "logits": logits[:, :, None, None],
        }


def fit_linear_map(layer, maps, n_views=6000):
    """Set a linear layer to the ridge regression from one teacher to the other."""
    x, y = (
        torch.from_numpy(maps[name][:n_views]).float().flatten(1)
        for name in ("features", "other_features")
    )
    centred = x - x.mean(0)
    gram = centred.T @ centred
    gram.diagonal().add_(0.01 * gram.trace() / len(gram))
    weight = torch.linalg.solve(gram, centred.T @ (y - y.mean(0))).T
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(y.mean(0) - weight @ x.mean(0))


def channel_scales(maps):
    """Standard deviation of each channel over views and places, by target."""
    return {
        name: torch.from_numpy(maps[name][:4096]).float().std((0, 2, 3)) + 1e-2
        for name in TARGETS
    }


def imitation_loss(predicted, wanted, scales, temperature=2.0):
    """Standardised squared errors, and KL divergence of the class scores, by target."""
    losses = {}
    for name in TARGETS:
        p, w = predicted[name], wanted[name]
        if name == "logits":
            log_p, log_w = (
                v.flatten(1).div(temperature).log_softmax(1) for v in (p, w)
            )
            losses[name] = F.kl_div(
                log_p, log_w, log_target=True, reduction="batchmean"
            )
        else:
            losses[name] = ((p - w) / scales[name].view(1, -1, 1, 1)).square().mean()
    return losses


def draw_batch(maps, rng, batch, size):
    """A batch of random views, mirrored with their maps half of the time.

    A quarter are of the size of the first teacher, and a quarter in between; batches of
    larger views have fewer of them.
    """
    side = int(rng.choice([size, BETWEEN, LARGE], p=[0.5, 0.25, 0.25]))
    count = batch // 4 if side == LARGE else batch
    rows = np.sort(rng.integers(len(maps["large"]), size=count))
    flip = rng.random() < 0.5
    stored = "small" if side == size else "large"
    data = {}
    for name in (stored, *TARGETS):
        tensor = torch.from_numpy(maps[name][rows]).float()
        data[name] = tensor.flip(3) if flip else tensor
    views = resized(data.pop(stored) / 255, side) * 2 - 1
    return views.contiguous(memory_format=torch.channels_last), data


def learning_rate(step, steps, peak, warmup=100):
    """Linear warm-up, then half a cosine to zero."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))


@torch.no_grad()
def average_weights(average, model, decay):
    """Exponential moving average of the parameters."""
    for a, b in zip(average.parameters(), model.parameters(), strict=True):
        a.lerp_(b, 1 - decay)


def train(maps, out, args):
    """The training loop, which saves a checkpoint every `args.every` steps."""
    model = Student(load_network("efficientnet_lite0").requires_grad_(True))
    fit_linear_map(model.to_other, maps)
    model.to(memory_format=torch.channels_last).train()
    average = copy.deepcopy(model)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.02}, {"params": others}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, weight_decay=0.0)
    parts = {"model": model, "average": average, "optimizer": optimizer}
    first = resume(out / "latest.pth", parts)
    scales, started, running = channel_scales(maps), time.monotonic(), {}
    for step in range(first, args.steps):
        rng = np.random.default_rng([args.seed, 1, step])
        views, wanted = draw_batch(maps, rng, args.batch, args.size)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        losses = imitation_loss(model(views), wanted, scales)
        optimizer.zero_grad()
        sum(LOSS_WEIGHTS[name] * loss for name, loss in losses.items()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        average_weights(average, model, min(0.998, (step + 1) / (step + 10)))
        for name, loss in losses.items():
            running[name] = 0.98 * running.get(name, loss.item()) + 0.02 * loss.item()
        if (step + 1) % min(50, args.every) == 0:
            pace = (time.monotonic() - started) / (step + 1 - first)
            shown = " ".join(f"{name} {loss:.3f}" for name, loss in running.items())
            print(f"step {step + 1}: {shown}, {pace:.2f} s", flush=True)
        if (step + 1) % args.every == 0 or step + 1 == args.steps:
            saved = {name: part.state_dict() for name, part in parts.items()}
            save(out / "latest.pth", saved | {"step": step + 1})
            save(out / "average.pth", average.net.state_dict())


def resume(path, parts):
    """Load a checkpoint if there is one; the number of steps done."""
    if not path.exists():
        return 0
    saved = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    return saved["step"]


def save(path, content):
    """Write a temporary file, then replace the old one."""
    partial = path.with_suffix(".partial")
    torch.save(content, partial)
    partial.replace(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[1])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--views", type=int, default=24_000)
    parser.add_argument("--steps", type=int, default=3_000)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    rng = np.random.default_rng(args.seed)
    photos = load_photos(args.photos)
    photos += [render_fractal(rng) for _ in range(len(photos) // 25)]
    views = args.out / "views"
    maps = render_views(views, photos, args.views, args.size, args.seed)
    torch.manual_seed(args.seed)
    train(maps, args.out, args)


if __name__ == "__main__":
    main()
