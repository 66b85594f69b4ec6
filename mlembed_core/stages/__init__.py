"""One thin module per stage of ``dvc.yaml``: read the sections it declares, call the rooms below, write the out and its manifest.

The only place where rooms meet. A stage's ``Config`` has exactly the sections that ``dvc.yaml`` lists under ``params`` for it.
"""
