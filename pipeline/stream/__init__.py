"""Token stores as one endless, shuffled stream of batches, through a cache of decoded rows on the node's disk.

Published stores and a `StreamConfig` go in; `TokenBatch`es come out. The training of the generator calls this room.
"""
