"""Slices to encoders.

What this package makes is an encoder card: `card.json` beside `weights.safetensors`, which `clear extract --model`
takes as it is. `clear.export` writes one from a network; `pretrain.initialise` makes the reproducible random start
that every pretraining begins with and that untrained baselines are measured against.
"""
