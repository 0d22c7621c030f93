"""Configuration to checkpoint: the run's typed settings, the tokenizer, the loss mask and supervised fine-tuning."""

import logging

# At its import bitsandbytes advises a package that would fetch a kernel for inference over the network; training never
# repacks its weights for that kernel.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
