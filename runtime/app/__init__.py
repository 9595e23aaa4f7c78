"""The web page over the `Segmenter`: a client of the runtime that nothing imports."""
