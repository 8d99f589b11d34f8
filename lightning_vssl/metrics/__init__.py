"""Numbers of the evaluations: pure functions, and torchmetrics classes over them."""
