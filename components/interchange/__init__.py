"""Models in the formats of other libraries. The files are written and read here; none of those libraries is imported
to do so."""
