"""Networks: built, loaded, cut, fused, and run over images."""
