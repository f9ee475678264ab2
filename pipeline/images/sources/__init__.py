"""Where labelled images lie: class folders, tar files, Parquet files; one interface over them, in `sources.source`."""
