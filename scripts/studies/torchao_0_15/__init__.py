"""The native schemes compared with those of the last torchao that had them all."""
