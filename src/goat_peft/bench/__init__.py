"""Measurements of speed and memory. Each measures the floor, PEFT LoRA at the same rank, a loop over experts, and GOAT in one run."""
