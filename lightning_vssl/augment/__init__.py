"""Views of a batch, made on the accelerator; each returns pixels and the parameters it drew."""
