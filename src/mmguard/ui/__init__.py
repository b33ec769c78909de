"""`mmguard ui`: the program as a web page on this computer. What it does, the Python API does."""
