"""The encoder: stock transformers backbones, the low-rank token table, and the exits."""
