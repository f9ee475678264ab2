"""Other ways to learn and draw images, with RDPM's blocks, from RDPM's stores: what it is compared with.

Every rival is a subclass of `rival.Rival`. `models.methods` names them; trainings, sampling and exports know no other
interface of theirs.
"""
