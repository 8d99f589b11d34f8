"""The Lightning face of the data: one thin module per data set."""
