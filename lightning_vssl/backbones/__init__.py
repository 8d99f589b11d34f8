"""Networks that turn pixels into feature maps, and their weights on disk."""
