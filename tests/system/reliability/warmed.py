"""Imported by the fault server before it forks: what every trial needs is made once."""

import stores
import torch

torch.set_num_threads(1)
for shape in stores.SHAPES:
    stores.arguments(shape)
    stores.expected(shape)
