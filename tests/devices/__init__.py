"""The code of a GPU, run on a device that is not the CPU and has none of its luxuries."""
