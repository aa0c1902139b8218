"""One file per kind of question; each function makes one example from a random generator."""
