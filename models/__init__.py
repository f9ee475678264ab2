"""The mathematics of RDPM in plain torch: no disk, no Ray, no DeepSpeed."""
