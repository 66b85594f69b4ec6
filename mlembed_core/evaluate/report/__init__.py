"""The report: what the score tables say, as numbers, pictures, one self-contained page and a table for the terminal.

``read`` takes the inputs in and checks them, ``summarise`` turns them into the numbers of ``report.json``, and ``pictures``, ``page``
and ``table`` only show those numbers. Everything here is a function of its inputs: the same scores give the same bytes.
"""
