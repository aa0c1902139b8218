"""The model that CLForge brings along; ``train`` beside it made the file and is not part of the package."""
