"""Phantoms: synthetic B-mode frames of the fetal head with known truth (notebook 7).

Read `ultrasound` (the physics of a picture), `anatomy` (what the sound meets), `frames` (what is drawn at random, from
the table `distributions.csv`, and a frame with its truth), `dataset` (a set on the disk, with defects). The network in
`pretrained.pt` has learnt from phantoms alone; `pretrained.md` is its model card.
"""
