"""Says what is wrong before hours are lost: versions, device, and what a configuration needs."""
