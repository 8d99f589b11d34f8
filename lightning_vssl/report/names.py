"""Classes of this library by the names that the papers use."""

from collections.abc import Mapping

from lightning_vssl.report.settings import defaults

METHODS = {
    "untouched": "none",
    "ConSTCL": "ConST-CL",
    "PreViTSMoCo": "PreViTS",
    "PreViTSRSPNet": "PreViTS",
}
"""Classes of methods by the papers' names, where these differ."""

BACKBONES = {
    "R3D18": "R3D-18",
    "R2Plus1D18": "R(2+1)D-18",
    "R2Plus1D10": "R(2+1)D",
    "S3DG": "S3D-G",
    "PytorchvideoResNet": "R3D-50",
    "YResNet": "R3D-50",
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "swin_small_patch4_window7_224": "Swin-S",
}
"""Classes of networks, or the names that timm gives them, by the papers' names."""

DATA = {
    "UCF101": "UCF-101",
    "HMDB51": "HMDB-51",
    "Kinetics": "Kinetics-400",
    "MiniKinetics": "mini-Kinetics",
    "VGGSound": "VGG-Sound",
    "YouTube8M": "YouTube-8M",
    "ImageFolder": "ImageNet",
    "ImageNet9": "ImageNet-9",
    "GOT10kClips": "GOT-10k",
    "AVAKinetics": "AVA-Kinetics",
    "TrackingPairs": "OTB2015",
    "SomethingSomethingV1": "Something-Something V1",
    "SomethingSomethingV2": "Something-Something V2",
    "Demo": "built-in videos",
    "VideoFolder": "a folder of videos",
}
"""Data modules by the papers' names, where these differ."""

# Width and depth that a name of timm stands for: what its class says is None.
_TIMM = {"resnet18": (64, [2, 2, 2, 2]), "resnet50": (64, [3, 4, 6, 3])}


def backbone_name(config: Mapping[str, object]) -> tuple[str, str]:
    """A network by the papers' name.

    Args:
        config: ``class_path`` and ``init_args``, as a backbone's `config`.

    Returns:
        The name, and what is smaller than published, such as ``width 8``; empty if nothing is.
    """
    class_path = str(config["class_path"])
    given = config.get("init_args")
    arguments = dict(given) if isinstance(given, Mapping) else {}
    named = str(arguments.get("name") or class_path.rpartition(".")[2])
    published = {k: v for k, v in defaults(class_path).items() if v is not None}
    published |= dict(zip(("width", "depth"), _TIMM.get(named, ()), strict=False))
    changed = [
        f"{name} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for name in ("width", "depth")
        if (value := arguments.get(name)) is not None and value != published.get(name, value)
    ]
    return BACKBONES.get(named, named), ", ".join(changed)
