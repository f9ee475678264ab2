"""The mathematics of RDPM in plain torch: tokenizer, generator, sampler, noise and losses, with their configs.

Tensors and configs go in, tensors come out. Any room may import it. It does no input or output, and knows neither Ray
nor DeepSpeed.
"""
