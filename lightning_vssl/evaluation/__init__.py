"""LightningModules that put one number on a pretrained backbone, each by a stated protocol."""
