"""Long preprocessing over whole data sets, run by `lightning-vssl predict`."""
