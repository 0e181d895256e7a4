"""Merges that PEFT and transformers wrote, right ones and wrong ones, each of one known mistake."""
