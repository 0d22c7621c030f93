"""Configuration to checkpoint: the run's typed settings, the tokenizer, the loss mask and supervised fine-tuning."""
