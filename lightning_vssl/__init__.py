"""Self-supervised learning from video, on PyTorch Lightning."""

__version__ = "0.1.0.dev0"
