"""Parts that methods share: keyed random numbers, gather, queue, EMA, heads."""
