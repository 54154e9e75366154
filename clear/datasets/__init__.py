"""Data sets: the label files of public data sets exactly as they are downloaded, one module each.

A module has `FILES`, the names by which its label tables are known, `ORIGIN`, where they come from, and
`read(path, task)`, which turns the folder that holds them (or one of the files) into `clear.labels.Labels`: an id a
row, the patient where it is known, one column an endpoint, and `split` (train, val, test) where there is an official
one. A module whose labels are made of other columns has `is_source(column, label)`, which tells those, so that no
baseline reads them. Values that the data set calls unknown are null there; nothing is guessed.
`clear.label_readers` is the table of these modules; the facts and their sources are in docs/tasks.md.
"""
