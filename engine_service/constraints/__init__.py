"""Structured output: grammars from what users ask for, and masks of the tokens that they allow."""
