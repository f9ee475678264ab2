"""Images and a tokenizer to a token store: the plan of the store, the rows of a shard, the encoder, and the stage.

A `TokenizeConfig` goes in, a published store with its record comes out. The job calls `run`; `rdpm verify` calls
`tokenize_again` to repair a store, and rooms above use `tokenizer_of`.
"""
