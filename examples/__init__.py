"""Examples of one page each, the street scenes and the study; run by the tests."""
