"""One thread (small nets are slower on two) and the same hypothesis examples in every run."""

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("poise", deadline=None, derandomize=True, max_examples=50, database=None)
settings.load_profile("poise")
