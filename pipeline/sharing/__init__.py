"""Trained models for others: the exports of a run, with a card to read, under a URL.

`push.run` is its entry, for the job. `contents` collects and checks what is published, `readme` writes the card,
`storage` puts it into a folder or object store, and `hub` into a repository of the Hugging Face hub.
"""
