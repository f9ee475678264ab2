"""Where labelled images are stored: class folders, tar files, Parquet files.

A path, URL or pattern goes in, entries of images come out, by the one interface in `sources.source`. Only the room
around it calls it.
"""
