"""Settings of torch and of the C library that must be made before torch is used."""
