"""The tokenizer's training: labelled images in, an exported tokenizer out.

`stage.run` is its entry, for the job and for the tokenizer's ablation. `config` holds its settings, `step` the two
engines, `validation` the metrics of held-out images, `notes` what is said about the images.
"""
