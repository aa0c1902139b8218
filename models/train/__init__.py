"""Makes ``clforge-tiny.gguf``: the examples, the training and the evaluation. Its README is the model card."""
