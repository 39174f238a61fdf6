"""Examples of one page each, run by the tests."""
