"""What there is to know of the machine and the model file before anything is loaded."""
