"""From a trained model to checkpoints that ship: cut out, written in a standard form, and checked in a process of their own."""
