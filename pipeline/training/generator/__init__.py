"""The generator's training: token stores of one tokenizer in, an exported generator with averaged weights out.

`stage.run` is its entry, for the job. `config` holds its settings, `inputs` opens and checks the stores, `draws` makes
training batches of the stream's rows, `step` is one step, `preview` shows samples.
"""
