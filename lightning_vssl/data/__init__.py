"""From a file on disk to a sample in a batch. Knows no Lightning."""
