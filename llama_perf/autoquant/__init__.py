"""autoquant: the fastest scheme for each shape of linear layer, timed on the device."""
