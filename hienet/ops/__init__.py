"""Compiled operators (`torch.ops.hienet.*`, pair_hienet/ops/) and the modules that call them."""
