"""A run as a folder of configs: chosen for a set of pictures, a machine and a time; gone stage by stage; looked at.

`rdpm init` writes such a folder (`stage`), `rdpm run` goes its road (`road`), `rdpm status` says where it stands.
"""
