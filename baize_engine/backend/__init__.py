"""What computes: the one chooser of implementations, devices, the C++ ops and the adders. Knows neither recovery nor models."""
