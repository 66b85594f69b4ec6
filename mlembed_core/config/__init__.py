"""``configs/params.yaml``, the one file that can change a result: its schema, its reader and the presets that write it.

The schema is split by what reads it (data, model, train, evaluate), and each stage loads only the sections that it declares, so that
a new option for the evaluation is no new code for the training (DVC tracks code as a dependency).
"""
