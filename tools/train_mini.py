"""
Train the backbone that ships with the package
==============================================

``"mini"`` is a SqueezeNet trunk that reproduces, from images of 96 pixels, the features
that an ImageNet network of the same architecture, its teacher, computes from images of
224 pixels, at a fifth of the cost (knowledge distillation, Hinton et al. 2015; many
crops of few images suffice, Asano & Saeed 2022). It is initialised as a copy of its
teacher, so the two are compared channel by channel, without any layer in between.

    python tools/train_mini.py --photos PHOTOS --teacher squeezenet1_0.pth --out run

``PHOTOS`` is a folder of JPEG files, the teacher a torchvision ``squeezenet1_0``
state dict. Training has two steps, which can both be resumed by repeating the command:
the views and the teacher's outputs are computed once into ``run/views``, then the
student is trained on them. ``run/best.pth`` is the averaged student with the highest
score on the ``--yardstick`` (a folder with ``cifar10_subset.npz`` and
``hymenoptera/``), or the latest one without a yardstick. ``python tools/pack_mini.py
run/best.pth`` packs it for the wheel. ``--start`` continues from a checkpoint, or from
the packed weights.
"""

import argparse
import copy
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms import v2

TEACHER_SIZE = 224
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)

# What the student learns from the teacher: name → (channels, side of the pooled grid).
# The last maps and the logits are averages of the outputs for the view and for the view
# at half its size, as the first shows details and the second resembles small images.
TARGETS = {
    "fire3": (128, 4),
    "fire5": (256, 4),
    "fire8": (512, 4),
    "fire9": (512, 4),
    "logits": (1000, 1),
}
LOSS_WEIGHTS = {"fire3": 0.1, "fire5": 0.25, "fire8": 0.5, "fire9": 1.0, "logits": 0.5}
FIRES = {4: "fire3", 7: "fire5", 10: "fire8", 12: "fire9"}  # indices in the trunk


# Views: photos → crops → the teacher's outputs --------------------------------------


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


def random_crop(image, rng):
    """A crop of 8 to 100 % of the area, with aspect ratio up to 4:3, resized."""
    width, height = image.size
    area = width * height * rng.uniform(0.08, 1)
    ratio = math.exp(rng.uniform(-0.29, 0.29))
    w = min(width, math.sqrt(area * ratio))
    h = min(height, math.sqrt(area / ratio))
    left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
    box = (left, top, left + w, top + h)
    crop = image.resize((TEACHER_SIZE,) * 2, Image.BILINEAR, box=box, reducing_gap=2)
    return np.asarray(crop)


def distort(views, rng):
    """Change the colours of all views, blur a fifth of them, and blend a quarter."""
    n = len(views)

    def uniform(low, high, *shape):
        return torch.from_numpy(rng.uniform(low, high, (n, *shape, 1, 1))).float()

    grey = views.mean(1, keepdim=True)
    views = grey + (views - grey) * uniform(0.4, 1.6, 1)
    views = (views - 0.5) * uniform(0.6, 1.4, 1) + 0.5 + uniform(-0.2, 0.2, 1)
    views = views * uniform(0.85, 1.15, 3)
    small = torch.from_numpy(rng.random(n) < 0.2)
    if small.any():
        side = int(rng.integers(24, 80))
        low = F.interpolate(views[small], side, mode="bilinear", antialias=True)
        views[small] = F.interpolate(low, TEACHER_SIZE, mode="bilinear")
    share = uniform(0.5, 1, 1)
    share[torch.from_numpy(rng.random(n) < 0.75)] = 1
    return (share * views + (1 - share) * views.roll(1, 0)).clamp(0, 1)


def fire_maps(trunk, x):
    """{name: maps} after the Fire modules that are compared."""
    found = {}
    for index, layer in enumerate(trunk):
        x = layer(x)
        if index in FIRES:
            found[FIRES[index]] = x
    return found


@torch.inference_mode()
def teacher_answers(teacher, views):
    """The teacher's maps and logits for (b, 3, 224, 224) pixels in [0, 1]."""
    x = ((views - MEAN) / STD).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        answers = fire_maps(teacher.features, x)
        half = teacher.features(F.avg_pool2d(x, 2))
        logits = [teacher.classifier(maps) for maps in (answers["fire9"], half)]
    answers["logits"] = (logits[0].float() + logits[1].float()) / 2
    pooled = {
        name: F.adaptive_avg_pool2d(answers[name].float(), side)
        for name, (_, side) in TARGETS.items()
    }
    half = F.adaptive_avg_pool2d(half.float(), TARGETS["fire9"][1])
    pooled["fire9"] = (pooled["fire9"] + half) / 2
    return {name: answer.half().numpy() for name, answer in pooled.items()}


def open_views(folder, n_views, size, mode):
    """The memory maps of the views and of the teacher's outputs."""
    shapes = {"views": (3, size, size)}
    shapes |= {name: (c, side, side) for name, (c, side) in TARGETS.items()}
    return {
        name: np.lib.format.open_memmap(
            folder / f"{name}.npy",
            mode=mode,
            dtype=np.uint8 if name == "views" else np.float16,
            shape=(n_views, *shape),
        )
        for name, shape in shapes.items()
    }


def render_views(folder, photos, teacher, n_views, size, seed, batch=16):
    """Write the views and the outputs to disk in batches; resumes if interrupted."""
    folder.mkdir(parents=True, exist_ok=True)
    progress = folder / "done.json"
    done = json.loads(progress.read_text()) if progress.exists() else 0
    maps = open_views(folder, n_views, size, "r+" if done else "w+")
    started = time.monotonic()
    for start in range(done, n_views, batch):
        rng = np.random.default_rng([seed, start])
        stop = min(start + batch, n_views)
        chosen = rng.integers(len(photos), size=stop - start)
        crops = np.stack([random_crop(photos[i], rng) for i in chosen])
        views = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255
        views = distort(views, rng)
        for name, answer in teacher_answers(teacher, views).items():
            maps[name][start:stop] = answer
        small = F.interpolate(views, size, mode="bilinear", antialias=True)
        maps["views"][start:stop] = (small * 255).round().byte().numpy()
        progress.write_text(json.dumps(stop))
        if start // batch % 100 == 0:
            rate = (stop - done) / (time.monotonic() - started)
            print(f"{stop:>7} of {n_views} views, {rate:.0f} a second", flush=True)
    return open_views(folder, n_views, size, "r+")


# Student ----------------------------------------------------------------------------


class Student(torch.nn.Module):
    """A copy of the teacher, whose classifier stays as it is."""

    def __init__(self, teacher):
        super().__init__()
        self.trunk = copy.deepcopy(teacher.features)
        self.classifier = copy.deepcopy(teacher.classifier).requires_grad_(False)
        for module in self.modules():
            if getattr(module, "inplace", False):
                module.inplace = False  # or it would overwrite maps to compare

    def forward(self, x):
        maps = fire_maps(self.trunk, x)
        maps["logits"] = self.classifier(maps["fire9"])
        return {
            name: F.adaptive_avg_pool2d(maps[name].float(), side)
            for name, (_, side) in TARGETS.items()
        }


def channel_scales(maps):
    """Standard deviation of each channel, in the maps and in pooled vectors."""
    scales = {}
    for name in TARGETS:
        sample = torch.from_numpy(maps[name][:4096]).float()
        places = sample.std((0, 2, 3)) + 1e-3
        pooled = sample.mean((2, 3)).std(0) + 1e-3
        scales[name] = (places.view(1, -1, 1, 1), pooled)
    return scales


def imitation_loss(predicted, wanted, scales, temperature=2.0):
    """Standardised squared error of maps and pooled vectors, plus KL of the logits."""
    total = 0.0
    for name, weight in LOSS_WEIGHTS.items():
        p, w = predicted[name], wanted[name]
        if name == "logits":
            log_p, log_w = (
                v.flatten(1).div(temperature).log_softmax(1) for v in (p, w)
            )
            loss = F.kl_div(log_p, log_w, log_target=True, reduction="batchmean")
        else:
            places, pooled = scales[name]
            loss = ((p - w) / places).square().mean()
            loss = loss + ((p - w).mean((2, 3)) / pooled).square().mean()
        total = total + weight * loss
    return total


def draw_batch(maps, rng, batch):
    """A batch of random views, mirrored with their maps half of the time."""
    rows = np.sort(rng.integers(len(maps["views"]), size=batch))
    flip = rng.random() < 0.5
    data = {}
    for name, values in maps.items():
        tensor = torch.from_numpy(values[rows]).float()
        data[name] = tensor.flip(3) if flip else tensor
    views = (data.pop("views") / 255 - MEAN) / STD
    return views.contiguous(memory_format=torch.channels_last), data


def learning_rate(step, steps, peak, warmup=200):
    """Linear warm-up, then half a cosine to zero."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))


@torch.no_grad()
def average_weights(average, model, decay):
    """Exponential moving average of parameters; buffers are copied."""
    for a, b in zip(average.parameters(), model.parameters(), strict=True):
        a.lerp_(b, 1 - decay)
    for a, b in zip(average.buffers(), model.buffers(), strict=True):
        a.copy_(b)


def train(maps, teacher, out, args):
    """The training loop, which saves a checkpoint every `args.every` steps."""
    torch.manual_seed(args.seed)
    model = Student(teacher).to(memory_format=torch.channels_last)
    if args.start:
        start_from(args.start, model)
    average = copy.deepcopy(model)
    decayed = [p for p in model.trunk.parameters() if p.ndim > 1]
    others = [p for p in model.trunk.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.02}, {"params": others}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, weight_decay=0.0)
    state = {"step": 0, "best": -1.0}
    latest = out / "latest.pth"
    if latest.exists():
        saved = torch.load(latest, weights_only=True)
        model.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        state = saved["state"]
    scales = channel_scales(maps)
    running, started, first = 0.0, time.monotonic(), state["step"]
    for step in range(first, args.steps):
        rng = np.random.default_rng([args.seed, 1, step])
        views, wanted = draw_batch(maps, rng, args.batch)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        with torch.autocast("cpu", torch.bfloat16):
            predicted = model(views)
        loss = imitation_loss(predicted, wanted, scales)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        average_weights(average, model, min(0.999, (step + 1) / (step + 10)))
        running = 0.98 * running + 0.02 * loss.item()
        if (step + 1) % 100 == 0:
            pace = (time.monotonic() - started) / (step + 1 - first)
            shown = running / (1 - 0.98 ** (step + 1 - first))
            print(f"step {step + 1}: loss {shown:.3f}, {pace:.2f} s", flush=True)
        if (step + 1) % args.every == 0 or step + 1 == args.steps:
            state["step"] = step + 1
            keep_best(average.trunk, state, out, args)
            save(latest, model, average, optimizer, state)


def start_from(path, model):
    """Load the averaged student of a checkpoint, or a packed trunk."""
    if path.suffix == ".safetensors":
        packed = load_file(path)
        trunk = {k.removeprefix("features."): v.float() for k, v in packed.items()}
        model.trunk.load_state_dict(trunk)
    else:
        model.load_state_dict(torch.load(path, weights_only=True)["average"])


def save(path, model, average, optimizer, state):
    """Write the checkpoint to a temporary file, then replace the old one."""
    partial = path.with_suffix(".partial")
    parts = {"model": model, "average": average, "optimizer": optimizer}
    saved = {name: part.state_dict() for name, part in parts.items()}
    torch.save(saved | {"state": state}, partial)
    partial.replace(path)


def keep_best(trunk, state, out, args):
    """Evaluate the averaged trunk, and save it if it is the best so far."""
    scores = measure(trunk, args.yardstick, args.probe_size) if args.yardstick else {}
    score = float(np.mean(list(scores.values()))) if scores else state["step"]
    print(f"step {state['step']}: {scores}", flush=True)
    if score > state["best"]:
        state["best"] = score
        torch.save(trunk.state_dict(), out / "best.pth")


# Yardstick: a linear probe on images that are not used for training -----------------


@torch.inference_mode()
def pooled_features(trunk, images, size):
    """Averages (n, d) of the last maps, after resize and centre crop."""
    transforms = v2.Compose(
        [
            v2.Resize(round(size * 256 / 224)),
            v2.CenterCrop(size),
            v2.PILToTensor(),
        ]
    )
    rows = []
    for start in range(0, len(images), 64):
        views = torch.stack([transforms(i) for i in images[start : start + 64]])
        x = (views.float() / 255 - MEAN) / STD
        x = x.contiguous(memory_format=torch.channels_last)
        rows.append(trunk(x).mean((2, 3)).numpy())
    return np.concatenate(rows)


def yardstick_sets(folder):
    """{name: (train images, train labels, test images, test labels)}."""
    cifar = np.load(folder / "cifar10_subset.npz")
    sets = {
        "cifar10": (
            [Image.fromarray(a) for a in cifar["X_train"][:2000]],
            cifar["y_train"][:2000],
            [Image.fromarray(a) for a in cifar["X_test"][:1000]],
            cifar["y_test"][:1000],
        )
    }
    parts = []
    for split in ("train", "val"):
        paths = sorted((folder / "hymenoptera" / split).glob("*/*"))
        parts.append([Image.open(path).convert("RGB") for path in paths])
        parts.append(np.array([path.parent.name for path in paths]))
    return sets | {"hymenoptera": tuple(parts)}


def measure(trunk, folder, size):
    """Accuracy of a linear probe on each set of the yardstick."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    trunk = copy.deepcopy(trunk).eval()
    scores = {}
    for name, (train_x, train_y, test_x, test_y) in yardstick_sets(folder).items():
        probe = make_pipeline(
            StandardScaler(), LogisticRegression(C=0.01, max_iter=1000)
        )
        probe.fit(pooled_features(trunk, train_x, size), train_y)
        scores[name] = probe.score(pooled_features(trunk, test_x, size), test_y)
    return scores


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[1])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--yardstick", type=Path)
    parser.add_argument("--views", type=int, default=60_000)
    parser.add_argument("--steps", type=int, default=6_000)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--probe-size", type=int, default=96)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--every", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    teacher = torchvision.models.squeezenet1_0(weights=None)
    teacher.load_state_dict(torch.load(args.teacher, weights_only=True))
    teacher = teacher.eval().to(memory_format=torch.channels_last)
    rng = np.random.default_rng(args.seed)
    photos = load_photos(args.photos)
    photos += [render_fractal(rng) for _ in range(len(photos) // 25)]
    views = args.out / "views"
    maps = render_views(views, photos, teacher, args.views, args.size, args.seed)
    train(maps, teacher, args.out, args)


if __name__ == "__main__":
    main()
