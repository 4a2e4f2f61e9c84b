"""Studies: does a method do what its paper says, here, over seeds, beside honest controls? One file per study, on one harness."""
