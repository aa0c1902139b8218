"""`make identity`: every request gives the bits that it gives alone, whatever runs beside it."""
