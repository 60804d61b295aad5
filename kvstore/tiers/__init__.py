"""Where slices are kept: one Protocol, four kinds (memory, HBM, DRAM, SSD), and one object in front of several."""
