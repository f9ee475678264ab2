"""Ray: sessions, and runs of whole shards on replicas of a model. No other room imports Ray.

Shard numbers, a function that prepares a shard and a worker class go in; a `ShardDone` per committed shard comes out.
The rooms that write stores (tokenizing, sampling) call it, and configs hold its `Resources`.
"""
