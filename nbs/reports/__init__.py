"""The parameterised reports, installed as gpovae.notebooks."""
