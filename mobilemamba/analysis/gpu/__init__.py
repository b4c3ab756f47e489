"""One run on a GPU that says whether all is right there, and how fast: see ``mobilemamba gpu``."""
