"""How long a batch of views takes: ours, torchvision's functional loop, kornia's VideoSequential.

    python benchmarks/augment.py [--clips 8] [--frames 16] [--sizes 112 224] [--repeats 9]

One run, contenders in turn, CPU time of one thread. Ours and torchvision get the same uint8 clips
and the same parameters, and the views are compared before anything is timed. kornia draws its own
parameters with the same probabilities and ranges and one order of jitters per batch; its
preparation of floats is timed too. Everything that users see is included: uint8 in, normalised
floats (N, 3, T, H, W) out.
"""

import argparse
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

import kornia
import kornia.augmentation as ka
import torch
import torchvision
from torch import Tensor
from torchvision.transforms.v2 import functional

from lightning_vssl.augment import colour
from lightning_vssl.augment.views import IMAGENET_MEAN, IMAGENET_STD, Parameters, VideoViews
from lightning_vssl.nn.keyed import sample_key

TOLERANCE = 1e-4

TORCHVISION_JITTERS = (
    functional.adjust_brightness,
    functional.adjust_contrast,
    functional.adjust_saturation,
    functional.adjust_hue,
)


def torchvision_views(video: Tensor, parameters: Parameters, augment: VideoViews) -> Tensor:
    """The same views by torchvision's functions, clip by clip."""
    views = []
    flat = {name: value.flatten(0, 1).tolist() for name, value in parameters.items()}
    kernel = [augment.blur_kernel] * 2
    for i, frames in enumerate(video.flatten(0, 1)):
        clip = functional.horizontal_flip(frames) if flat["flip"][i] else frames
        clip = functional.to_dtype(clip, torch.float32, scale=True)
        for index in flat["order"][i] if flat["jitter"][i] else []:
            clip = TORCHVISION_JITTERS[index](clip, flat["values"][i][index])
        if flat["grey"][i]:
            clip = functional.rgb_to_grayscale(clip, 3)
        if flat["blur"][i]:
            clip = functional.gaussian_blur(clip, kernel, [flat["sigma"][i]] * 2)
        if flat["solarise"][i]:
            clip = functional.solarize(clip, augment.solarise_threshold)
        clip = functional.normalize(clip, list(IMAGENET_MEAN), list(IMAGENET_STD))
        views.append(clip.transpose(0, 1))
    return torch.stack(views).view(*video.shape[:2], 3, video.shape[2], *video.shape[4:])


def kornia_views(augment: VideoViews, blur: float, solarise: float) -> Callable[[Tensor], Tensor]:
    """Builds kornia's pipeline with the same probabilities and ranges."""
    sequence = ka.VideoSequential(
        ka.RandomHorizontalFlip(p=0.5),
        ka.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        ka.RandomGrayscale(p=0.2),
        ka.RandomGaussianBlur((augment.blur_kernel,) * 2, augment.blur_sigma, p=blur),
        ka.RandomSolarize(0.0, 0.0, p=solarise),  # threshold 0.5 + 0
        ka.Normalize(torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)),
        data_format="BTCHW",
        same_on_frame=True,
    )

    def views(video: Tensor) -> Tensor:
        result: Tensor = sequence(video.flatten(0, 1).float().div_(255))
        return result.transpose(1, 2).contiguous()

    return views


def time_in_turn(
    contenders: dict[str, Callable[[], object]], repeats: int
) -> dict[str, list[float]]:
    """CPU milliseconds of every call; the contenders take turns, the first turn is not counted."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats + 1):
        for name, run in contenders.items():
            start = time.process_time()
            run()
            if turn:
                times[name].append(1e3 * (time.process_time() - start))
    return times


def table(times: dict[str, list[float]]) -> None:
    names = list(times)
    for name in names:
        low, _, high = quantiles(times[name], n=4)
        ratios = sorted(a / b for a, b in zip(times[name], times[names[0]], strict=True))
        print(
            f"  {name:36s} {median(times[name]):9.2f} ms [{low:.2f}, {high:.2f}]"
            f"   x{median(ratios):.2f}"
        )


def pipelines(clips: int, frames: int, size: int, repeats: int) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (clips, 1, frames, 3, size, size)
    video = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    key = torch.tensor([sample_key(0, 0, i) for i in range(clips)])
    recipes = {
        "colour (flip, jitter 0.8, grey 0.2)": (0.0, 0.0),
        "MoCo v2 (the same, blur 0.5)": (0.5, 0.0),
        "BYOL's first view (blur 1)": (1.0, 0.0),
        "BYOL's second view (blur 0.1, solarise 0.2)": (0.1, 0.2),
    }
    for name, (blur, solarise) in recipes.items():
        augment = VideoViews(blur=blur, solarise=solarise)
        parameters = augment.draw(key, 1)
        ours = augment({"video": video, "key": key})["views"]
        difference = (ours - torchvision_views(video, parameters, augment)).abs()
        wrong = int((difference > TOLERANCE).sum())
        # A value at the threshold of solarisation may fall on either side of it.
        assert wrong <= (difference.numel() * 1e-5 if solarise else 0), difference.max()
        theirs = kornia_views(augment, blur, solarise)
        print(f"{name}, {clips} x {frames} x {size} x {size}; {wrong} values differ by > 1e-4")
        contenders = {
            "ours": lambda a=augment: a({"video": video, "key": key}),
            "torchvision v2 functional": lambda a=augment, p=parameters: torchvision_views(
                video, p, a
            ),
            "kornia VideoSequential": lambda k=theirs: k(video),
        }
        table(time_in_turn(contenders, repeats))


def operations(frames: int, size: int, repeats: int) -> None:
    generator = torch.Generator().manual_seed(0)
    clip = torch.rand(1, 3, frames, size, size, generator=generator)
    images = clip[0].transpose(0, 1).contiguous()
    one, turn = torch.tensor([1.2]), torch.tensor([0.1])
    enhance = kornia.enhance
    blur, sigma = [23, 23], [1.0, 1.0]
    rows: dict[str, tuple[Callable[[], Tensor], ...]] = {
        "brightness": (
            lambda: colour.scale_brightness(clip, one),
            lambda: functional.adjust_brightness(images, 1.2),
            lambda: enhance.adjust_brightness_accumulative(images, 1.2),
        ),
        "contrast": (
            lambda: colour.contrast_about_grey(clip, one),
            lambda: functional.adjust_contrast(images, 1.2),
            lambda: enhance.adjust_contrast_with_mean_subtraction(images, 1.2),
        ),
        "saturation": (
            lambda: colour.saturation_to_grey(clip, one),
            lambda: functional.adjust_saturation(images, 1.2),
            lambda: enhance.adjust_saturation_with_gray_subtraction(images, 1.2),
        ),
        "hue": (
            lambda: colour.rotate_hue(clip, turn),
            lambda: functional.adjust_hue(images, 0.1),
            lambda: enhance.adjust_hue(images, 0.1 * 2 * torch.pi),
        ),
        "blur": (
            lambda: colour.gaussian_blur(clip, torch.ones(1)),
            lambda: functional.gaussian_blur(images, blur, sigma),
            lambda: kornia.filters.gaussian_blur2d(images, (23, 23), torch.ones(1, 2)),
        ),
        "solarise": (
            lambda: colour.solarise(clip),
            lambda: functional.solarize(images, 0.5),
            lambda: enhance.solarize(images, 0.5),
        ),
    }
    for name, runs in rows.items():
        for run in runs[1:]:
            assert (runs[0]()[0].transpose(0, 1) - run()).abs().max() < TOLERANCE, name
        print(f"{name}, one clip of {frames} x {size} x {size}")
        table(
            time_in_turn(dict(zip(("ours", "torchvision", "kornia"), runs, strict=True)), repeats)
        )


def describe() -> None:
    root = Path(__file__).parent
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":")[1].strip() if lines else model
    print(f"commit {commit or 'unknown'}; {model}, one thread; Python {platform.python_version()}")
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, ", end="")
    print(f"kornia {kornia.__version__}")
    print("median of CPU time [quartiles], and the median of the ratios to ours\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--sizes", type=int, nargs="+", default=[112, 224])
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    describe()
    for size in arguments.sizes:
        pipelines(arguments.clips, arguments.frames, size, arguments.repeats)
        operations(arguments.frames, size, arguments.repeats)


if __name__ == "__main__":
    main()
