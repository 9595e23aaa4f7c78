"""What the case doctor looks at: each file by itself, what is wrong between them, label maps, and
the data set as a whole.
"""
