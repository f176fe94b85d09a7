"""What pruning gains here: time, memory and bytes, measured, beside what theory promises."""
