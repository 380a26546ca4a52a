"""The hospital: everything that touches a pixel, a label, a patient key or a gradient."""
