"""The contrastive loss over the three Matryoshka axes. Tensors in, tensors out; knows neither models nor data."""
